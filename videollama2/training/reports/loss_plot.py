"""Plots a run's losses (``loss.png``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from videollama2.errors import MissingDependencyError

Curve = list[tuple[float, float]]
"""Points (step, loss) in the order of steps."""

_COLOURS = {"loss": "#9ec5e8", "loss, smoothed": "#1f5fa8", "eval_loss": "#d1495b"}
_FEW = 40
"""Largest number of points of a curve on which every point gets a marker."""
_WIDE = 20
"""Losses that differ by more than this factor are drawn on a logarithmic scale; a linear one would show a flat end."""


def plot_losses(folder: str | Path) -> Path | None:
    """Plot the losses in ``folder/trainer_state.json`` and return the path of the ``loss.png``, or None without losses.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    folder = Path(folder)
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    curves = {name: [(row["step"], row[name]) for row in history if name in row] for name in ("loss", "eval_loss")}
    curves = {"loss": curves["loss"], "loss, smoothed": smoothed(curves["loss"]), "eval_loss": curves["eval_loss"]}
    curves = {name: curve for name, curve in curves.items() if curve}
    if not curves:
        return None
    path = folder / "loss.png"
    draw_curves(curves).savefig(path)
    return path


def smoothed(curve: Curve, share: float = 0.05) -> Curve:
    """Return the running mean of a curve over about ``share`` of its points.

    Each mean takes as many points before its step as after it, hence fewer points towards the ends.
    """
    reach = int(share * len(curve) / 2)
    result = []
    for place, (step, _) in enumerate(curve):
        near = min(reach, place, len(curve) - 1 - place)
        values = [value for _, value in curve[place - near : place + near + 1]]
        result.append((step, sum(values) / len(values)))
    return result


def draw_curves(curves: dict[str, Curve]) -> Any:
    """Return a matplotlib figure of the named curves.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise MissingDependencyError.of("loss.png needs matplotlib", "[train]") from error
    figure = Figure(figsize=(9.6, 5.4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for name, curve in curves.items():
        steps, losses = zip(*curve, strict=True)
        mark = "o" if len(curve) <= _FEW else None
        axis.plot(steps, losses, color=_COLOURS[name], label=name, marker=mark, markersize=4, linewidth=1.8)
    lasting = [loss for name, curve in curves.items() if name != "loss" for _, loss in curve]
    if min(lasting) > 0 and max(lasting) > _WIDE * min(lasting):
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=min(0.0, *lasting))
    axis.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
    axis.set_xlabel("step")
    axis.set_ylabel("loss per label")
    axis.grid(color="#e4e4e4")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return figure
