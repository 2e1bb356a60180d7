"""Stores conversations outside the server: in the visitor's browser, to survive a reload, and as a file to download.

A conversation that comes back from a browser may have been changed there. It is accepted only in the form that
:func:`to_kept` writes, and only with media that this page serves anyway: examples, and uploads that still exist.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from videollama2.media.kinds import KINDS
from videollama2.serve.page.conversation import Conversation, Medium, Turn

MAX_KEPT_BYTES = 256 << 10
"""Maximum size of a kept conversation. Of a longer one, only the last turns that fit are kept."""

_OUTCOMES = ("done", "stopped", "failed")
_OPTIONS: dict[str, tuple[type, ...]] = {
    "num_frames": (int,),
    "start": (int, float),
    "end": (int, float),
    "use_audio": (bool,),
    "of_video": (bool,),
}


def to_kept(conversation: Conversation) -> str:
    """Return the conversation's finished turns as JSON of at most :data:`MAX_KEPT_BYTES`.

    The text is never empty, also without a turn: a browser does not store an empty text, and would keep the old one.
    """
    kept: list[str] = []
    size = 0
    # From the last turn backwards, turns are kept until the size is used up.
    for turn in reversed([turn for turn in conversation.turns if turn.outcome]):
        text = json.dumps(_turn_to_json(turn))
        size += len(text) + 1
        if size > MAX_KEPT_BYTES:
            break
        kept.insert(0, text)
    return f'{{"id": {json.dumps(conversation.id)}, "turns": [{",".join(kept)}]}}'


def from_kept(text: object, is_served: Callable[[str], bool]) -> Conversation | None:
    """Return the conversation that :func:`to_kept` wrote, or None if the text is anything else.

    Args:
        text: the text that the browser sent.
        is_served: function that returns whether a path is one that this page shows to its visitors.
    """
    if not isinstance(text, str) or not 0 < len(text) <= 2 * MAX_KEPT_BYTES:
        return None
    try:
        found = json.loads(text)
        turns = [_turn_of_json(turn, is_served) for turn in found["turns"]]
        return Conversation(turns=turns, id=_text(found["id"])[:64])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def transcript(conversation: Conversation) -> str:
    """Return the conversation as Markdown for the visitor to keep. It names the media but does not contain them."""
    lines = ["# Conversation", ""]
    for turn in conversation.turns:
        names = ", ".join(Path(medium.path).name for medium in turn.media)
        asked = f"**Question** ({names}):" if names else "**Question:**"
        lines += [asked, "", turn.question, "", f"**{turn.model or 'Answer'}:**", ""]
        lines += [turn.answer.strip() or "(no answer)", ""]
        if turn.notice:
            lines += [f"*{turn.notice}*", ""]
    return "\n".join(lines)


def served_from(*folders: Path) -> Callable[[str], bool]:
    """Return the rule for :func:`from_kept`: the path must be an existing file below one of these folders."""
    roots = [folder.resolve() for folder in folders]

    def is_served(path: str) -> bool:
        try:
            place = Path(path).resolve()
            return place.is_file() and any(place.is_relative_to(root) for root in roots)
        except (OSError, ValueError):
            return False

    return is_served


def _turn_to_json(turn: Turn) -> dict[str, Any]:
    media = [{"kind": medium.kind, "path": medium.path, "options": medium.options} for medium in turn.media]
    return {
        "question": turn.question,
        "media": media,
        "model": turn.model,
        "answer": turn.answer,
        "outcome": turn.outcome,
        "notice": turn.notice,
        "media_failed": turn.media_failed,
    }


def _turn_of_json(found: Mapping[str, Any], is_served: Callable[[str], bool]) -> Turn:
    """Rebuild a turn; raise one of the errors that :func:`from_kept` catches if the form is another one."""
    if found["outcome"] not in _OUTCOMES:
        raise ValueError("no such outcome")
    media = tuple(_medium_of_json(medium, is_served) for medium in found["media"])
    return Turn(
        question=_text(found["question"]),
        media=media,
        model=_text(found["model"]),
        answer=_text(found["answer"]),
        outcome=found["outcome"],
        notice=_text(found["notice"]),
        media_failed=found["media_failed"] is True,
    )


def _medium_of_json(found: Mapping[str, Any], is_served: Callable[[str], bool]) -> Medium:
    options = {}
    for name, value in found["options"].items():
        # The type is compared and not tested with isinstance, for which True is a number.
        if name not in _OPTIONS or type(value) not in _OPTIONS[name]:
            raise ValueError("no such option")
        options[name] = value
    if found["kind"] not in KINDS or not is_served(_text(found["path"])):
        raise ValueError("no such medium")
    return Medium(found["kind"], found["path"], options)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value
