"""What becomes of a question, as frozen data: the model's answer, how it was read, what a judge said about it.

:class:`StoredAnswer` is one line below ``answers/``; :class:`Sample` is one line of ``samples.jsonl``. Both are written
by ``to_json`` and read by ``from_json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

MEDIA, FAILED = "media", "failed"
"""Values of ``error_kind``: the medium is missing or unreadable; anything else went wrong."""
MAX_SCORE = 5
"""A judge's scores go from 0 to this."""
UNREADABLE = "unreadable reply"
"""How the error of a verdict begins where the judge did reply."""


@dataclass(frozen=True)
class StoredAnswer:
    """The model's answer to one item.

    Attributes:
        output: text; two texts where the item asks two questions; None where ``error`` says why there is none.
        instruction: what the model was asked, in the same form as ``output``.
        finish_reason: why generation stopped, in the same form.
        seconds: from the request to the answer; requests overlap.
    """

    id: str
    output: str | list[str] | None
    error: str | None
    instruction: str | list[str] | None = None
    finish_reason: str | list[str] | None = None
    error_kind: str | None = None
    seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The object that is written, without the hash of the configuration."""
        return {
            "id": self.id,
            "instruction": self.instruction,
            "output": self.output,
            "finish_reason": self.finish_reason,
            "error": self.error,
            "error_kind": self.error_kind,
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> StoredAnswer:
        """Of a line; ``id``, ``output`` and ``error`` must be there."""
        optional = {name: raw.get(name) for name in ("instruction", "finish_reason", "error_kind", "seconds")}
        return cls(raw["id"], raw["output"], raw["error"], **optional)


@dataclass(frozen=True)
class Reading:
    """What one protocol reads in an answer.

    Attributes:
        parsed: index of the option, or whatever else the benchmark reads; None where nothing could be read.
        guessed: the protocol put ``parsed`` there because nothing could be read; None where that is not known.
        correct: None where there is no reference answer, or no answer.
        value: for benchmarks that do not know right and wrong alone (the overlap of two spans): a number from 0 to 1.
    """

    parsed: Any = None
    guessed: bool | None = False
    correct: bool | None = None
    value: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As it is written; ``value`` only where there is one."""
        shown = {"parsed": self.parsed, "guessed": self.guessed, "correct": self.correct}
        return shown if self.value is None else {**shown, "value": self.value}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Reading:
        return cls(raw.get("parsed"), raw.get("guessed"), raw.get("correct"), raw.get("value"))


@dataclass(frozen=True)
class Verdict:
    """What a judge says about one answer. A failure is never a verdict: then ``error`` says why there is none.

    Attributes:
        pred: ``yes`` or ``no``; None where the rubric asks for a score alone.
        score: 0 to 5.
        raw: the judge's reply.
    """

    pred: str | None = None
    score: float | None = None
    raw: str | None = None
    error: str | None = None

    @property
    def unanswered(self) -> bool:
        """The judge gave no reply at all, so that asking again may help."""
        return self.error is not None and not self.error.startswith(UNREADABLE)

    def to_json(self) -> dict[str, Any]:
        """As it is written."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any] | None) -> Verdict | None:
        return None if raw is None else cls(raw["pred"], raw["score"], raw.get("raw"), raw["error"])


@dataclass(frozen=True)
class Sample:
    """A question with its reference, the model's answer and what came of it.

    Attributes:
        group: the video, for intervals that know that its questions belong together.
        answer: the reference: index of the right option, text, or list of texts; None where it is not public.
        reading: by the protocol that stands first in the results.
        protocols: the reading of each protocol; None where there is only ``reading``.
        breakdowns: further names that results are broken down by, with their values.
        judge: the verdict; with several aspects the first one that failed, else None.
        judges: verdict of each aspect, where there are several.
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
    judge: Verdict | None = None
    judges: Mapping[str, Verdict | None] | None = None

    @property
    def parsed(self) -> Any:
        return self.reading.parsed

    def read_by(self, protocol: str) -> Reading:
        """The reading of a protocol; the only one there is where none is told apart."""
        return (self.protocols or {}).get(protocol, self.reading)

    def verdicts(self) -> dict[str, Verdict | None]:
        """Verdicts by aspect; a single one is called ``score``."""
        return dict(self.judges) if self.judges is not None else {"score": self.judge} if self.judge else {}

    def to_json(self) -> dict[str, Any]:
        """The line of ``samples.jsonl``."""
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
        if self.judges is not None:
            line["judges"] = {name: each and each.to_json() for name, each in self.judges.items()}
        return line

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Sample:
        """Of a line; ``id``, ``group`` and ``protocols`` must be there. Names that are unknown are breakdowns."""
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


_OPTIONAL = ("question", "answer", "output", "instruction", "finish_reason", "error", "error_kind")
_READ = ("parsed", "guessed", "correct", "value", "protocols", "judge", "judges")
_WRITTEN = frozenset(("id", "category", "group", *_OPTIONAL, *_READ))
