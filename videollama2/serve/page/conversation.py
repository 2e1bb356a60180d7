"""A conversation of the web page: questions with their media, answers, and what became of each.

No model, no Gradio: the page shows it, a back end answers it, the log of votes writes it down.
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
    """One image or video as it was given.

    Attributes:
        kind: ``image`` or ``video``.
        path: the uploaded file.
        options: how a video is read: ``num_frames``, ``start``, ``end``; those that were not given are left out.
    """

    kind: str
    path: str
    options: dict[str, Any] = field(default_factory=dict)

    def part(self) -> dict[str, Any]:
        """As a part of a message, which the engine takes as it is."""
        return {"type": self.kind, "path": self.path, **self.options}


@dataclass
class Turn:
    """One question and its answer.

    Attributes:
        outcome: ``""`` while it is being answered, then ``done``, ``stopped`` or ``failed``.
        notice: what to tell beside the answer: why it failed or that it was stopped.
        media_failed: a medium was at fault, so it is not carried over to the next question.
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
        """Whether later questions are asked with this turn before them."""
        return self.outcome in ("done", "stopped") and bool(self.answer.strip())


@dataclass
class Conversation:
    """Turns in their order. At most the last one can be unanswered.

    Attributes:
        id: made with the first turn, as Gradio gives every visitor a copy of one empty conversation.
        answered: answers that ended, in whatever way, those that were replaced since included.
    """

    turns: list[Turn] = field(default_factory=list)
    id: str = ""
    answered: int = 0

    @property
    def last(self) -> Turn | None:
        return self.turns[-1] if self.turns else None

    def begin(self, question: str, media: tuple[Medium, ...]) -> Turn:
        """A new turn. One before it that got no answer is replaced; its media go along where none are given anew."""
        self.id = self.id or uuid4().hex
        if self.last is not None and not self.last.counts:
            failed = self.turns.pop()
            if not media and not failed.media_failed:
                media = failed.media
        self.turns.append(Turn(question, media))
        return self.turns[-1]

    def again(self) -> Turn:
        """The last question as a turn without an answer."""
        old = self.turns.pop()
        self.turns.append(Turn(old.question, old.media))
        return self.turns[-1]

    def messages(self, upto: int | None = None, with_answers: bool = False) -> list[dict[str, Any]]:
        """OpenAI's form, with media as parts that hold a ``path`` in the turn where they were given.

        Args:
            upto: number of turns; None: all.
            with_answers: also the answer of the last one.
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
        """As Gradio's Chatbot takes it."""
        messages: list[dict[str, Any]] = []
        for turn in self.turns:
            # A player that cannot play would be an empty box.
            files = [_name(medium) if turn.media_failed else {"path": medium.path} for medium in turn.media]
            messages.append({"role": "user", "content": [*files, {"type": "text", "text": literal(turn.question)}]})
            # Without content, the Chatbot draws the three dots of somebody who writes.
            answer = turn.answer.strip()
            if answer:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
            if turn.notice:
                # On one line: behind an empty one, Markdown would be looked for again.
                words = escape(" ".join(turn.notice.split()))
                note = f'<div class="vl-note vl-{turn.outcome}" role="status">{words}</div>'
                messages.append({"role": "assistant", "content": [{"type": "text", "text": note}]})
        return messages


_MARKUP = re.compile(r"[\\`*_\[\]<>&#|~$]|^\s*([-+]|\d+[.)])\s|\n\s*\n|://|www\.", re.MULTILINE)


def literal(text: str) -> str:
    """Markdown that is drawn as ``text`` stands: a question is no place for headings, links or pictures."""
    if not _MARKUP.search(text):
        return text
    # Inside a block of HTML, Markdown looks for nothing until an empty line.
    return f'<div class="vl-literal">{escape(text).replace(chr(10), "<br>")}</div>'


def _name(medium: Medium) -> dict[str, str]:
    return {"type": "text", "text": f"`{Path(medium.path).name.replace('`', '')}`"}
