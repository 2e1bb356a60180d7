"""Makes a page about an evaluation: questions, the frames that the model saw, its answers and their readings.

The page is one HTML file that can be opened from the disk. It contains its data as JSON and loads nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from videollama2.eval.items import PROTOCOLS, PUBLISHED
from videollama2.eval.samples import Sample

TEMPLATE = Path(__file__).resolve().parents[2] / "assets" / "eval_show.html"


@dataclass(frozen=True)
class ShownFrame:
    """A small picture (JPEG in base64) of a frame, and its time in seconds."""

    time: float
    jpeg: str


@dataclass(frozen=True)
class ShownQuestion:
    """The part of a question that is the same in every evaluation. ``clip`` is the name of its frames."""

    id: str
    category: str
    question: Any
    answer: Any
    options: Sequence[str] = ()
    media: str = ""
    clip: str = ""


@dataclass(frozen=True)
class ShownRun:
    """One evaluation: its name, a line about it, and its samples by id."""

    name: str
    about: str
    samples: Mapping[str, Sample]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "about": self.about,
            "answers": {name: _answer(each) for name, each in self.samples.items()},
        }


@dataclass(frozen=True)
class Page:
    """The content of the page.

    Attributes:
        total: number of all questions, of which ``questions`` are shown.
        clips: frames by the names that the questions' ``clip`` gives.
        category, protocol: initial choices on the page; an empty category means all.
        note: a line below the title.
    """

    title: str
    runs: Sequence[ShownRun]
    questions: Sequence[ShownQuestion]
    total: int
    clips: Mapping[str, Sequence[ShownFrame]] = field(default_factory=dict)
    category: str = ""
    protocol: str = PUBLISHED
    note: str = ""

    def to_html(self) -> str:
        """Return the content of the HTML file."""
        shown = {question.id for question in self.questions}
        runs = [
            ShownRun(run.name, run.about, {k: v for k, v in run.samples.items() if k in shown}) for run in self.runs
        ]
        data = {
            "title": self.title,
            "runs": [run.to_json() for run in runs],
            "questions": [asdict(question) for question in self.questions],
            "total": self.total,
            "clips": {name: [asdict(frame) for frame in frames] for name, frames in self.clips.items()},
            "category": self.category,
            "protocol": self.protocol,
            "protocols": list(PROTOCOLS),
            "note": self.note,
        }
        # "</script>" or "<!--" in an answer must not end the page's script.
        text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
        return TEMPLATE.read_text(encoding="utf-8").replace("/*DATA*/", text.replace("\u2028", "\\u2028"), 1)


def _answer(sample: Sample) -> dict[str, Any]:
    readings = {name: each.to_json() for name, each in (sample.protocols or {}).items()}
    verdicts = {name: each and each.to_json() for name, each in sample.verdicts().items()}
    return {
        "output": sample.output,
        "instruction": sample.instruction,
        "error": sample.error,
        "reading": sample.reading.to_json(),
        "readings": {} if verdicts else readings,
        "verdicts": verdicts,
    }
