"""Counts what an evaluation covers: the questions that are asked, and the videos with material beside them.

A report shows both, because a number about a part of the questions is not the benchmark's number.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class QuestionCount:
    """The number of questions of an evaluation: ``asked`` of the ``total`` in its files, after skipping ``offset``.

    ``official`` is the number of questions of the complete benchmark, or None if it is not known.
    """

    asked: int
    total: int
    offset: int = 0
    official: int | None = None

    def part(self) -> str:
        """Describe which part of the benchmark is asked; the text is empty for the whole benchmark."""
        whole = max(self.total, self.official or 0)
        if self.asked == whole:
            return ""
        began = f", after the first {self.offset:,}" if self.offset else ""
        return f"{self.asked:,} of {whole:,} questions{began}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Supplement:
    """Material in prompts beside video and question, such as subtitles, which exists for ``found`` of ``of`` videos.

    Attributes:
        wanted: whether this evaluation uses it.
        usual: share of the videos for which the complete benchmark has it.
    """

    name: str
    found: int
    of: int
    wanted: bool = True
    usual: float = 1.0

    @property
    def is_short(self) -> bool:
        """Whether it exists for fewer videos than in the complete benchmark."""
        return self.found < round(self.usual * self.of)

    def text(self) -> str:
        return f"{self.name} for {self.found:,} of {self.of:,} videos"

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "found": self.found, "of": self.of}
