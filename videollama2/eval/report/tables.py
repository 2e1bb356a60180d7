"""The report of one benchmark: ``results.json``, ``results.md`` and ``results.png`` in one folder.

The same rows give the same bytes; each file is replaced whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from videollama2 import __version__
from videollama2.errors import ConfigError
from videollama2.eval.files import write_atomically
from videollama2.eval.report.chart import draw_chart, heading
from videollama2.eval.report.paper_numbers import PaperNumber, paper_number

SCHEMA_VERSION = 1
# Without these a number cannot be compared with another; null is allowed, silence is not.
HEADER_FIELDS = ("benchmark", "model", "revision", "dtype", "frames", "generation", "protocol", "judge")
_METRIC_FIELDS = ("name", "protocol", "unit", "counts", "overall", "categories")
_SETTINGS = (
    "revision",
    "device",
    "dtype",
    "attention",
    "quantization",
    "frames",
    "subtitles",
    "split",
    "prompt",
    "protocol",
    "generation",
)
_COUNT_NAMES = ("total", "answered", "unparsed", "guessed", "missing_media", "failed", "judge_failed")
_UNTOLD = (
    "The file holds chosen options, not the model's words: how many of them the published parser guessed is not known, "
    "and there is no strict reading."
)
_MAX_NAMED = 20  # failures named in the Markdown; all of them are in the samples


def write_report(
    folder: str | Path, header: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]
) -> dict[str, Path]:
    """Write the three files and return their paths by kind (``json``, ``markdown``, ``chart``).

    Args:
        header: at least :data:`HEADER_FIELDS`; everything in it goes into ``results.json``. ``subtitles`` true compares
            with the paper's number for VideoMME with subtitles.
        rows: the stored rows; only those that failed are named in the report.
        summary: ``{"metrics": [...]}`` of :func:`~videollama2.eval.report.metrics.summarise`.

    Raises:
        ConfigError: a header field or a metric field is absent.
        MissingDependencyError: matplotlib is not installed; the other two files are written first.
    """
    folder = Path(folder)
    document = build_document(header, rows, summary)
    paths = {kind: folder / f"results.{end}" for kind, end in (("json", "json"), ("markdown", "md"), ("chart", "png"))}
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(paths["json"], text + "\n")
    write_atomically(paths["markdown"], build_markdown(document))
    write_atomically(paths["chart"], draw_chart(document))
    return paths


def build_document(
    header: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]
) -> dict[str, Any]:
    """What ``results.json`` holds."""
    absent = [name for name in HEADER_FIELDS if name not in header]
    if absent:
        raise ConfigError(f"report: the header lacks {', '.join(absent)}; null is allowed")
    metrics = [dict(metric) for metric in summary.get("metrics", ())]
    for metric in metrics:
        absent = [name for name in _METRIC_FIELDS if name not in metric]
        if absent:
            raise ConfigError(f"report: metric {metric.get('name')!r} lacks {', '.join(absent)}")
        metric["paper"] = _paper(header, metric)
    problems = [{"id": row["id"], "group": row.get("group"), "problem": why} for row in rows if (why := _problem(row))]
    return {
        "schema_version": SCHEMA_VERSION,
        "project_version": __version__,
        **header,
        **{key: value for key, value in summary.items() if key != "metrics"},
        "metrics": metrics,
        "problems": problems,
    }


def build_markdown(document: Mapping[str, Any]) -> str:
    """The same as a page to read."""
    parts = [f"# {heading(document)}", _settings(document)]
    metrics = document["metrics"]
    if metrics:
        parts += [_overall_table(metrics), _counts_table(metrics), *_paper_notes(metrics)]
        parts += _category_tables(metrics)
    if document["problems"]:
        parts.append(_problem_list(document["problems"]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _paper(header: Mapping[str, Any], metric: Mapping[str, Any]) -> dict[str, Any] | None:
    number = paper_number(str(header["model"]), header["benchmark"], metric["name"], bool(header.get("subtitles")))
    if number is None:
        return None
    return {"value": number.value, "source": number.source, "differs": _differences(header, metric, number)}


def _differences(header: Mapping[str, Any], metric: Mapping[str, Any], number: PaperNumber) -> list[str]:
    """Why the number beside the paper's is not the same measurement."""
    found = [number.note] if number.note else []
    if metric["protocol"] != "published":
        found.append(f"protocol {metric['protocol']} instead of published")
    if header["frames"] not in (None, number.frames):
        found.append(f"{header['frames']} frames instead of {number.frames}")
    judge = header["judge"]
    if judge:
        rubric = judge.get("rubric")
        version = rubric.get("version") if isinstance(rubric, Mapping) else rubric
        if version != "published":
            found.append(f"rubric {version} instead of published")
        if judge.get("kind") == "local":
            found.append("judged by matching texts, not by a language model")
    return found


def _problem(row: Mapping[str, Any]) -> str | None:
    if row.get("error"):
        return str(row["error"])
    judge = row.get("judge")
    return f"judge: {judge['error']}" if judge and judge.get("error") else None


def _settings(document: Mapping[str, Any]) -> str:
    lines = [f"- {name}: {_plain(document[name])}" for name in _SETTINGS if document.get(name) is not None]
    if document["judge"]:
        lines.append(f"- judge: {_judge(document['judge'])}")
    return "\n".join([*lines, f"- project version: {document['project_version']}"])


def _judge(judge: Mapping[str, Any]) -> str:
    """On one line; sources and fingerprints of the texts are in the JSON."""
    rubric = judge.get("rubric")
    version = rubric.get("version") if isinstance(rubric, Mapping) else rubric
    shown = {name: value for name, value in judge.items() if name not in ("kind", "rubric")}
    return f"{judge.get('kind')}, {_plain(shown)}, rubric {version}"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items() if item not in (None, [], {}))
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return str(value)


def _overall_table(metrics: Sequence[Mapping[str, Any]]) -> str:
    head = ["metric", "protocol", "unit", "n", "value", "95 % interval", "failures as wrong", "mean of categories"]
    rows = []
    for metric in metrics:
        cell, unit = metric["overall"], metric["unit"]
        numbers = [cell["value"], cell["lower_bound"], metric.get("macro")]
        value, lower, macro = (_number(number, unit) for number in numbers)
        paper = f"{metric['paper']['value']:g}" if metric["paper"] else "-"
        known = [metric["name"], metric["protocol"], unit, str(cell["n"])]
        rows.append([*known, value, _range(cell, unit), lower, macro, paper])
    return "## Overall\n\n" + _table([*head, "paper"], rows, text_columns=3)


def _counts_table(metrics: Sequence[Mapping[str, Any]]) -> str:
    rows = [[m["name"], m["protocol"], *(_counted(m["counts"].get(name, 0)) for name in _COUNT_NAMES)] for m in metrics]
    head = ["metric", "protocol", *(name.replace("_", " ") for name in _COUNT_NAMES)]
    table = "## Questions\n\n" + _table(head, rows, text_columns=2)
    return f"{table}\n\n{_UNTOLD}" if any(m["counts"].get("guessed", 0) is None for m in metrics) else table


def _counted(number: int | None) -> str:
    return "-" if number is None else str(number)


def _paper_notes(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = [
        f"- {metric['name']}, {metric['protocol']}: {metric['paper']['source']}"
        + "".join(f"; {difference}" for difference in metric["paper"]["differs"])
        for metric in metrics
        if metric["paper"]
    ]
    return ["## The paper's numbers\n\n" + "\n".join(notes)] if notes else []


def _category_tables(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    # One category says the same as all questions.
    several = any(len(metric["categories"]) > 1 for metric in metrics)
    tables = [_cells_table("category", metrics, [metric["categories"] for metric in metrics])] if several else []
    for name in dict.fromkeys(key for metric in metrics for key in metric.get("breakdowns", {})):
        tables.append(_cells_table(name, metrics, [metric.get("breakdowns", {}).get(name, {}) for metric in metrics]))
    return tables


def _cells_table(title: str, metrics: Sequence[Mapping[str, Any]], columns: Sequence[Mapping[str, Any]]) -> str:
    labels = list(dict.fromkeys(label for cells in columns for label in cells))
    if not labels:
        return ""
    head = [title, "n", *(f"{metric['name']} ({metric['protocol']}, {metric['unit']})" for metric in metrics)]
    rows = []
    for label in labels:
        found = [cells.get(label) for cells in columns]
        n = max(cell["n"] for cell in found if cell)
        shown = [_cell(cell, metric["unit"]) for cell, metric in zip(found, metrics, strict=True)]
        rows.append([label, str(n), *shown])
    return f"## By {title}\n\n" + _table(head, rows, text_columns=1)


def _cell(cell: Mapping[str, Any] | None, unit: str) -> str:
    if cell is None or cell["value"] is None:
        return "-"
    value = _number(cell["value"], unit)
    return value if cell["low"] is None else f"{value} [{_range(cell, unit)}]"


def _problem_list(problems: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"- `{_escape(problem['id'])}`: {_escape(problem['problem'])}" for problem in problems[:_MAX_NAMED]]
    more = len(problems) - _MAX_NAMED
    return f"## Problems ({len(problems)})\n\n" + "\n".join(lines + ([f"- and {more} more"] if more > 0 else []))


def _number(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.{1 if unit == '%' else 2}f}"


def _range(cell: Mapping[str, Any], unit: str) -> str:
    return "-" if cell["low"] is None else f"{_number(cell['low'], unit)}..{_number(cell['high'], unit)}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int) -> str:
    """Markdown table, padded so that it also reads well in a terminal; numbers stand right of ``text_columns``."""
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
