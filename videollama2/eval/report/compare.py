"""Two evaluations of the same questions: how much better is one, and could that be chance?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollama2.errors import DataError
from videollama2.eval.items import PROTOCOLS, Row
from videollama2.eval.report.statistics import PairedDifference, paired_difference
from videollama2.eval.store import SAMPLES_FILE, read_json_lines


@dataclass(frozen=True)
class Comparison:
    """One metric of both. ``only_a`` and ``only_b``: questions with a verdict in one of them alone, left out."""

    metric: str
    protocol: str
    unit: str
    a: float
    b: float
    difference: PairedDifference
    only_a: int
    only_b: int


def read_samples(path: Path) -> dict[str, Row]:
    """Rows by id, from an output folder or its samples.jsonl.

    Raises:
        DataError: no samples, or a question twice.
    """
    file = path / SAMPLES_FILE if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"{file}: no such file; is the evaluation finished?")
    rows: dict[str, Row] = {}
    for number, row in enumerate(read_json_lines(file), start=1):
        if not isinstance(row, dict) or not {"id", "group", "protocols"} <= set(row):
            raise DataError(f"{file}: line {number} is no row of an evaluation")
        if row["id"] in rows:
            raise DataError(f"{file}: line {number} repeats question {row['id']!r}")
        rows[row["id"]] = row
    return rows


def compare(a: Path, b: Path) -> list[Comparison]:
    """Every metric that both have.

    Raises:
        DataError: not the same questions, or no question with a verdict in both.
    """
    rows_a, rows_b = read_samples(a), read_samples(b)
    shared = [name for name in rows_a if name in rows_b]
    different = [name for name in shared if rows_a[name].get("question") != rows_b[name].get("question")]
    if not shared or different:
        why = f"question {different[0]!r} has another text" if different else "they share no question"
        raise DataError(f"{a} and {b} are not evaluations of the same questions: {why}")
    values_a, values_b = _values(rows_a), _values(rows_b)
    found = [
        _compare(key, values_a[key], values_b[key], rows_a)
        for key in values_a
        if key in values_b and set(values_a[key]) & set(values_b[key])
    ]
    if not found:
        raise DataError(f"{a} and {b} have no question with a verdict in both")
    return found


def format_comparisons(comparisons: Sequence[Comparison], a: str, b: str) -> str:
    """As a table; the difference is the second minus the first."""
    lines = [f"A: {a}", f"B: {b}", ""]
    head = ("metric", "A", "B", "B - A", "95 % interval", "p", "questions", "A / B better")
    lines.append("".join(f"{text:<{width}}" for text, width in zip(head, _WIDTHS, strict=True)).rstrip())
    for each in comparisons:
        d = each.difference
        interval = "-" if d.low is None else f"{d.low:+.2f} .. {d.high:+.2f}"
        p = "-" if d.p_value is None else f"{d.p_value:.3f}"
        cells = (
            f"{each.metric}, {each.protocol} ({each.unit})",
            f"{each.a:.2f}",
            f"{each.b:.2f}",
            f"{d.difference:+.2f}",
            interval,
            p,
            str(d.n),
            f"{d.b_better} / {d.a_better}",
        )
        lines.append("".join(f"{text:<{width}}" for text, width in zip(cells, _WIDTHS, strict=True)).rstrip())
    left = [f"{each.metric}: {each.only_a} / {each.only_b}" for each in comparisons if each.only_a or each.only_b]
    if left:
        lines += ["", "left out, a verdict in A / B alone: " + "; ".join(dict.fromkeys(left))]
    return "\n".join(lines)


_WIDTHS = (36, 8, 8, 9, 19, 8, 11, 12)


def _values(rows: Mapping[str, Row]) -> dict[tuple[str, str, str], dict[str, float]]:
    """(metric, protocol, unit) -> value of each question that has one."""
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for name, row in rows.items():
        for protocol in PROTOCOLS:
            correct = (row["protocols"] or {}).get(protocol, {}).get("correct")
            if correct is not None:
                found.setdefault(("accuracy", protocol, "%"), {})[name] = 100.0 * correct
        for aspect, verdict in _verdicts(row).items():
            if verdict and verdict["error"] is None:
                if verdict["pred"] is not None:
                    found.setdefault(("judged accuracy", "judge", "%"), {})[name] = 100.0 * (verdict["pred"] == "yes")
                found.setdefault((aspect, "judge", "0-5"), {})[name] = float(verdict["score"])
    return found


def _verdicts(row: Row) -> dict[str, Any]:
    return row.get("judges") or ({"score": row["judge"]} if row.get("judge") else {})


def _compare(
    key: tuple[str, str, str], a: Mapping[str, float], b: Mapping[str, float], rows: Mapping[str, Row]
) -> Comparison:
    both = [name for name in a if name in b]
    values_a, values_b = [a[name] for name in both], [b[name] for name in both]
    difference = paired_difference(values_b, values_a, [rows[name]["group"] for name in both])
    mean_a, mean_b = sum(values_a) / len(both), sum(values_b) / len(both)
    return Comparison(*key, mean_a, mean_b, difference, len(a) - len(both), len(b) - len(both))
