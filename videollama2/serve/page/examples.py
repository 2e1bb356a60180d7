"""Lists the bundled questions that the page offers before the first one of the visitor's own."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from gradio.components.chatbot import ExampleMessage

from videollama2.media.kinds import AUDIO, IMAGE, SEEN, VIDEO

DEMO = Path(__file__).resolve().parents[2] / "assets" / "demo"

_ROWS = ((0, VIDEO), (3, VIDEO), (6, IMAGE))
"""Rows of the bundled questions that serve as examples, and the kind of medium that each one is about."""

_HEARD = DEMO / "sounding_shapes.mp4", "What made the noise?"
"""The example for models that hear: a video whose sound is needed for the answer."""


@dataclass(frozen=True)
class Example:
    """A bundled file, a question about it, and the kind of medium that a model must take to answer it."""

    path: Path
    question: str
    kind: str


def examples(kinds: Collection[str] = SEEN) -> list[Example]:
    """Return the examples that a model can answer which takes these kinds of media."""
    rows = json.loads((DEMO / "questions.json").read_text(encoding="utf-8"))
    found = [Example(DEMO / rows[row]["file"], rows[row]["question"], kind) for row, kind in _ROWS]
    return [example for example in (*found, Example(*_HEARD, AUDIO)) if example.kind in kinds]


def shown_examples(kinds: Collection[str] = SEEN) -> list[ExampleMessage]:
    """Return :func:`examples` in the form that :class:`gradio.Chatbot` takes, and in which it replaces the paths."""
    return [{"text": each.question, "files": [str(each.path)]} for each in examples(kinds)]
