"""Writes the report of one benchmark as the files ``results.json``, ``results.md`` and ``results.png`` of a folder.

The same samples give the same bytes, and each file is replaced atomically.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from videollama2 import __version__
from videollama2.eval.atomic import write_atomically
from videollama2.eval.report.chart import draw_chart
from videollama2.eval.report.document import Header, Problem, Report, rubric_version
from videollama2.eval.report.metrics import Cell, Metric, OutcomeCounts

_UNTOLD = (
    "The file holds chosen options, not the model's words: how many of them the published parser guessed is not known, "
    "and there is no strict reading."
)
_MAX_NAMED = 20  # largest number of failures that the Markdown names; all of them are in the samples


def write_report(folder: str | Path, report: Report) -> dict[str, Path]:
    """Write the three files and return their paths by kind (``json``, ``markdown``, ``chart``).

    Raises:
        DataError: a file cannot be written.
        MissingDependencyError: matplotlib is not installed; the other two files are written first.
    """
    folder = Path(folder)
    paths = {kind: folder / f"results.{end}" for kind, end in (("json", "json"), ("markdown", "md"), ("chart", "png"))}
    text = json.dumps(report.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(paths["json"], text + "\n")
    write_atomically(paths["markdown"], build_markdown(report))
    write_atomically(paths["chart"], draw_chart(report))
    return paths


def build_markdown(report: Report) -> str:
    """Return the report as a Markdown page."""
    parts = [f"# {report.header.heading()}", _settings(report.header)]
    if report.metrics:
        parts += [_overall_table(report.metrics), _counts_table(report.metrics), *_paper_notes(report.metrics)]
        parts += _category_tables(report.metrics)
    if report.own_table:
        parts.append(report.own_table)
    if report.problems:
        parts.append(_problem_list(report.problems))
    return "\n\n".join(part for part in parts if part) + "\n"


def _settings(header: Header) -> str:
    shown = {
        "revision": header.revision,
        "device": header.device,
        "dtype": header.dtype,
        "attention": header.attention,
        "quantization": header.quantization,
        "frames": header.frames,
        **header.settings,
        "protocol": header.protocol,
        "generation": header.generation,
        "questions": header.questions and (header.questions.part() or f"all {header.questions.asked:,}"),
        "judge": header.judge and _judge(header.judge),
        "project version": __version__,
    }
    lines = [f"- {name.replace('_', ' ')}: {_plain(value)}" for name, value in shown.items() if value is not None]
    return "\n".join([*lines, *(f"- {each.text()}" for each in header.supplements)])


def _judge(judge: Mapping[str, Any]) -> str:
    """Describe the judge on one line; sources and fingerprints of its rubrics are in the JSON file."""
    shown = {name: value for name, value in judge.items() if name not in ("kind", "rubric")}
    return f"{judge.get('kind')}, {_plain(shown)}, rubric {rubric_version(judge)}"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items() if item not in (None, [], {}))
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return str(value)


def _overall_table(metrics: Sequence[Metric]) -> str:
    head = ["metric", "protocol", "unit", "n", "value", "95 % interval", "failures as wrong", "mean of categories"]
    rows = []
    for metric in metrics:
        cell, unit = metric.overall, metric.unit
        value, lower = _number(cell.value, unit), _number(cell.lower_bound, unit)
        macro = _with_range(metric.macro, metric.macro_low, metric.macro_high, unit)
        paper = f"{metric.paper.value:g}" if metric.paper else "-"
        known = [metric.name, metric.protocol, unit, str(cell.n)]
        rows.append([*known, value, _range(cell.low, cell.high, unit), lower, macro, paper])
    return "## Overall\n\n" + markdown_table([*head, "paper"], rows, text_columns=3)


def _counts_table(metrics: Sequence[Metric]) -> str:
    names = [
        name for name in OutcomeCounts.__dataclass_fields__ if name != "silent" or any(m.counts.silent for m in metrics)
    ]
    rows = [[m.name, m.protocol, *(_counted(getattr(m.counts, name)) for name in names)] for m in metrics]
    head = ["metric", "protocol", *(name.replace("_", " ") for name in names)]
    table = "## Questions\n\n" + markdown_table(head, rows, text_columns=2)
    return f"{table}\n\n{_UNTOLD}" if any(metric.counts.guessed is None for metric in metrics) else table


def _counted(number: int | None) -> str:
    return "-" if number is None else str(number)


def _paper_notes(metrics: Sequence[Metric]) -> list[str]:
    notes = [
        f"- {metric.name}, {metric.protocol}: {metric.paper.source}"
        + "".join(f"; {difference}" for difference in metric.paper.differs)
        for metric in metrics
        if metric.paper
    ]
    return ["## The paper's numbers\n\n" + "\n".join(notes)] if notes else []


def _category_tables(metrics: Sequence[Metric]) -> list[str]:
    # A single category would repeat the table of all questions.
    several = any(len(metric.categories) > 1 for metric in metrics)
    tables = [_cells_table("category", metrics, [metric.categories for metric in metrics])] if several else []
    for name in dict.fromkeys(key for metric in metrics for key in metric.breakdowns):
        tables.append(_cells_table(name, metrics, [metric.breakdowns.get(name, {}) for metric in metrics]))
    return tables


def _cells_table(title: str, metrics: Sequence[Metric], columns: Sequence[Mapping[str, Cell]]) -> str:
    labels = list(dict.fromkeys(label for cells in columns for label in cells))
    if not labels:
        return ""
    head = [title, "n", *(f"{metric.name} ({metric.protocol}, {metric.unit})" for metric in metrics)]
    rows = []
    for label in labels:
        found = [cells.get(label) for cells in columns]
        n = max(cell.n for cell in found if cell)
        shown = [_cell(cell, metric.unit) for cell, metric in zip(found, metrics, strict=True)]
        rows.append([label, str(n), *shown])
    return f"## By {title}\n\n" + markdown_table(head, rows, text_columns=1)


def _cell(cell: Cell | None, unit: str) -> str:
    return "-" if cell is None else _with_range(cell.value, cell.low, cell.high, unit)


def _problem_list(problems: Sequence[Problem]) -> str:
    lines = [f"- `{_escape(each.id)}`: {_escape(each.problem)}" for each in problems[:_MAX_NAMED]]
    more = len(problems) - _MAX_NAMED
    return f"## Problems ({len(problems)})\n\n" + "\n".join(lines + ([f"- and {more} more"] if more > 0 else []))


def _number(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.{1 if unit == '%' else 2}f}"


def _range(low: float | None, high: float | None, unit: str) -> str:
    return "-" if low is None else f"{_number(low, unit)}..{_number(high, unit)}"


def _with_range(value: float | None, low: float | None, high: float | None, unit: str) -> str:
    shown = _number(value, unit)
    return shown if low is None else f"{shown} [{_range(low, high, unit)}]"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int) -> str:
    """Return a Markdown table, padded to be readable in a terminal; the first ``text_columns`` are aligned left."""
    lines = [list(head), *([_escape(cell) for cell in row] for row in rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if index < text_columns else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if index < text_columns else "-" * (width - 1) + ":" for index, width in enumerate(widths)]
    return "\n".join(map(line, [lines[0], rule, *lines[1:]]))


def _escape(text: Any) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ").replace("`", "'")
