"""Handles the buttons Good, Bad and Flag."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import gradio as gr

from videollama2.serve.page.conversation import Conversation
from videollama2.serve.page.frames import Values
from videollama2.serve.page.layout import Widgets
from videollama2.serve.page.notices import notice
from videollama2.serve.page.votes import LogFullError, VoteLog

_log = logging.getLogger(__name__)


def vote_handler(kind: str, widgets: Widgets, log: VoteLog | None) -> Callable[[Values], Awaitable[dict[Any, Any]]]:
    """Return the handler of one button. A visitor can give one vote of each kind on the last answer.

    Args:
        kind: ``up``, ``down`` or ``flag``.
        log: log that takes the votes; None takes none.
    """
    button = {"up": widgets.up, "down": widgets.down, "flag": widgets.flag}[kind]

    async def vote(values: Values) -> dict[Any, Any]:
        conversation: Conversation = values[widgets.conversation]
        last = conversation.last
        if log is None or last is None or not last.counts or kind in last.votes:
            return {button: gr.skip()}
        try:
            await asyncio.to_thread(log.write, kind, conversation, len(conversation.turns) - 1)
        except (LogFullError, OSError) as error:
            _log.error("a vote was not written: %s", error)
            return {widgets.notice: notice("The vote could not be saved. The operator finds the reason in the log.")}
        last.votes.add(kind)
        thanks = "Thank you: the answer was flagged." if kind == "flag" else "Thank you for the vote."
        return {button: gr.Button(interactive=False), widgets.notice: notice(thanks, "done")}

    return vote
