"""What a benchmark is: items to ask, how an answer is read, what counts as right.

A stored answer ("row", one JSON line) holds::

    {"id", "category", "group", "question", "answer", "output": text (two texts where an item asks two questions),
     "parsed", "guessed", "correct": bool | None, "protocols": {name: {"parsed", "guessed", "correct"}},
     "error": str | None, "error_kind": "media" | "failed" | None,
     (what ``Benchmark.breakdowns`` names),
     "judge": {"pred", "score", "error", ...} | None, "judges": {aspect: the same} where there are several aspects}

``correct`` is None where there is no answer to compare with, or none was given. With several aspects ``judge`` is the
first verdict that failed, else None.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videollama2.errors import ConfigError

Row = dict[str, Any]

PUBLISHED, STRICT = "published", "strict"
PROTOCOLS = (PUBLISHED, STRICT)
"""``published``: prompt, parser and fallback of the published code. ``strict``: the same prompt, word boundaries, and
what cannot be read is wrong and counted."""

MAX_NEW_TOKENS = 2048
"""Published for every benchmark."""


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        media: path relative to the data folder.
        kind: ``video`` or ``image``.
        start, end: bounds of the clip in seconds; None leaves that side open.
        instruction: the exact text for the model; two texts are asked independently and judged together.
        answer: index of the right option, text, or list of texts; None where it is not public.
        category: what results are broken down by.
        group: the video, for intervals that know its questions belong together.
        extra: what the benchmark itself needs later.
    """

    id: str
    media: str
    kind: str
    start: float | None
    end: float | None
    question: Any
    instruction: str | tuple[str, ...]
    answer: Any = None
    options: tuple[str, ...] = ()
    category: str = ""
    group: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def clip(self) -> tuple[str, str, float | None, float | None]:
        """What is decoded: items with the same clip share it."""
        return self.kind, self.media, self.start, self.end

    @property
    def instructions(self) -> tuple[str, ...]:
        return (self.instruction,) if isinstance(self.instruction, str) else self.instruction


@dataclass(frozen=True)
class Parsed:
    """What was read from an answer: an option's index, or None. ``guessed``: nothing could be read and the protocol
    puts this value in its place."""

    value: int | None
    guessed: bool = False


@dataclass(frozen=True)
class Aspect:
    """One thing a judge grades: ``name`` as in the paper's tables, the rubric, and the categories of the rows that it
    is about (empty: all)."""

    name: str
    rubric: str
    categories: tuple[str, ...] = ()

    def concerns(self, row: Row) -> bool:
        return not self.categories or row["category"] in self.categories


class Benchmark(ABC):
    """One benchmark. A third party adds one by an entry point of the group ``videollama2.benchmarks`` that names a
    subclass, or an instance.

    Attributes:
        name: on the command line and in results.
        title: for people.
        folder: its usual data folder under ``eval/``.
        version: raised when items or prompts change; part of what tells runs apart.
        source: where the data come from.
        layout: the files in the data folder, as text.
        aspects: what a judge grades; empty for multiple choice.
        breakdowns: names in ``Item.extra`` that results are also broken down by.
    """

    name: str
    title: str
    folder: str
    version: int = 1
    source: str = ""
    layout: str = ""
    aspects: tuple[Aspect, ...] = ()
    breakdowns: tuple[str, ...] = ()
    max_new_tokens: int = MAX_NEW_TOKENS

    @abstractmethod
    def load(self, data: Path) -> list[Item]:
        """Every item, in the order of the annotation files.

        Raises:
            DataError: an annotation file is missing or breaks its format; names file, index and field.
        """

    def configure(self, **options: Any) -> Benchmark:
        """This benchmark with options of its own (VideoMME: ``subtitles``; Perception Test: ``split``;
        moving_shapes: ``prompt``).

        Raises:
            ConfigError: it has no such option.
        """
        given = sorted(name for name, value in options.items() if value is not None)
        if given:
            raise ConfigError(f"benchmark {self.name} has no option {', '.join(given)}")
        return self

    def settings(self) -> dict[str, Any]:
        """Options that change what is asked, for the results."""
        return {}

    def instructions(self, item: Item, data: Path, num_frames: int) -> tuple[str, ...]:
        """The texts for the model. Called when the item's turn comes, so it may open files beside the video."""
        return item.instructions

    def texts(self, items: Sequence[Item], data: Path) -> list[Path]:
        """Files beside the videos whose content gets into :meth:`instructions`. With others, answers are not reused."""
        return []

    def parse(self, item: Item, output: str, protocol: str) -> Parsed | None:
        """Read an answer; None where answers are judged, not read."""
        return None

    def write_submission(self, items: Sequence[Item], rows: Sequence[Row], folder: Path) -> list[Path]:
        """Write the files that the benchmark's server or official scorer takes; returns them."""
        return []
