"""Asks about the built-in world with sound as a benchmark, like :mod:`.moving_shapes`, heard and seen.

Each control of :mod:`videollama2.eval.controls` asks every question again: ``muted`` and ``blank_frames`` show which
types of questions a model answers from what it hears and sees, ``shuffle_windows`` and ``shuffle_frames`` whether it
uses the order of what it hears and sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from videollama2.eval.benchmarks.moving_shapes import (
    STATIC,
    TEMPORAL,
    MovingShapes,
    control_of,
    is_straight,
    share_right,
    with_controls,
)
from videollama2.eval.controls import CONTROL_OPTIONS
from videollama2.eval.items import Benchmark, Item
from videollama2.eval.measures import Measure
from videollama2.eval.report.tables import markdown_table
from videollama2.eval.samples import Sample

SOUND = ("tone", "hits", "heard_first")
"""Types of questions about the sound alone, in the order of the table."""
BOTH = ("maker", "caller", "together")
"""Types of questions that need sight and sound."""


class SoundingShapes(MovingShapes):
    """See the module."""

    name = "sounding_shapes"
    title = "moving shapes and their sounds (built in)"
    folder = "sounding_shapes"
    source = (
        "made here: python -m videollama2.shapes.sets --out eval/sounding_shapes --videos 1000 --seed 20261 "
        "--balanced-questions 1000 --sound"
    )

    def __init__(self, prompt: str = "question", controls: Sequence[str] = ()) -> None:
        super().__init__(prompt)
        self.controls = tuple(controls)
        again = [
            Measure(f"accuracy, {option.replace('_', ' ')}", concerns=partial(_is_under, CONTROL_OPTIONS[option]))
            for option in self.controls
        ]
        self.measures = (Measure(concerns=is_straight), *again)

    def configure(self, prompt: str | None = None, shuffle_frames: bool | None = None, **options: Any) -> Benchmark:
        """See :class:`Benchmark`; the options of this one are ``prompt`` and, each True or None, the controls."""
        given = {"shuffle_frames": shuffle_frames, **options}
        Benchmark.configure(self, **{name: value for name, value in options.items() if name not in CONTROL_OPTIONS})
        chosen = [name for name in CONTROL_OPTIONS if given.get(name) or name in self.controls]
        return SoundingShapes(prompt or self.prompt, chosen)

    def settings(self) -> dict[str, Any]:
        """See :class:`Benchmark`."""
        return {"prompt": self.prompt, **dict.fromkeys(self.controls, True)}

    def load(self, data: Path) -> list[Item]:
        """See :class:`Benchmark`."""
        items = [replace(item, use_audio=True) for item in super().load(data)]
        return with_controls(items, [CONTROL_OPTIONS[name] for name in self.controls])

    def own_table(self, items: Sequence[Item], samples: Sequence[Sample], protocol: str) -> str:
        """Return a table of accuracy by type, beside chance and the accuracy under each control."""
        if not self.controls:
            return ""
        options = {item.id: len(item.options) for item in items}
        asked = {sample.category for sample in samples}
        named = {"static": STATIC, "temporal": TEMPORAL, "sound": SOUND, "both": BOTH}
        types = [name for group in named.values() for name in group if name in asked]
        groups = {name: [kind for kind in group if kind in asked] for name, group in named.items()}
        rows = [
            [name, *self._cells([sample for sample in samples if sample.category in members], options, protocol)]
            for name, members in [*((name, [name]) for name in types), *groups.items(), ("overall", types)]
            if members
        ]
        head = ["type", "questions", "accuracy", "chance", *(option.replace("_", " ") for option in self.controls)]
        return f"## With controls ({protocol}, %)\n\n" + markdown_table(head, rows, text_columns=1)

    def _cells(self, samples: Sequence[Sample], options: Mapping[str, int], protocol: str) -> list[str]:
        straight = [sample for sample in samples if is_straight(sample)]
        chance = sum(1 / options[sample.id] for sample in straight) / max(len(straight), 1)
        again = [
            share_right([sample for sample in samples if _is_under(CONTROL_OPTIONS[option], sample)], protocol)
            for option in self.controls
        ]
        shares = (share_right(straight, protocol), chance, *again)
        return [str(len(straight)), *(f"{100 * share:.1f}" for share in shares)]


def _is_under(control: str, sample: Sample) -> bool:
    return control_of(sample) == control
