"""The built-in world through MVBench's runner and files, one task per type of question.

By default the question alone is asked and the answer must be the right candidate's text: this is how the table in the
built-in model's README was made. ``prompt="options"`` asks as MVBench does: options with letters, MVBench's parser.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from videollama2.errors import ConfigError, DataError
from videollama2.eval.annotations import read_json
from videollama2.eval.benchmarks.mvbench import MVBench, Task, load_tasks
from videollama2.eval.items import Benchmark, Item, Parsed

PROMPTS = ("question", "options")


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

    def __init__(self, prompt: str = "question") -> None:
        if prompt not in PROMPTS:
            raise ConfigError(f"prompt must be one of {', '.join(PROMPTS)}, got {prompt!r}")
        self.prompt = prompt

    def configure(self, prompt: str | None = None, **options: Any) -> Benchmark:
        """See :class:`Benchmark`."""
        super().configure(**options)
        return self if prompt is None else MovingShapes(prompt)

    def settings(self) -> dict[str, Any]:
        """See :class:`Benchmark`."""
        return {"prompt": self.prompt}

    def load(self, data: Path) -> list[Item]:
        """See :class:`Benchmark`."""
        inside = "mvbench/" if (data / "mvbench" / "json").is_dir() else ""
        tasks = {name: Task(name, "") for name in _types(data / inside / "json")}
        return [self._own(item, inside) for item in load_tasks(data / inside, tasks)]

    def parse(self, item: Item, output: str, protocol: str) -> Parsed:
        """See :class:`Benchmark`."""
        if self.prompt == "options":
            return super().parse(item, output, protocol)
        texts = [_plain(option) for option in item.options]
        return Parsed(texts.index(_plain(output)) if _plain(output) in texts else None)

    def _own(self, item: Item, inside: str) -> Item:
        instruction = item.question if self.prompt == "question" else item.instruction
        return replace(item, media=inside + item.media, group=inside + item.group, instruction=instruction)


def _types(folder: Path) -> list[str]:
    """Types that have questions; a small set need not have all."""
    found = [path.stem for path in sorted(folder.glob("*.json")) if read_json(path, list)]
    if not found:
        raise DataError(f"{folder}: there is no task file (*.json) with a question in this folder")
    return found


def _plain(text: str) -> str:
    """Lower case, no outer blanks, no final dot."""
    return text.strip().lower().removesuffix(".").rstrip()
