"""Generates the answers of one or two models to the same question side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from videollama2.serve.page import errors as page_errors
from videollama2.serve.page.backends import PageBackend
from videollama2.serve.page.conversation import Conversation, Turn
from videollama2.serve.page.pacing import paced


@dataclass(frozen=True, eq=False)
class Lane:
    """One conversation together with the model that answers its last turn.

    Attributes:
        state: the widget that holds the conversation between two events.
        chat: the widget that shows it.
    """

    conversation: Conversation
    model: str
    state: Any
    chat: Any

    @property
    def turn(self) -> Turn:
        return self.conversation.turns[-1]

    def messages(self) -> list[dict[str, Any]]:
        """Return the messages to send, beginning with the system text of the last turn."""
        system = self.turn.options.get("system")
        head = [{"role": "system", "content": system}] if system else []
        return [*head, *self.conversation.messages()]


async def answer_together(
    backend: PageBackend, lanes: Sequence[Lane], options: Mapping[str, Any], stop: asyncio.Event
) -> AsyncGenerator[Lane, None]:
    """Answer the last turn of every lane concurrently; yield a lane whenever more of its answer can be drawn.

    A model that fails ends only its own lane; the turn's ``outcome`` and ``notice`` say what happened.

    Args:
        options: options of the requests, the same for all models.
        stop: event that ends all answers when it is set.
    """
    # Each lane is answered by a task, which records the new text and sets the event. The loop below wakes up, takes all
    # lanes that have grown and yields them. Text that arrives while a lane is drawn is drawn with the next wake-up.
    grown: set[Lane] = set()
    changed = asyncio.Event()

    async def answer(lane: Lane) -> None:
        try:
            pieces = backend.stream(lane.model, lane.messages(), options)
            async with aclosing(paced(pieces, stop)) as texts:
                async for text in texts:
                    lane.turn.answer = text
                    grown.add(lane)
                    changed.set()
            _conclude(lane.turn, stop.is_set())
        except Exception as error:  # noqa: BLE001 - the visitor must get a message, whatever the error is
            explained = page_errors.explain(error)
            lane.turn.outcome, lane.turn.notice = "failed", explained.text
            lane.turn.media_failed = explained.media_failed
        finally:
            changed.set()

    answering = [asyncio.create_task(answer(lane)) for lane in lanes]
    try:
        # A task sets the event in its last step, so when this loop wakes up, that task is done.
        while grown or not all(task.done() for task in answering):
            await changed.wait()
            changed.clear()
            ready = list(grown)
            grown.clear()
            for lane in ready:
                yield lane
    finally:
        for task in answering:
            task.cancel()
        await asyncio.gather(*answering, return_exceptions=True)


def _conclude(turn: Turn, stopped: bool) -> None:
    """Set the outcome of a turn whose answer ended without an error."""
    turn.outcome = "stopped" if stopped else "done"
    if stopped:
        turn.notice = "Stopped." if turn.answer.strip() else "Stopped before the first word."
    elif not turn.answer.strip():
        turn.notice = page_errors.EMPTY_ANSWER
