"""The web page: what it does. What is on it is in :mod:`videollama2.serve.page.layout`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from html import escape
from typing import Any

import gradio as gr

from videollama2.constants import TINY_MODEL_NAME
from videollama2.errors import MediaError, VideoLlama2Error
from videollama2.media.kinds import VIDEO
from videollama2.serve.page import errors as page_errors
from videollama2.serve.page.backends import Backend, kind_of_upload
from videollama2.serve.page.conversation import Conversation, Medium, Turn
from videollama2.serve.page.layout import MAX_QUESTION, TINY_NOTE, PageSettings, Widgets, examples
from videollama2.serve.page.pacing import paced
from videollama2.serve.page.thumbnails import EMPTY, Thumbnails
from videollama2.serve.page.votes import LogFullError
from videollama2.serve.web.errors import ApiError

Values = dict[Any, Any]
Updates = dict[Any, Any]

_ANSWERS = {"concurrency_id": "answers", "api_visibility": "private", "show_progress": "minimal"}
# Not queued: where many questions wait, nobody else's vote or upload may be turned away for it.
_QUICK = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}

_MAX_DRAWING = 32
"""Visitors whose frames are drawn at the same time."""

_MODEL_IS_MISSING = (page_errors.GONE, page_errors.NO_MODEL)

_RUNNING = "An answer is still being written. Stop it first, or wait for its end."

_log = logging.getLogger(__name__)


class Events:
    """Handlers of one page. What belongs to a visitor is in the page's state; here is only what runs now.

    Args:
        backend: answers.
        settings: of the page.
        widgets: on it.
    """

    def __init__(self, backend: Backend, settings: PageSettings, widgets: Widgets) -> None:
        self.backend, self.settings, self.widgets = backend, settings, widgets
        self.running: dict[str, asyncio.Event] = {}
        """By session: set to stop its answer."""
        self._thumbnails: dict[int, Thumbnails] = {}
        self._drawing = 0

    def connect(self, page: gr.Blocks) -> None:
        """Tie handlers to the widgets."""
        w = self.widgets
        # Shows the place of a question that waits for its turn.
        answers = {**_ANSWERS, "concurrency_limit": self.settings.concurrency, "show_progress_on": w.chat}
        everything = list(vars(w).values())
        page.load(self.load, None, [w.model, w.notice], **_QUICK)
        page.unload(self.leave)
        gr.on([w.question.submit, w.send.click], self.ask, w.inputs, everything, trigger_mode="once", **answers)
        w.chat.example_select(self.example, w.inputs, everything, trigger_mode="once", **answers)
        w.regenerate.click(self.regenerate, w.inputs, everything, trigger_mode="once", **answers)
        w.stop.click(self.stop, None, None, **_QUICK)
        w.edit.click(self.edit, w.inputs, everything, **_QUICK)
        w.clear.click(self.clear, None, everything, **_QUICK)
        w.camera.change(self.recorded, {w.camera, w.files}, [w.camera, w.files], **_QUICK)
        gr.on(
            [w.files.change, w.model.change, w.num_frames.change, w.start.change, w.end.change],
            self.show_frames,
            w.inputs,
            w.frames,
            trigger_mode="always_last",
            **{**_QUICK, "show_progress": "minimal"},
        )
        for kind, button in (("up", w.up), ("down", w.down), ("flag", w.flag)):
            button.click(self._voting(kind), {w.conversation}, [button, w.notice], **_QUICK)

    # ------------------------------------------------------------------------------------------------ page and models

    async def load(self) -> Updates:
        """The list of models, when somebody opens the page."""
        w = self.widgets
        try:
            names = await self.backend.models(refresh=True)
        except ApiError as error:
            _log.warning("no list of models: %s", error)
            return {w.model: gr.Dropdown(choices=[], value=None), w.notice: notice(page_errors.UNREACHABLE)}
        note = TINY_NOTE if names[:1] == [TINY_MODEL_NAME] else None
        shown = gr.Dropdown(choices=names, value=names[0] if names else None, info=note)
        return {w.model: shown, w.notice: notice("" if names else page_errors.NO_MODEL)}

    async def _models(self) -> list[str]:
        try:
            return await self.backend.models()
        except ApiError:
            return []

    async def leave(self, request: gr.Request) -> None:
        """The tab was closed: nobody waits for its answer."""
        self._halt(request)

    # ------------------------------------------------------------------------------------------------------- answers

    async def ask(self, values: Values, request: gr.Request) -> AsyncIterator[Updates]:
        """The question in the box, about the files beside it and what was said before."""
        w = self.widgets
        conversation: Conversation = values[w.conversation]
        question = (values[w.question] or "").strip()
        problem = await self._problem(values, question, request)
        if problem:
            yield {w.notice: notice(problem)}
            return
        try:
            media = await asyncio.to_thread(self._media, values)
        except MediaError as error:
            yield {w.notice: notice(page_errors.bad_media(error))}
            return
        if self._is_running(request):  # another question of this visitor came while the files were looked at
            yield {w.notice: notice(_RUNNING)}
            return
        conversation.begin(question, media)
        async with aclosing(self._answer(values, conversation, request)) as updates:
            async for update in updates:
                yield update

    async def example(self, values: Values, request: gr.Request, event: gr.SelectData) -> AsyncIterator[Updates]:
        """A bundled question. Only its number is taken from the browser."""
        known = examples()
        number = event.index if isinstance(event.index, int) else -1
        if not 0 <= number < len(known):
            return
        w = self.widgets
        chosen = {**values, w.files: [str(known[number].path)], w.question: known[number].question}
        async with aclosing(self.ask(chosen, request)) as updates:
            async for update in updates:
                yield update

    async def regenerate(self, values: Values, request: gr.Request) -> AsyncIterator[Updates]:
        """The last question again, with the model and options that are set now. The box is left alone."""
        conversation: Conversation = values[self.widgets.conversation]
        if conversation.last is None:
            return
        problem = await self._problem(values, conversation.last.question, request)
        if not problem and self._is_running(request):
            problem = _RUNNING
        if problem:
            yield {self.widgets.notice: notice(problem)}
            return
        conversation.again()
        async with aclosing(self._answer(values, conversation, request, keep_draft=True)) as updates:
            async for update in updates:
                yield update

    async def stop(self, request: gr.Request) -> None:
        """End the answer of this visitor, also in the engine."""
        self._halt(request)

    def _halt(self, request: gr.Request) -> None:
        running = self.running.get(request.session_hash or "")
        if running is not None:
            running.set()

    def _is_running(self, request: gr.Request) -> bool:
        return (request.session_hash or "") in self.running

    async def _problem(self, values: Values, question: str, request: gr.Request) -> str:
        """Why this cannot be asked now; empty if it can."""
        w = self.widgets
        if self._is_running(request):
            return _RUNNING
        if not values[w.model]:
            # Asked before the list of models was there: whoever is first on it answers.
            names = await self._models()
            if not names:
                return page_errors.NO_MODEL
            values[w.model] = names[0]
        if not question:
            return "Type a question first."
        if len(question) > MAX_QUESTION:
            return f"The question is longer than {MAX_QUESTION} characters. Shorten it."
        if len(values[w.files] or ()) > self.settings.max_media:
            return f"One question can have at most {self.settings.max_media} videos and pictures. Remove some."
        return ""

    def _media(self, values: Values) -> tuple[Medium, ...]:
        """The files beside the question, with the options set now."""
        w = self.widgets
        options = {"num_frames": int(values[w.num_frames] or 0) or None, "start": values[w.start], "end": values[w.end]}
        options = {name: value for name, value in options.items() if value is not None}
        found = []
        for path in (values[w.files] or ())[: self.settings.max_media]:
            kind = kind_of_upload(path)
            found.append(Medium(kind, str(path), options if kind == VIDEO else {}))
        return tuple(found)

    async def _answer(
        self, values: Values, conversation: Conversation, request: gr.Request, keep_draft: bool = False
    ) -> AsyncIterator[Updates]:
        """Answer the last turn of ``conversation`` while it is drawn."""
        w, turn, session = self.widgets, conversation.turns[-1], request.session_hash or ""
        turn.model, turn.options = values[w.model], self._options(values)
        stop = self.running[session] = asyncio.Event()
        emptied: Updates = {} if keep_draft else {w.question: "", w.files: None, w.start: None, w.end: None}
        try:
            yield {
                w.conversation: conversation,
                w.chat: conversation.shown(),
                w.notice: notice(""),
                w.status: status("The model is answering."),
                **emptied,
                **self._buttons(conversation, running=True),
            }
            pieces = self.backend.stream(turn.model, conversation.messages(), {**turn.options, **self._extra()})
            async with aclosing(paced(pieces, stop)) as texts:
                async for text in texts:
                    turn.answer = text
                    yield {w.chat: conversation.shown()}
            _conclude(turn, stop.is_set())
        except Exception as error:  # noqa: BLE001 - a visitor must be told something, whatever it was
            explained = page_errors.explain(error)
            turn.outcome, turn.notice, turn.media_failed = "failed", explained.text, explained.media_failed
        finally:
            self.running.pop(session, None)
        conversation.answered += 1
        listed = await self._listed_anew(turn) if turn.notice in _MODEL_IS_MISSING else {}
        yield {
            **listed,
            w.conversation: conversation,
            w.chat: conversation.shown(),
            w.status: status(f"Answer {conversation.answered} is complete."),
            **self._buttons(conversation),
        }

    async def _listed_anew(self, turn: Turn) -> Updates:
        """The models there are now, to go on with: opening the page anew would lose the conversation."""
        try:
            names = await self.backend.models(refresh=True)
        except ApiError:
            return {}
        if names and turn.model not in names:
            turn.notice = page_errors.GONE
        chosen = turn.model if turn.model in names else next(iter(names), None)
        return {self.widgets.model: gr.Dropdown(choices=names, value=chosen)}

    def _options(self, values: Values) -> dict[str, Any]:
        w = self.widgets
        return {
            "temperature": float(values[w.temperature] or 0),
            "top_p": float(values[w.top_p] or 1),
            "max_new_tokens": int(values[w.max_tokens] or 512),
        }

    def _extra(self) -> dict[str, Any]:
        return self.settings.extra_options

    def _buttons(self, conversation: Conversation, running: bool = False) -> Updates:
        """What can be pressed now."""
        w, last = self.widgets, conversation.last
        idle = last is not None and not running
        votes = {"up": w.up, "down": w.down, "flag": w.flag}
        can_vote = idle and last.counts
        return {
            w.send: gr.Button(visible=not running),
            w.stop: gr.Button(visible=running),
            w.regenerate: gr.Button(interactive=idle),
            w.edit: gr.Button(interactive=idle),
            w.clear: gr.Button(interactive=idle),
            **{
                button: gr.Button(
                    interactive=can_vote and kind not in last.votes, visible=self.settings.log is not None
                )
                for kind, button in votes.items()
            },
        }

    # -------------------------------------------------------------------------------------------- around an answer

    async def edit(self, values: Values, request: gr.Request) -> Updates:
        """Take the last question back into the box, with its files and their options."""
        w = self.widgets
        conversation: Conversation = values[w.conversation]
        if conversation.last is None or self._is_running(request):
            return {w.notice: gr.skip()}
        turn = conversation.turns.pop()
        options = next((medium.options for medium in turn.media if medium.kind == VIDEO), {})
        return {
            w.conversation: conversation,
            w.chat: conversation.shown(),
            w.question: turn.question,
            w.files: [medium.path for medium in turn.media] or None,
            w.num_frames: options.get("num_frames", 0),
            w.start: options.get("start"),
            w.end: options.get("end"),
            w.notice: notice(""),
            **self._buttons(conversation),
        }

    async def clear(self, request: gr.Request) -> Updates:
        """A new conversation."""
        w, conversation = self.widgets, Conversation()
        self._halt(request)
        return {
            w.conversation: conversation,
            w.chat: [],
            w.question: "",
            w.files: None,
            w.start: None,
            w.end: None,
            w.frames: EMPTY,
            w.notice: notice(""),
            w.status: status(""),
            **self._buttons(conversation),
        }

    async def recorded(self, values: Values) -> Updates:
        """A recording goes to the files of the next question."""
        w = self.widgets
        path = values[w.camera]
        if not path:
            return {w.camera: gr.skip()}
        return {w.camera: None, w.files: [*(values[w.files] or ()), path]}

    async def show_frames(self, values: Values) -> str:
        """The frames that the model will see of the files beside the question, or saw of the last ones."""
        if self._drawing >= _MAX_DRAWING:
            return _alert(page_errors.BUSY_DRAWING)
        self._drawing += 1
        try:
            return await self._frames(values)
        except MediaError as error:
            return _alert(page_errors.bad_media(error))
        except (VideoLlama2Error, ApiError) as error:
            return _alert(page_errors.explain(error).text)
        finally:
            self._drawing -= 1

    async def _frames(self, values: Values) -> str:
        w = self.widgets
        model, conversation = values[w.model], values[w.conversation]
        media = await asyncio.to_thread(self._media, values)
        if not media:
            given = [turn.media for turn in conversation.turns if turn.media and not turn.media_failed]
            media = given[-1] if given else ()
        if not media or not model:
            return EMPTY
        default = await self.backend.num_frames(model)
        thumbnails = self._thumbnails_of(model)
        return "".join([await thumbnails.strip(medium, default) for medium in media])

    def _thumbnails_of(self, model: str) -> Thumbnails:
        reader = self.backend.reader(model)
        return self._thumbnails.setdefault(id(reader), Thumbnails(reader))

    def _voting(self, kind: str) -> Any:
        """The handler of one of the buttons Good, Bad and Flag."""
        w = self.widgets
        button = {"up": w.up, "down": w.down, "flag": w.flag}[kind]

        async def vote(values: Values) -> Updates:
            conversation: Conversation = values[w.conversation]
            last = conversation.last
            if self.settings.log is None or last is None or not last.counts or kind in last.votes:
                return {button: gr.skip()}
            try:
                await asyncio.to_thread(self.settings.log.write, kind, conversation, len(conversation.turns) - 1)
            except (LogFullError, OSError) as error:
                _log.error("a vote was not written: %s", error)
                return {w.notice: notice("The vote could not be saved. The operator finds the reason in the log.")}
            last.votes.add(kind)
            thanks = "Thank you: the answer was flagged." if kind == "flag" else "Thank you for the vote."
            return {button: gr.Button(interactive=False), w.notice: notice(thanks, "done")}

        return vote


def _conclude(turn: Turn, stopped: bool) -> None:
    """Say how an answer ended that did not fail."""
    turn.outcome = "stopped" if stopped else "done"
    if stopped:
        turn.notice = "Stopped." if turn.answer.strip() else "Stopped before the first word."
    elif not turn.answer.strip():
        turn.notice = page_errors.EMPTY_ANSWER


def notice(text: str, kind: str = "failed") -> gr.HTML:
    """The line above the conversation; an empty text hides it."""
    role = "alert" if kind == "failed" else "status"
    return gr.HTML(f'<div class="vl-note vl-{kind}" role="{role}">{escape(text)}</div>', visible=bool(text))


def _alert(text: str) -> str:
    return f'<div class="vl-note vl-failed" role="alert">{escape(text)}</div>'


def status(text: str) -> str:
    """What a screen reader says about the answer; drawn, it would only repeat what is seen."""
    return f'<div class="vl-unseen" role="status">{escape(text)}</div>'
