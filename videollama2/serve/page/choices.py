"""Offers the choice of models on the page, and draws what follows from it: the columns, and the widgets for sound."""

from __future__ import annotations

import logging
from typing import Any

import gradio as gr

from videollama2.constants import BUILT_IN_MODELS
from videollama2.media.kinds import AUDIO, SEEN, VIDEO
from videollama2.serve.page import errors as page_errors
from videollama2.serve.page.backends import PageBackend
from videollama2.serve.page.conversation import Conversation, Turn
from videollama2.serve.page.examples import shown_examples
from videollama2.serve.page.frames import Values
from videollama2.serve.page.layout import (
    HEAR_ONLY,
    NO_OTHER,
    SEE_AND_HEAR,
    SEE_ONLY,
    TINY_NOTE,
    Widgets,
)
from videollama2.serve.page.notices import notice
from videollama2.serve.web.errors import ApiError

Updates = dict[Any, Any]
"""Widgets of the page, mapped to their new states."""

_log = logging.getLogger(__name__)


def is_compared(values: Values, widgets: Widgets) -> bool:
    """Return whether a second model answers beside the first."""
    name = values[widgets.other]
    return bool(name) and name != NO_OTHER


class Choices:
    """The event handlers of the lists of models.

    Args:
        backend: back end that knows the models.
        widgets: widgets of the page.
    """

    def __init__(self, backend: PageBackend, widgets: Widgets) -> None:
        self.backend, self.widgets = backend, widgets

    async def models(self) -> list[str]:
        """Return the names of the models, none if the back end cannot be reached."""
        try:
            return await self.backend.models()
        except ApiError:
            return []

    async def offer(self) -> Updates:
        """Offer the current list of models, the first of them chosen."""
        w = self.widgets
        try:
            names = await self.backend.models(refresh=True)
        except ApiError as error:
            _log.warning("no list of models: %s", error)
            return {w.model: gr.Dropdown(choices=[], value=None), w.notice: notice(page_errors.UNREACHABLE)}
        note = TINY_NOTE if set(names[:1]) & set(BUILT_IN_MODELS) else None
        shown = gr.Dropdown(choices=names, value=names[0] if names else None, info=note)
        others = gr.Dropdown(choices=[NO_OTHER, *names], value=NO_OTHER, visible=len(names) > 1)
        return {w.model: shown, w.other: others, w.notice: notice("" if names else page_errors.NO_MODEL)}

    async def offer_anew(self, turn: Turn) -> Updates:
        """Offer the current list of models after a turn whose model is missing.

        The visitor can then continue without reloading the page. The turn says so if its model is gone.
        """
        try:
            names = await self.backend.models(refresh=True)
        except ApiError:
            return {}
        if names and turn.model not in names:
            turn.notice = page_errors.GONE
        chosen = turn.model if turn.model in names else next(iter(names), None)
        return {self.widgets.model: gr.Dropdown(choices=names, value=chosen)}

    async def show_other(self, values: Values) -> Updates:
        """Show or hide the column of a second model, whose conversation starts anew."""
        w = self.widgets
        is_shown = is_compared(values, w)
        return {w.other_chat: gr.Chatbot(visible=is_shown, value=[]), w.other_conversation: Conversation()}

    async def name_columns(self, values: Values) -> Updates:
        """Head each of the two columns with the name of its model."""
        w = self.widgets
        are_two = is_compared(values, w)
        return {
            w.chat: gr.Chatbot(label=values[w.model] or "", show_label=are_two, container=are_two),
            w.other_chat: gr.Chatbot(label=values[w.other] or "", show_label=are_two, container=are_two),
        }

    async def show_senses(self, values: Values) -> Updates:
        """Offer what the model has the senses for.

        These are the choice of what a video is used for if it sees and hears, the microphone if it hears, and examples.
        """
        w = self.widgets
        kinds = await self.kinds(values[w.model])
        hears, sees = AUDIO in kinds, VIDEO in kinds
        senses = SEE_ONLY if not hears else SEE_AND_HEAR if sees else HEAR_ONLY
        return {
            w.senses: gr.Radio(value=senses, visible=hears and sees),
            w.microphone_tab: gr.Tab(visible=hears),
            w.camera: gr.Video(include_audio=hears),
            w.chat: gr.Chatbot(examples=shown_examples(kinds)),
        }

    async def kinds(self, model: str | None) -> tuple[str, ...]:
        """Return the kinds of media that the model takes: images and videos if it cannot be asked."""
        try:
            return await self.backend.kinds(model) if model else SEEN
        except ApiError:
            return SEEN
