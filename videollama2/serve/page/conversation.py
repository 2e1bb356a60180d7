"""Holds a conversation on the web page: the questions with their media, the answers, and the outcome of each.

It depends on neither a model nor Gradio: the page displays it, a back end answers it, and the vote log records it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any
from uuid import uuid4


@dataclass(frozen=True)
class Medium:
    """One image, video or sound that a visitor uploaded.

    Attributes:
        kind: ``image``, ``video`` or ``audio``; a video that is only heard is ``audio``.
        path: the uploaded file.
        options: how to read it, each only if the visitor gave it: ``num_frames``, ``start``, ``end``, ``use_audio`` of
            a video, ``start``, ``end``, ``of_video`` of a sound.
    """

    kind: str
    path: str
    options: dict[str, Any] = field(default_factory=dict)

    def part(self) -> dict[str, Any]:
        """Return the medium as a part of a message, in the form that the engine takes."""
        return {"type": self.kind, "path": self.path, **self.options}


@dataclass
class Turn:
    """One question and its answer.

    Attributes:
        outcome: ``""`` while the question is being answered, then ``done``, ``stopped`` or ``failed``.
        notice: text shown beside the answer: why it failed, or that it was stopped.
        media_failed: whether a medium caused the failure; it is then not carried over to the next question.
        votes: kinds of votes given on this answer.
    """

    question: str
    media: tuple[Medium, ...] = ()
    model: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    answer: str = ""
    outcome: str = ""
    notice: str = ""
    media_failed: bool = False
    votes: set[str] = field(default_factory=set)

    @property
    def counts(self) -> bool:
        """Whether this turn is part of the history of later questions."""
        return self.outcome in ("done", "stopped") and bool(self.answer.strip())


@dataclass
class Conversation:
    """The turns of a conversation in order. Only the last one can be unanswered.

    Attributes:
        id: created with the first turn, since Gradio gives every visitor a copy of the same empty conversation.
        answered: number of answers that ended in any way, including those that were replaced later.
    """

    turns: list[Turn] = field(default_factory=list)
    id: str = ""
    answered: int = 0

    @property
    def last(self) -> Turn | None:
        return self.turns[-1] if self.turns else None

    def begin(self, question: str, media: tuple[Medium, ...]) -> Turn:
        """Start a turn. It replaces a preceding turn without an answer, whose media it takes over if it has none."""
        self.id = self.id or uuid4().hex
        if self.last is not None and not self.last.counts:
            failed = self.turns.pop()
            if not media and not failed.media_failed:
                media = failed.media
        self.turns.append(Turn(question, media))
        return self.turns[-1]

    def again(self) -> Turn:
        """Return the last question as a turn without an answer."""
        old = self.turns.pop()
        self.turns.append(Turn(old.question, old.media))
        return self.turns[-1]

    def messages(self, upto: int | None = None, with_answers: bool = False) -> list[dict[str, Any]]:
        """Return the conversation in OpenAI's form; media are parts with a ``path`` in the turn that introduced them.

        Args:
            upto: number of turns to include; None for all.
            with_answers: whether to include the answer of the last turn.
        """
        turns = self.turns[:upto]
        messages: list[dict[str, Any]] = []
        for number, turn in enumerate(turns):
            is_last = number == len(turns) - 1
            if not turn.counts and not is_last:
                continue
            parts = [medium.part() for medium in turn.media]
            messages.append({"role": "user", "content": [*parts, {"type": "text", "text": turn.question}]})
            if not is_last or with_answers:
                messages.append({"role": "assistant", "content": turn.answer})
        return messages

    def shown(self) -> list[dict[str, Any]]:
        """Return the conversation in the form that Gradio's Chatbot takes."""
        messages: list[dict[str, Any]] = []
        for turn in self.turns:
            # A player for a file that cannot be played would be an empty box, so the file is named instead.
            files = [_name(medium) if turn.media_failed else {"path": medium.path} for medium in turn.media]
            messages.append({"role": "user", "content": [*files, {"type": "text", "text": literal(turn.question)}]})
            # For a message without content, the Chatbot draws the three dots of a reply being typed.
            answer = turn.answer.strip()
            if answer:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
            if turn.notice:
                # The notice must be on one line: after an empty line, Markdown would be parsed again.
                words = escape(" ".join(turn.notice.split()))
                note = f'<div class="vl-note vl-{turn.outcome}" role="status">{words}</div>'
                messages.append({"role": "assistant", "content": [{"type": "text", "text": note}]})
        return messages


_MARKUP = re.compile(r"[\\`*_\[\]<>&#|~$]|^\s*([-+]|\d+[.)])\s|\n\s*\n|://|www\.", re.MULTILINE)


def literal(text: str) -> str:
    """Return Markdown that displays ``text`` literally, so that a question cannot add headings, links or pictures."""
    if not _MARKUP.search(text):
        return text
    # Markdown is not parsed inside an HTML block, which extends to the next empty line.
    return f'<div class="vl-literal">{escape(text).replace(chr(10), "<br>")}</div>'


def _name(medium: Medium) -> dict[str, str]:
    return {"type": "text", "text": f"`{Path(medium.path).name.replace('`', '')}`"}
