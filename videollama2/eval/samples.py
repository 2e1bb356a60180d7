"""Defines immutable records of the model's answer to a question, the readings of it, and the verdict of a judge.

:class:`StoredAnswer` is one line of a file in ``answers/``; :class:`Sample` is one line of ``samples.jsonl``. Both are
written by ``to_json`` and read by ``from_json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

MEDIA, FAILED = "media", "failed"
"""Values of ``error_kind``: the medium is missing or unreadable; anything else went wrong."""
MAX_SCORE = 5
"""The highest score of a judge; the lowest is 0."""
UNREADABLE_REPLY = "unreadable reply"
"""The beginning of a verdict's error if the judge gave a reply that cannot be read."""


_OPTIONAL_ANSWER = ("instruction", "finish_reason", "error_kind", "seconds", "note")


@dataclass(frozen=True)
class StoredAnswer:
    """The model's answer to one item.

    Attributes:
        output: the answer, or two answers for an item with two questions, or None if ``error`` says why there is none.
        error: error message, or None.
        instruction: prompt of the model, in the same form as ``output``.
        finish_reason: why generation stopped, in the same form.
        error_kind: :data:`MEDIA` or :data:`FAILED` if there is an error.
        seconds: time from the request to the answer; the times of several requests overlap.
        note: remark about the media, for instance that a video has no sound track, or None.
    """

    id: str
    output: str | list[str] | None
    error: str | None
    instruction: str | list[str] | None = None
    finish_reason: str | list[str] | None = None
    error_kind: str | None = None
    seconds: float | None = None
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that is written; :class:`AnswerStore` adds the hash of the configuration."""
        line = {
            "id": self.id,
            "instruction": self.instruction,
            "output": self.output,
            "finish_reason": self.finish_reason,
            "error": self.error,
            "error_kind": self.error_kind,
            "seconds": self.seconds,
        }
        return line if self.note is None else {**line, "note": self.note}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> StoredAnswer:
        """Build an answer from a line, which must have ``id``, ``output`` and ``error``."""
        optional = {name: raw.get(name) for name in _OPTIONAL_ANSWER}
        return cls(raw["id"], raw["output"], raw["error"], **optional)


@dataclass(frozen=True)
class Reading:
    """The reading of an answer by one protocol.

    Attributes:
        parsed: index of the option or another value that the benchmark reads, or None if nothing could be read.
        guessed: whether ``parsed`` is the protocol's fallback because nothing could be read; None if not known.
        correct: whether the answer is right, or None without an answer or a reference answer.
        value: a number from 0 to 1 for benchmarks that grade answers, for instance by the overlap of two spans.
    """

    parsed: Any = None
    guessed: bool | None = False
    correct: bool | None = None
    value: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the reading as a JSON object, with ``value`` only if there is one."""
        shown = {"parsed": self.parsed, "guessed": self.guessed, "correct": self.correct}
        return shown if self.value is None else {**shown, "value": self.value}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Reading:
        return cls(raw.get("parsed"), raw.get("guessed"), raw.get("correct"), raw.get("value"))


@dataclass(frozen=True)
class Verdict:
    """A judge's verdict on one answer, or the reason why there is none; a failure never counts as a verdict.

    Attributes:
        pred: ``yes`` or ``no``, or None if the rubric asks for a score only.
        score: score from 0 to 5.
        raw: reply of the judge.
        error: why there is no verdict, or None.
    """

    pred: str | None = None
    score: float | None = None
    raw: str | None = None
    error: str | None = None

    @property
    def unanswered(self) -> bool:
        """Whether the judge gave no reply at all, so that asking again may help."""
        return self.error is not None and not self.error.startswith(UNREADABLE_REPLY)

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any] | None) -> Verdict | None:
        return None if raw is None else cls(raw["pred"], raw["score"], raw.get("raw"), raw["error"])


@dataclass(frozen=True)
class Sample:
    """A question with its reference answer, the model's answer, the readings of it and the verdicts on it.

    Attributes:
        group: name of the video; confidence intervals take questions with the same group as dependent.
        answer: reference answer: index of the right option, text, or list of texts; None if it is not public.
        output: answer of the model.
        reading: reading by the protocol that comes first in the results.
        protocols: reading by each protocol, or None if there is only ``reading``.
        breakdowns: further names by which results are broken down, with their values.
        note: remark about the media, see :class:`StoredAnswer`.
        judge: the verdict; with several aspects, the first verdict that failed, else None.
        judges: verdict on each aspect if there are several.
    """

    id: str
    category: str
    group: str
    question: Any
    answer: Any
    output: str | list[str] | None
    reading: Reading = Reading()
    protocols: Mapping[str, Reading] | None = None
    breakdowns: Mapping[str, Any] = field(default_factory=dict)
    instruction: str | list[str] | None = None
    finish_reason: str | list[str] | None = None
    error: str | None = None
    error_kind: str | None = None
    note: str | None = None
    judge: Verdict | None = None
    judges: Mapping[str, Verdict | None] | None = None

    @property
    def parsed(self) -> Any:
        return self.reading.parsed

    def read_by(self, protocol: str) -> Reading:
        """Return the reading by a protocol, or the only reading if the sample does not distinguish protocols."""
        return (self.protocols or {}).get(protocol, self.reading)

    def verdicts(self) -> dict[str, Verdict | None]:
        """Return the verdicts by aspect; a single verdict has the name ``score``."""
        return dict(self.judges) if self.judges is not None else {"score": self.judge} if self.judge else {}

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of the line in ``samples.jsonl``."""
        protocols = self.protocols and {name: each.to_json() for name, each in self.protocols.items()}
        line = {
            "id": self.id,
            "category": self.category,
            "group": self.group,
            "question": self.question,
            "answer": self.answer,
            "instruction": self.instruction,
            "output": self.output,
            **self.reading.to_json(),
            "protocols": protocols,
            **self.breakdowns,
            "finish_reason": self.finish_reason,
            "error": self.error,
            "error_kind": self.error_kind,
            "judge": self.judge and self.judge.to_json(),
        }
        if self.note is not None:
            line["note"] = self.note
        if self.judges is not None:
            line["judges"] = {name: each and each.to_json() for name, each in self.judges.items()}
        return line

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Sample:
        """Build a sample from a line that has ``id``, ``group`` and ``protocols``; unknown names are breakdowns."""
        protocols, judges = raw["protocols"], raw.get("judges")
        return cls(
            id=raw["id"],
            category=str(raw.get("category", "")),
            group=raw["group"],
            **{name: raw.get(name) for name in _OPTIONAL},
            reading=Reading.from_json(raw),
            protocols=protocols and {name: Reading.from_json(each) for name, each in protocols.items()},
            breakdowns={name: value for name, value in raw.items() if name not in _WRITTEN},
            judge=Verdict.from_json(raw.get("judge")),
            judges=None if judges is None else {name: Verdict.from_json(each) for name, each in judges.items()},
        )


_OPTIONAL = ("question", "answer", "output", "instruction", "finish_reason", "error", "error_kind", "note")
_READ = ("parsed", "guessed", "correct", "value", "protocols", "judge", "judges")
_WRITTEN = frozenset(("id", "category", "group", *_OPTIONAL, *_READ))
