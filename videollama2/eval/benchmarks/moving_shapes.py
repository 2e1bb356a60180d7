"""Asks about the built-in world as a benchmark in the form of MVBench, with a task for each type of question.

By default, a prompt is the question alone, and the answer must be the text of the right candidate; the table in the
built-in model's README was made in this way. ``prompt="options"`` asks as MVBench does, with lettered options and
MVBench's parser. ``shuffle_frames`` asks every question a second time with the frames in another order. This shows
whether a model uses time: questions about the order of frames must become harder, and the others must not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from videollama2.errors import ConfigError, DataError
from videollama2.eval.annotations import read_annotation_json
from videollama2.eval.benchmarks.mvbench import MVBench, MVBenchTask, load_tasks
from videollama2.eval.controls import CONTROLS, SHUFFLED_FRAMES
from videollama2.eval.items import Benchmark, Item, Parsed
from videollama2.eval.measures import Measure
from videollama2.eval.report.tables import markdown_table
from videollama2.eval.samples import Sample

PROMPTS = ("question", "options")
STATIC = ("shape", "colour", "count", "position", "existence")
"""Types of questions that can be answered from a single frame, in the order of the table."""
TEMPORAL = ("direction", "order", "change", "speed", "appearance")
"""Types of questions that need several frames in their order."""


def control_of(sample: Sample) -> str:
    """Return the control under which a question was asked, the end of its id; "" for the question itself."""
    end = sample.id.rpartition("-")[2]
    return end if end in CONTROLS else ""


def _is_shuffled(sample: Sample) -> bool:
    return control_of(sample) == SHUFFLED_FRAMES


def is_straight(sample: Sample) -> bool:
    """Whether nothing was changed of the clip."""
    return not control_of(sample)


def with_controls(items: Sequence[Item], controls: Sequence[str]) -> list[Item]:
    """Return every item, followed by one for each control."""
    again = [replace(item, id=f"{item.id}-{name}", control=name) for item in items for name in controls]
    each = len(controls)
    return [one for n, item in enumerate(items) for one in (item, *again[n * each : (n + 1) * each])]


class MovingShapes(MVBench):
    """See the module."""

    name = "moving_shapes"
    title = "moving shapes (built in)"
    folder = "moving_shapes"
    source = (
        "made here: python -m videollama2.shapes.sets --out eval/moving_shapes --videos 1000 --seed 20260 "
        "--balanced-questions 1000"
    )
    layout = """\
mvbench/json/TYPE.json   a list of {"video", "question", "candidates", "answer"}, a file for each type of question
mvbench/video            a link to videos/ beside it"""
    max_new_tokens = 16
    questions = None
    annotations = ()  # sets are written in their layout, so there is nothing to prepare

    def __init__(self, prompt: str = "question", shuffle_frames: bool = False) -> None:
        if prompt not in PROMPTS:
            raise ConfigError(f"prompt must be one of {', '.join(PROMPTS)}, got {prompt!r}")
        self.prompt, self.shuffle_frames = prompt, shuffle_frames
        if shuffle_frames:
            shuffled = Measure("accuracy, frames shuffled", concerns=_is_shuffled)
            self.measures = (Measure(concerns=is_straight), shuffled)

    def configure(self, prompt: str | None = None, shuffle_frames: bool | None = None, **options: Any) -> Benchmark:
        """See :class:`Benchmark`."""
        super().configure(**options)
        return MovingShapes(prompt or self.prompt, self.shuffle_frames if shuffle_frames is None else shuffle_frames)

    def settings(self) -> dict[str, Any]:
        """See :class:`Benchmark`."""
        return {"prompt": self.prompt, "shuffle_frames": self.shuffle_frames or None}

    def load(self, data: Path) -> list[Item]:
        """See :class:`Benchmark`."""
        inside = "mvbench/" if (data / "mvbench" / "json").is_dir() else ""
        tasks = {name: MVBenchTask(name, "") for name in _types(data / inside / "json")}
        items = [self._own(item, inside) for item in load_tasks(data / inside, tasks)]
        return with_controls(items, [SHUFFLED_FRAMES] if self.shuffle_frames else [])

    def write_submission(self, items: Sequence[Item], samples: Sequence[Sample], folder: Path) -> list[Path]:
        """Write the file of :class:`MVBench`, without the questions of controls."""
        return super().write_submission([item for item in items if not item.control], samples, folder)

    def own_table(self, items: Sequence[Item], samples: Sequence[Sample], protocol: str) -> str:
        """Return a table of accuracy by type, beside chance and the accuracy with shuffled frames."""
        if not self.shuffle_frames:
            return ""
        options = {item.id: len(item.options) for item in items}
        asked = {sample.category for sample in samples}
        types = [name for name in (*STATIC, *TEMPORAL) if name in asked]
        groups = {
            "static": [name for name in types if name in STATIC],
            "temporal": [name for name in types if name in TEMPORAL],
            "overall": list(asked),
        }
        rows = [
            [name, *_scores([sample for sample in samples if sample.category in members], options, protocol)]
            for name, members in [*((name, [name]) for name in types), *groups.items()]
            if members
        ]
        head = ["type", "questions", "accuracy", "chance", "shuffled", "drop"]
        return f"## With shuffled frames ({protocol}, %)\n\n" + markdown_table(head, rows, text_columns=1)

    def parse(self, item: Item, output: str, protocol: str) -> Parsed:
        """See :class:`Benchmark`."""
        if self.prompt == "options":
            return super().parse(item, output, protocol)
        texts = [_plain(option) for option in item.options]
        return Parsed(texts.index(_plain(output)) if _plain(output) in texts else None)

    def _own(self, item: Item, inside: str) -> Item:
        instruction = item.question if self.prompt == "question" else item.instruction
        return replace(item, media=inside + item.media, group=inside + item.group, instruction=instruction)


def _scores(samples: Sequence[Sample], options: Mapping[str, int], protocol: str) -> list[str]:
    """Return the cells of one line."""
    straight = [sample for sample in samples if is_straight(sample)]
    shuffled = [sample for sample in samples if _is_shuffled(sample)]
    accuracy, mixed = share_right(straight, protocol), share_right(shuffled, protocol)
    chance = sum(1 / options[sample.id] for sample in straight) / max(len(straight), 1)
    return [str(len(straight)), *(f"{100 * share:.1f}" for share in (accuracy, chance, mixed, accuracy - mixed))]


def share_right(samples: Sequence[Sample], protocol: str) -> float:
    """Return the share of right answers, 0 to 1; a question without an answer counts as wrong."""
    return sum(bool(sample.read_by(protocol).correct) for sample in samples) / max(len(samples), 1)


def _types(folder: Path) -> list[str]:
    """Return the types that have questions; a small set may lack some."""
    found = [path.stem for path in sorted(folder.glob("*.json")) if read_annotation_json(path, list)]
    if not found:
        raise DataError(f"{folder}: there is no task file (*.json) with a question in this folder")
    return found


def _plain(text: str) -> str:
    """Return a text in lower case, without outer blanks and a final full stop."""
    return text.strip().lower().removesuffix(".").rstrip()
