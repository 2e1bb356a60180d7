"""``loss.png``: the losses of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from videollama2.errors import MissingDependencyError

Curve = list[tuple[float, float]]
"""(step, loss) in the order of steps."""

_COLOURS = {"loss": "#9ec5e8", "loss, smoothed": "#1f5fa8", "eval_loss": "#d1495b"}
_FEW = 40
"""Points up to which each is marked."""
_WIDE = 20
"""A loss that falls by more than this factor is drawn on a logarithmic scale: its end would be a flat line."""


def plot_losses(folder: str | Path) -> Path | None:
    """Draw what ``trainer_state.json`` in ``folder`` says into ``loss.png``; None where no loss was logged.

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
    draw(curves).savefig(path)
    return path


def smoothed(curve: Curve, share: float = 0.05) -> Curve:
    """Means over about ``share`` of the points about each one; fewer towards the ends, as many before as after."""
    reach = int(share * len(curve) / 2)
    result = []
    for place, (step, _) in enumerate(curve):
        near = min(reach, place, len(curve) - 1 - place)
        values = [value for _, value in curve[place - near : place + near + 1]]
        result.append((step, sum(values) / len(values)))
    return result


def draw(curves: dict[str, Curve]) -> Any:
    """The figure: curves with axes and their names."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("loss.png needs matplotlib: pip install 'videollama2[train]'") from error
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
    axis.set_xlabel("step")
    axis.set_ylabel("loss per label")
    axis.grid(color="#e4e4e4")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return figure
