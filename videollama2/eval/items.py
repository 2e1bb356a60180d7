"""Defines the base class of benchmarks: the items to ask, the reading of an answer, and the measures over readings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videollama2.errors import ConfigError
from videollama2.eval.coverage import Supplement
from videollama2.eval.measures import Aspect, Measure
from videollama2.eval.samples import Reading, Sample
from videollama2.media.kinds import VIDEO

if TYPE_CHECKING:
    from videollama2.eval.annotations import AnnotationEntry
    from videollama2.media.frames import FrameSampling

PUBLISHED, STRICT = "published", "strict"
PROTOCOLS = (PUBLISHED, STRICT)
"""How answers are read. ``published`` uses the parser and the fallback of the published code. ``strict`` uses the same
prompt, but reads whole words only, and counts an answer that cannot be read as wrong and as unparsed."""

MAX_NEW_TOKENS = 2048
"""Longest answer in tokens; the published code uses this value for every benchmark."""


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        media: path of the medium, relative to the data folder.
        instruction: the exact text for the model; two texts are asked independently and judged together.
        kind: ``video``, ``image`` or ``audio``.
        start, end: bounds of the clip in seconds; None leaves that side open. They do not cut the sound of a video
            (published).
        answer: index of the right option, text, or list of texts; None if the answer is not public.
        category: the category by which results are broken down.
        group: name of the video; confidence intervals take questions with the same group as dependent.
        extra: further values that the benchmark itself needs later.
        others: kind and path of further media, shown after the first one.
        control: what is changed of the clip, see :mod:`videollama2.eval.controls`; empty if nothing is. An order is
            drawn with the file's name as the seed.
        use_audio: whether the model also hears the sound of the video; a video without a track is heard as silence.
        crop_start: first sample that is heard of a sound file that is longer than a clip, at the file's own rate; None
            takes the middle. The published code draws it at random.
    """

    id: str
    media: str
    question: Any
    instruction: str | tuple[str, ...]
    kind: str = VIDEO
    start: float | None = None
    end: float | None = None
    answer: Any = None
    options: tuple[str, ...] = ()
    category: str = ""
    group: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    others: tuple[tuple[str, str], ...] = ()
    control: str = ""
    use_audio: bool = False
    crop_start: int | None = None

    @property
    def clip(self) -> tuple[Any, ...]:
        """A key for what is decoded: items with the same key share the decoded media."""
        sound = {"use_audio": self.use_audio or None, "crop_start": self.crop_start}
        heard = [(name, value) for name, value in sound.items() if value is not None]
        return self.kind, self.media, self.start, self.end, *heard, *self.others

    @property
    def all_media(self) -> tuple[tuple[str, str], ...]:
        """Kind and path of every medium, in the order in which they are shown."""
        return ((self.kind, self.media), *self.others)

    @property
    def instructions(self) -> tuple[str, ...]:
        return (self.instruction,) if isinstance(self.instruction, str) else self.instruction


@dataclass(frozen=True)
class Preset:
    """The way in which another harness asks the questions of one benchmark.

    Attributes:
        name: name of the harness.
        text: function from an item to the text for the model.
        max_new_tokens: longest answer, or None for the benchmark's own.
    """

    name: str
    text: Callable[[Item], str | tuple[str, ...]]
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class Parsed:
    """The value read from an answer: an option's index or another value that the benchmark reads, or None.

    ``guessed`` is true if nothing could be read and the protocol uses ``value`` as a fallback.
    """

    value: Any
    guessed: bool = False


class Benchmark(ABC):
    """The base class of benchmarks.

    A third party adds a benchmark with an entry point of the group ``videollama2.benchmarks`` that names a subclass or
    an instance.

    Attributes:
        name: name on the command line and in results.
        title: name for people.
        how: how answers are scored, unless a judge grades them.
        folder: usual data folder under ``eval/``.
        version: number that is increased when items or prompts change; it is part of a run's configuration.
        source: where the data come from.
        questions: number of questions of the complete benchmark, or None if its splits differ.
        layout: description of the files in the data folder.
        annotations: patterns of the annotation files, with this project's names and the hub's, for ``eval prepare``.
        has_subtitles: whether videos may have subtitles, in files with the video's name.
        aspects: aspects that a judge grades; empty if answers are read by a parser.
        measures: numbers about answers that are read by a parser.
        breakdowns: names in ``Item.extra`` by which results are also broken down.
        max_new_tokens: longest answer in tokens.
    """

    name: str
    title: str
    folder: str
    how: str = "multiple choice"
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
        """Return all items in the order of the annotation files.

        Raises:
            DataError: an annotation file is missing or malformed; the message names file, index and field.
        """

    source_file: Path | None = None
    """The file that defines the benchmark and names it on the command line, if it is defined by a file."""

    def default_data(self, root: Path) -> Path:
        """Return the default data folder; ``root`` is the folder with those of all benchmarks."""
        return root / self.folder

    sampling: FrameSampling | None = None
    """The choice of frames of the model that is asked, which the runner sets; prompts may depend on the frames."""

    preset: Preset | None = None
    """The way of another harness to ask the questions, if it is used; see :meth:`with_preset`."""

    def with_preset(self, preset: Preset) -> Benchmark:
        """Return this benchmark with the prompts and the longest answer of another harness.

        Raises:
            ConfigError: the prompts of this harness are not known with the benchmark's options.
        """
        if self.settings().get("subtitles") is not None:
            raise ConfigError(f"the prompt {preset.name} is not known for {self.name} with subtitles")
        asked = copy(self)
        asked.preset = preset
        asked.max_new_tokens = preset.max_new_tokens or self.max_new_tokens
        return asked

    def asked(self, data: Path) -> list[Item]:
        """Return all items as they are asked: those of :meth:`load`, in the wording of the preset if there is one."""
        items = self.load(data)
        text = self.preset and self.preset.text
        return [replace(item, instruction=text(item)) for item in items] if text else items

    def all_settings(self) -> dict[str, Any]:
        """Return :meth:`settings`, and the preset as ``prompt`` if there is one."""
        return {**self.settings(), **({"prompt": self.preset.name} if self.preset else {})}

    def configure(self, **options: Any) -> Benchmark:
        """Return this benchmark with options of its own.

        Video-MME has the option ``subtitles``, Perception Test ``split``, moving_shapes ``prompt`` and
        ``shuffle_frames``, sounding_shapes these two, ``muted``, ``blank_frames`` and ``shuffle_windows``. An option
        that is None is not given.

        Raises:
            ConfigError: the benchmark has no such option.
        """
        given = sorted(name for name, value in options.items() if value is not None)
        if given:
            raise ConfigError(f"benchmark {self.name} has no option {', '.join(given)}")
        return self

    def settings(self) -> dict[str, Any]:
        """Return the options that change what is asked; they are recorded in the results."""
        return {}

    def instructions(self, item: Item, data: Path, num_frames: int) -> tuple[str, ...]:
        """Return the texts for the model. The method is called just before the item is asked, so it may read files."""
        return item.instructions

    def supplements(self, items: Sequence[Item], data: Path) -> list[Supplement]:
        """Return what prompts may hold beside video and question, with the number of videos for which it exists.

        Raises:
            DataError: it is asked for, and no video has it.
        """
        return []

    def check_texts(self, items: Sequence[Item], data: Path) -> None:  # noqa: B027  most benchmarks have none
        """Check all files of :meth:`texts`. This is called before the first question is asked.

        Raises:
            DataError: a file cannot be used.
        """

    def texts(self, items: Sequence[Item], data: Path) -> list[Path]:
        """Return the files whose content goes into :meth:`instructions`; if they change, answers are not reused."""
        return []

    def parse(self, item: Item, output: str, protocol: str) -> Parsed | None:
        """Read an answer; the result is None for a benchmark whose answers are judged."""
        return None

    def read(self, item: Item, output: str, protocol: str) -> Reading:
        """Read an answer and compare it with the reference."""
        parsed = self.parse(item, output, protocol)
        if parsed is None:
            return Reading()
        correct = None if item.answer is None else parsed.value == item.answer
        return Reading(parsed.value, parsed.guessed, correct)

    def own_table(self, items: Sequence[Item], samples: Sequence[Sample], protocol: str) -> str:
        """Return a further table for the report, in Markdown, or an empty text if the common tables are enough."""
        return ""

    def write_submission(self, items: Sequence[Item], samples: Sequence[Sample], folder: Path) -> list[Path]:
        """Write the files that the benchmark's server or official scorer takes, and return their paths."""
        return []


class WordedBenchmark(Benchmark):
    """A benchmark whose published scorer reads the model's own words, so that files of the published code hold them."""

    @abstractmethod
    def item_of(self, id: str, media: str, record: AnnotationEntry, answer: str) -> Item:
        """Return the item of a question with this answer.

        Args:
            id: id of the item.
            media: path of the medium; empty for an answer that is only read.
            record: record of the annotations, or entry of a file of the published code.

        Raises:
            DataError: the answer is not possible.
        """
