"""Writes the table and the plot of a comparison of connectors (:mod:`.ablation`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from videollama2.errors import MissingDependencyError

_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""The 97.5 % quantiles of Student's distribution with 1 to 9 degrees of freedom."""
_NORMAL = 1.96
_COLOURS = {"from one frame": "#2b6ca3", "from several frames": "#e08a1e"}


@dataclass(frozen=True)
class AblationRun:
    """One connector trained with one seed.

    Attributes:
        tokens: number of visual tokens of a clip.
        parameters: number of the connector's weights.
        loss: loss at the end of training.
        accuracy: share of right answers by type of question.
        chance: the same for a blind guess.
    """

    connector: str
    seed: int
    tokens: int
    parameters: int
    loss: float
    accuracy: dict[str, float]
    chance: dict[str, float]

    def mean(self, kinds: Sequence[str]) -> float:
        """Return the mean accuracy over these types, in per cent."""
        return 100 * sum(self.accuracy[kind] for kind in kinds) / len(kinds)

    def line(self) -> str:
        told = ", ".join(f"{kind} {100 * share:.0f}" for kind, share in self.accuracy.items())
        return f"{self.connector}, seed {self.seed}: loss {self.loss:.3f}; {told}"


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and half the width of its 95 % interval (Student's), which is None for a single seed."""

    mean: float
    half: float | None

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if self.half is None else f"{self.mean:.1f} ± {self.half:.1f}"


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of values of different seeds with its interval."""
    count, mean = len(values), sum(values) / len(values)
    if count < 2:
        return Estimate(mean, None)
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    quantile = _STUDENT[count - 2] if count - 2 < len(_STUDENT) else _NORMAL
    return Estimate(mean, quantile * (variance / count) ** 0.5)


def by_connector(finished: Sequence[AblationRun]) -> dict[str, list[AblationRun]]:
    """Group runs by connector, in the order in which these come first."""
    grouped: dict[str, list[AblationRun]] = {}
    for run in finished:
        grouped.setdefault(run.connector, []).append(run)
    return grouped


def results_table(finished: Sequence[AblationRun], static: Sequence[str], temporal: Sequence[str]) -> str:
    """Return the results as a Markdown table: means over seeds with 95 % intervals, in per cent."""
    kinds = [*static, *temporal]
    rows = [
        ["connector", "tokens", "weights", "seeds", "one frame", "several frames", *kinds],
        ["---", *["---:"] * (5 + len(kinds))],
    ]
    for name, own in by_connector(finished).items():
        means = [
            estimate([run.mean(group) for run in own]) for group in (static, temporal, *([kind] for kind in kinds))
        ]
        shown = [*map(str, means[:2]), *(f"{each.mean:.0f}" for each in means[2:])]
        rows.append([name, str(own[0].tokens), f"{own[0].parameters:,}", str(len(own)), *shown])
    guess = finished[0].chance
    means = [100 * sum(guess[kind] for kind in group) / len(group) for group in (static, temporal)]
    rows.append(["(chance)", "", "", "", *(f"{each:.1f}" for each in means), *(f"{100 * guess[k]:.0f}" for k in kinds)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def write_results(out: Path, finished: Sequence[AblationRun], static: Sequence[str], temporal: Sequence[str]) -> None:
    """Write ``results.md``, ``results.json`` and ``results.svg``.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    groups = {"from one frame": static, "from several frames": temporal}
    content = {
        name: {
            group: {"mean": found.mean, "half": found.half}
            for group, kinds in groups.items()
            for found in [estimate([run.mean(kinds) for run in own])]
        }
        for name, own in by_connector(finished).items()
    }
    (out / "results.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (out / "results.md").write_text(results_table(finished, static, temporal), encoding="utf-8")
    _draw(out / "results.svg", finished, groups)


def _draw(path: Path, finished: Sequence[AblationRun], groups: dict[str, Sequence[str]]) -> None:
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError.of("the plot needs matplotlib", "[train]") from error
    named = by_connector(finished)
    figure = Figure(figsize=(8, 0.62 * len(named) + 1.2), layout="constrained")
    FigureCanvasSVG(figure)
    axis = figure.subplots()
    for offset, (group, kinds) in zip((-0.17, 0.17), groups.items(), strict=True):
        found = [estimate([run.mean(kinds) for run in own]) for own in named.values()]
        places = [number + offset for number in range(len(named))]
        axis.barh(places, [each.mean for each in found], 0.3, color=_COLOURS[group], label=f"answered {group}")
        halves = [each.half or 0.0 for each in found]
        axis.errorbar([each.mean for each in found], places, xerr=halves, fmt="none", ecolor="#222222", capsize=2)
        for place, own in zip(places, named.values(), strict=True):
            axis.plot([run.mean(kinds) for run in own], [place] * len(own), "o", color="#222222", markersize=3)
        guess = 100 * sum(finished[0].chance[kind] for kind in kinds) / len(kinds)
        axis.axvline(guess, color=_COLOURS[group], linestyle=":", linewidth=1.2)
    axis.set_yticks(range(len(named)), list(named))
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.set_xlabel("right answers, % (dots: seeds; whiskers: 95 %; dotted: chance)")
    axis.legend(loc="lower right", frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    with matplotlib.rc_context({"svg.hashsalt": "ablation"}):  # equal numbers give equal bytes
        figure.savefig(path, format="svg", metadata={"Date": None})
