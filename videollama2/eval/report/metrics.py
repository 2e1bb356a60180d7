"""From answered questions to numbers: means, intervals, counts. No file is read or written here.

A *metric* is one number with all that belongs to it:

    {"name": "accuracy", "protocol": "published", "unit": "%" | "0-5",
     "counts": {...}, "overall": CELL, "macro": mean over categories, "categories": {name: CELL},
     "breakdowns": {name: {value: CELL}}}
    CELL = {"n", "groups", "value", "low", "high", "lower_bound"}

``value`` is over the questions that have a verdict; ``lower_bound`` counts those without one (medium missing, failed,
judge failed) as wrong. Questions without a reference answer (test splits) are in neither.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from videollama2.eval.judging.rubrics import MAX_SCORE, Rubric
from videollama2.eval.report.statistics import clustered_interval

Row = Mapping[str, Any]
MEDIA = "media"  # a row's ``error_kind`` where the video is absent or unreadable
_DIGITS = 6  # of a stored number: the same on every machine


def summarise(
    rows: Sequence[Row],
    protocol: str,
    name: str = "accuracy",
    breakdowns: Mapping[str, Callable[[Row], str]] | None = None,
) -> dict[str, Any]:
    """Accuracy of rows with ``correct`` true, false or None (no verdict), as read by ``protocol``.

    A row that keeps several readings has them under ``protocols``; one without has its single reading in itself.
    """
    verdicts = [_reading(row, protocol).get("correct") for row in rows]
    values = [None if verdict is None else float(verdict) for verdict in verdicts]
    cells = _Cells(rows, values, [_has_reference(row) for row in rows], scale=100.0, proportion=True)
    return _metric(cells, name, protocol, "%", count_outcomes(rows, protocol), breakdowns)


def summarise_judged(
    rows: Sequence[Row],
    rubric: Rubric,
    protocol: str,
    name: str = "score",
    breakdowns: Mapping[str, Callable[[Row], str]] | None = None,
) -> list[dict[str, Any]]:
    """Metrics of judged rows: accuracy (share of yes) where the rubric asks for yes or no, and the mean score.

    Protocol ``published`` cuts a score to a whole number before averaging, as the published scorers do (4.8 counts 4).
    """
    counts = count_outcomes(rows, protocol, judged=True)
    verdicts = [_verdict(row) for row in rows]
    due = [True] * len(rows)
    metrics = []
    if rubric.wants_pred:
        values = [None if verdict is None else float(verdict["pred"] == "yes") for verdict in verdicts]
        cells = _Cells(rows, values, due, scale=100.0, proportion=True)
        metrics.append(_metric(cells, "accuracy", protocol, "%", counts, breakdowns))
    shape = int if protocol == "published" else float
    scores = [None if verdict is None else float(shape(verdict["score"])) for verdict in verdicts]
    cells = _Cells(rows, scores, due, scale=1.0, proportion=False)
    return [*metrics, _metric(cells, name, protocol, f"0-{MAX_SCORE}", counts, breakdowns)]


def count_outcomes(rows: Sequence[Row], protocol: str, judged: bool = False) -> dict[str, int | None]:
    """How many questions ended how. ``answered`` + ``missing_media`` + ``failed`` = ``total``; the others overlap.

    ``unparsed``: the answer names no option; ``guessed``: the protocol put an option in its place. None where the rows
    do not tell.
    """
    seen: Counter[str] = Counter()
    for row in rows:
        if row.get("error"):
            seen["missing_media" if row.get("error_kind") == MEDIA else "failed"] += 1
            continue
        seen["answered"] += 1
        if judged:
            seen["judge_failed"] += _verdict(row) is None
            continue
        reading = _reading(row, protocol)
        guessed = bool(reading.get("guessed"))
        seen["guessed"] += guessed
        seen["unparsed"] += guessed or reading.get("parsed") is None
        seen["untold"] += "guessed" in reading and reading["guessed"] is None
    names = ("answered", "unparsed", "guessed", "missing_media", "failed", "judge_failed")
    counts: dict[str, int | None] = {"total": len(rows), **{name: seen[name] for name in names}}
    return {**counts, "guessed": None, "unparsed": counts["unparsed"] or None} if seen["untold"] else counts


class _Cells:
    """Values beside their rows, ready to be averaged over any subset.

    ``values``: None where there is no verdict; ``due``: a verdict was to be had, so None lowers the lower bound.
    """

    def __init__(
        self, rows: Sequence[Row], values: Sequence[float | None], due: Sequence[bool], scale: float, proportion: bool
    ) -> None:
        self.rows, self.values, self.due, self.scale, self.proportion = rows, values, due, scale, proportion

    def cell(self, indices: Sequence[int]) -> dict[str, Any]:
        """Mean and interval over the rows with these indices."""
        judged = [index for index in indices if self.values[index] is not None]
        due = sum(self.due[index] or self.values[index] is not None for index in indices)
        if not judged:
            lower = 0.0 if due else None
            return {"n": 0, "groups": 0, "value": None, "low": None, "high": None, "lower_bound": lower}
        values = [self.values[index] for index in judged]
        groups = [self.rows[index]["group"] for index in judged]
        low, high = clustered_interval(values, groups, proportion=self.proportion)
        if not self.proportion and low is not None:
            low, high = max(low, 0.0), min(high, float(MAX_SCORE))
        return {
            "n": len(values),
            "groups": len(set(groups)),
            "value": self._shown(sum(values) / len(values)),
            "low": self._shown(low),
            "high": self._shown(high),
            "lower_bound": self._shown(sum(values) / due),
        }

    def by(self, label: Callable[[Row], str]) -> dict[str, dict[str, Any]]:
        """Cells per label, in the order in which labels first appear."""
        indices: dict[str, list[int]] = {}
        for index, row in enumerate(self.rows):
            indices.setdefault(str(label(row)), []).append(index)
        return {name: self.cell(members) for name, members in indices.items()}

    def _shown(self, number: float | None) -> float | None:
        return None if number is None else round(number * self.scale, _DIGITS)


def _metric(
    cells: _Cells,
    name: str,
    protocol: str,
    unit: str,
    counts: Mapping[str, int | None],
    breakdowns: Mapping[str, Callable[[Row], str]] | None,
) -> dict[str, Any]:
    categories = cells.by(lambda row: row["category"])
    filled = [cell["value"] for cell in categories.values() if cell["value"] is not None]
    return {
        "name": name,
        "protocol": protocol,
        "unit": unit,
        "counts": dict(counts),
        "overall": cells.cell(range(len(cells.rows))),
        "macro": round(sum(filled) / len(filled), _DIGITS) if filled else None,
        "categories": categories,
        "breakdowns": {key: cells.by(label) for key, label in (breakdowns or {}).items()},
    }


def _has_reference(row: Row) -> bool:
    return row.get("answer") is not None


def _reading(row: Row, protocol: str) -> Row:
    return (row.get("protocols") or {}).get(protocol, row)


def _verdict(row: Row) -> Mapping[str, Any] | None:
    judge = row.get("judge")
    return judge if judge and judge.get("error") is None else None
