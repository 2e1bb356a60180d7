"""What a benchmark is: items to ask, how an answer is read, what counts as right."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from videollama2.errors import ConfigError
from videollama2.eval.samples import Reading, Sample

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
        group: the video, for intervals that know that its questions belong together.
        extra: what the benchmark itself needs later.
        others: kind and path of further media, shown after the first one.
        shuffled: the model is shown the clip's frames in another order, drawn from the file's name.
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
    others: tuple[tuple[str, str], ...] = ()
    shuffled: bool = False

    @property
    def clip(self) -> tuple[Any, ...]:
        """What is decoded: items with the same clip share it."""
        return self.kind, self.media, self.start, self.end, *self.others

    @property
    def all_media(self) -> tuple[tuple[str, str], ...]:
        """Kind and path of every medium, in the order in which they are shown."""
        return ((self.kind, self.media), *self.others)

    @property
    def instructions(self) -> tuple[str, ...]:
        return (self.instruction,) if isinstance(self.instruction, str) else self.instruction


@dataclass(frozen=True)
class Parsed:
    """What was read from an answer: an option's index (or what else the benchmark reads), or None. ``guessed``: nothing
    could be read and the protocol puts this value in its place."""

    value: Any
    guessed: bool = False


@dataclass(frozen=True)
class Questions:
    """How many questions an evaluation asks: ``asked`` of the ``total`` in its files, after leaving ``offset`` out.

    ``official``: how many the benchmark has where it is whole; None where that is not told.
    """

    asked: int
    total: int
    offset: int = 0
    official: int | None = None

    def part(self) -> str:
        """Which part of the benchmark this is; empty where it is all of it."""
        whole = max(self.total, self.official or 0)
        if self.asked == whole:
            return ""
        began = f", after the first {self.offset:,}" if self.offset else ""
        return f"{self.asked:,} of {whole:,} questions{began}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Supplement:
    """Something that prompts hold beside video and question, such as subtitles: there for ``found`` of ``of`` videos.

    Attributes:
        wanted: this evaluation uses it.
        usual: the share of the videos for which the benchmark has it.
    """

    name: str
    found: int
    of: int
    wanted: bool = True
    usual: float = 1.0

    @property
    def is_short(self) -> bool:
        """There is less than the benchmark has."""
        return self.found < round(self.usual * self.of)

    def text(self) -> str:
        return f"{self.name} for {self.found:,} of {self.of:,} videos"

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "found": self.found, "of": self.of}


def right(reading: Reading) -> float | None:
    """1 for a right answer, 0 for a wrong one."""
    return None if reading.correct is None else float(reading.correct)


@dataclass(frozen=True)
class Measure:
    """One number about readings: the mean of ``value`` over the samples it ``concerns``, times 100.

    Attributes:
        value: 0 to 1; None where a reading has no verdict.
        proportion: the values are 0 and 1 alone, so that their interval is one of a proportion.
    """

    name: str = "accuracy"
    value: Callable[[Reading], float | None] = right
    proportion: bool = True
    concerns: Callable[[Sample], bool] = lambda sample: True


@dataclass(frozen=True)
class Aspect:
    """One thing a judge grades: ``name`` as in the paper's tables, the rubric, and the categories of the questions that
    it is about (empty: all)."""

    name: str
    rubric: str
    categories: tuple[str, ...] = ()

    def concerns(self, sample: Sample) -> bool:
        return not self.categories or sample.category in self.categories


class Benchmark(ABC):
    """One benchmark. A third party adds one by an entry point of the group ``videollama2.benchmarks`` that names a
    subclass, or an instance.

    Attributes:
        name: on the command line and in results.
        title: for people.
        folder: its usual data folder under ``eval/``.
        version: raised when items or prompts change; part of what tells runs apart.
        source: where the data come from.
        questions: how many there are where the benchmark is whole; None where its splits differ.
        layout: the files in the data folder, as text.
        annotations: patterns of the annotation files among them, ours and the hub's, for ``eval prepare``.
        has_subtitles: videos may have subtitles, in files of their name.
        aspects: what a judge grades; empty where answers are read.
        measures: the numbers about answers that are read.
        breakdowns: names in ``Item.extra`` that results are also broken down by.
    """

    name: str
    title: str
    folder: str
    version: int = 1
    source: str = ""
    questions: int | None = None
    layout: str = ""
    annotations: tuple[str, ...] = ()
    has_subtitles: bool = False
    aspects: tuple[Aspect, ...] = ()
    measures: tuple[Measure, ...] = (Measure(),)
    breakdowns: tuple[str, ...] = ()
    max_new_tokens: int = MAX_NEW_TOKENS

    @abstractmethod
    def load(self, data: Path) -> list[Item]:
        """Every item, in the order of the annotation files.

        Raises:
            DataError: an annotation file is missing or breaks its format; names file, index and field.
        """

    source_file: Path | None = None
    """The benchmark is this file, and is named by it on the command line."""

    def default_data(self, root: Path) -> Path:
        """The data folder where none is given; ``root`` holds those of all benchmarks."""
        return root / self.folder

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

    def supplements(self, items: Sequence[Item], data: Path) -> list[Supplement]:
        """What prompts may hold beside video and question, and for how many videos it is there.

        Raises:
            DataError: it is asked for, and there is none of it.
        """
        return []

    def check_texts(self, items: Sequence[Item], data: Path) -> None:  # noqa: B027  most benchmarks have none
        """Read all of :meth:`texts`. Called before the first question is asked.

        Raises:
            DataError: one that cannot be used.
        """

    def texts(self, items: Sequence[Item], data: Path) -> list[Path]:
        """Files beside the videos whose content gets into :meth:`instructions`. With others, answers are not reused."""
        return []

    def parse(self, item: Item, output: str, protocol: str) -> Parsed | None:
        """Read an answer; None where answers are judged, not read."""
        return None

    def read(self, item: Item, output: str, protocol: str) -> Reading:
        """Read an answer and compare it with the reference."""
        parsed = self.parse(item, output, protocol)
        if parsed is None:
            return Reading()
        correct = None if item.answer is None else parsed.value == item.answer
        return Reading(parsed.value, parsed.guessed, correct)

    def own_table(self, items: Sequence[Item], samples: Sequence[Sample], protocol: str) -> str:
        """A table of the benchmark's own for the report, as Markdown; empty where the common ones say everything."""
        return ""

    def write_submission(self, items: Sequence[Item], samples: Sequence[Sample], folder: Path) -> list[Path]:
        """Write the files that the benchmark's server or official scorer takes; returns them."""
        return []
