"""Draws the bar chart of a report, with a panel for each unit, a row for each category and a colour for each metric."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from videollama2.errors import MissingDependencyError
from videollama2.eval.report.document import Report
from videollama2.eval.report.metrics import Cell, Metric

_COLOURS = ("#2b6ca3", "#e08a1e", "#4f9d69", "#a34b8f", "#7a6a58", "#3aa0a0", "#b5483a")
_INK = "#222222"
_PAPER_MARK = {"marker": "D", "markersize": 5, "color": "white", "markeredgecolor": _INK, "linestyle": "none"}
_OVERALL = "all questions"
_TITLE_LETTERS = 60
_GAP_INCHES, _BAR_INCHES = 0.12, 0.17


def draw_chart(report: Report) -> bytes:
    """Draw the chart of a report and return it as a PNG file.

    The first row is for all questions, the others are for categories. Whiskers are 95 % intervals, and a diamond is the
    paper's number.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figure_class, canvas_class = _import_matplotlib()
    panels = _panels(report.metrics)
    heights = [_panel_inches(metrics) for metrics in panels]
    figure = figure_class(figsize=(8.5, sum(heights) + 0.7), dpi=120, layout="constrained")
    canvas_class(figure)
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.1)
    model = report.header.model
    shown = model if len(model) <= _TITLE_LETTERS else "…" + model[-_TITLE_LETTERS:]  # a path's end says most
    figure.suptitle(_plain(report.header.heading(shown)), fontsize=11)
    axes = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights or [1]})
    for axis, metrics in zip(axes[:, 0], panels, strict=True):
        _draw_panel(axis, metrics)
    buffer = io.BytesIO()
    # The file has no version or date, so that the same numbers give the same bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _panels(metrics: Sequence[Metric]) -> list[list[Metric]]:
    """Group metrics by unit; each group shares an axis. If no metric has a value, a single panel says so."""
    if not any(map(_scored, metrics)):
        return [[*metrics]]
    units = dict.fromkeys(metric.unit for metric in metrics)
    return [[metric for metric in metrics if metric.unit == unit] for unit in units]


def _scored(metric: Metric) -> bool:
    return metric.overall.value is not None


def _labels(metrics: Sequence[Metric]) -> list[str]:
    """Return the names of the rows: all questions, then the categories, unless there is only one of them."""
    if all(len(metric.categories) <= 1 for metric in metrics):
        return [_OVERALL]
    return [_OVERALL, *dict.fromkeys(label for metric in metrics for label in metric.categories)]


def _panel_inches(metrics: Sequence[Metric]) -> float:
    if not any(map(_scored, metrics)):
        return 1.0
    return 1.0 + len(_labels(metrics)) * (_GAP_INCHES + _BAR_INCHES * max(1, len(metrics)))


def _draw_panel(axis: Any, metrics: Sequence[Metric]) -> None:
    if not any(map(_scored, metrics)):
        axis.text(0.5, 0.5, _why_unscored(metrics), ha="center", va="center", transform=axis.transAxes)
        axis.set_axis_off()
        return
    top = 100.0 if metrics[0].unit == "%" else 5.0
    labels = _labels(metrics)
    height = _BAR_INCHES / (_GAP_INCHES + _BAR_INCHES * len(metrics))
    offsets = [(index - (len(metrics) - 1) / 2) * height for index in range(len(metrics))]
    # If there are only totals, each bar has its name beside it, and the colour is free to show the protocol.
    told = [metric.protocol if len(labels) == 1 else index for index, metric in enumerate(metrics)]
    kinds = list(dict.fromkeys(told))
    for metric, kind, offset in zip(metrics, told, offsets, strict=True):
        _draw_bars(axis, metric, labels, offset, height, _COLOURS[kinds.index(kind) % len(_COLOURS)], top)
    _dress(axis, top, len(labels))
    if len(labels) == 1:
        # There are only totals (the aspects of a judge), so name each bar instead of the group of bars.
        names = [f"{_name(metric)}  (n={metric.overall.n})" for metric in metrics]
        axis.set_yticks(offsets, names, fontsize=8)
    else:
        names = [f"{_plain(label)}  (n={_count(metrics, label)})" for label in labels]
        axis.set_yticks(range(len(labels)), names, fontsize=8)
        axis.axhline(0.5, color="#aaaaaa", linewidth=0.8)
    _legend(axis, metrics, named=len(labels) > 1)


def _why_unscored(metrics: Sequence[Metric]) -> str:
    """Say why no question is scored, with the counts of the first metric; those of the others are similar."""
    if not metrics:
        return "no scored question"
    counts = metrics[0].counts
    numbers = {
        "missing media": counts.missing_media,
        "failed": counts.failed,
        "judge failed": counts.judge_failed,
    }
    why = [f"{number} {name}" for name, number in numbers.items() if number]
    return "no scored question" + (f" (of {counts.total}: {', '.join(why)})" if why else "")


def _draw_bars(
    axis: Any, metric: Metric, labels: list[str], offset: float, height: float, colour: str, top: float
) -> None:
    for row, label in enumerate(labels):
        cell = _cell(metric, label)
        if cell is None or cell.value is None:
            continue
        place = row + offset
        axis.barh(place, cell.value, height * 0.88, color=colour, alpha=1.0 if row == 0 else 0.7)
        if cell.low is not None:
            axis.hlines(place, cell.low, cell.high, color=_INK, linewidth=0.8)
            axis.vlines([cell.low, cell.high], place - height * 0.2, place + height * 0.2, _INK, linewidth=0.8)
        # Values have a column of their own: beside their bars they would overlap whiskers and the paper's mark.
        digits = 1 if metric.unit == "%" else 2
        axis.text(top * 1.02, place, f"{cell.value:.{digits}f}", va="center", fontsize=7, color=_INK)
    if metric.paper:
        axis.plot(metric.paper.value, offset, zorder=5, **_PAPER_MARK)


def _dress(axis: Any, top: float, rows: int) -> None:
    axis.set_ylim(rows - 0.5, -0.5)  # the first row is at the top
    axis.set_xlim(0, top * 1.08)
    axis.set_xticks([top * step / 5 for step in range(6)])
    axis.set_xlabel("%" if top == 100.0 else "judge's score, 0 to 5", fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)


def _legend(axis: Any, metrics: Sequence[Metric], named: bool) -> None:
    handles, names = [], []
    for index, metric in enumerate(metrics if named else ()):
        handles.append(axis.barh([0], [0], color=_COLOURS[index % len(_COLOURS)]))
        names.append(_name(metric))
    handles += axis.plot([], [], color=_INK, linewidth=0.8)
    names.append("95 % interval")
    if any(metric.paper for metric in metrics):
        handles += axis.plot([], [], **_PAPER_MARK)
        names.append("the paper")
    axis.legend(handles, names, fontsize=7, ncols=4, loc="lower right", bbox_to_anchor=(1, 1), frameon=False)


def _cell(metric: Metric, label: str) -> Cell | None:
    return metric.overall if label == _OVERALL else metric.categories.get(label)


def _count(metrics: Sequence[Metric], label: str) -> int:
    return max(cell.n for metric in metrics if (cell := _cell(metric, label)))


def _name(metric: Metric) -> str:
    return _plain(f"{metric.name} ({metric.protocol})")


def _plain(text: str) -> str:
    """Escape a text for matplotlib, which would set text between dollar signs as a formula, or fail to."""
    return text.replace("$", r"\$")


def _import_matplotlib() -> tuple[type, type]:
    try:
        # Without pyplot, no window system is needed and calls share no state.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError.of("the bar chart needs matplotlib", "[eval]") from error
    return Figure, FigureCanvasAgg
