"""Stored answers -> rows that say what was read and whether it is right -> numbers, submission files and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from videollama2.eval.items import PROTOCOLS, Benchmark, Item, Row
from videollama2.eval.judging.judge import Judge
from videollama2.eval.judging.rubrics import Rubric, rubric
from videollama2.eval.report.metrics import summarise, summarise_judged


@dataclass(frozen=True)
class Judging:
    """Who judges, and by which texts: ``published``, ``own``, or a folder of rubric files."""

    judge: Judge
    rubrics: str = "published"

    def rubric(self, name: str) -> Rubric:
        """The rubric for one aspect; see :func:`videollama2.eval.judging.rubrics.rubric`."""
        folder = Path(self.rubrics)
        return rubric(name, str(folder / f"{name}.json") if folder.is_dir() else self.rubrics)


def make_row(benchmark: Benchmark, item: Item, answer: Mapping[str, Any], protocol: str) -> Row:
    """One row (see :mod:`videollama2.eval.items`) from an item and its stored answer.

    ``protocol`` chooses which reading stands in the row itself; all are under ``protocols``.
    """
    readings = {name: _reading(benchmark, item, answer, name) for name in PROTOCOLS}
    return {
        "id": item.id,
        "category": item.category,
        "group": item.group,
        "question": item.question,
        "answer": item.answer,
        "instruction": answer.get("instruction"),
        "output": answer["output"],
        **readings[protocol],
        "protocols": readings,
        **{name: item.extra.get(name) for name in benchmark.breakdowns},
        "finish_reason": answer.get("finish_reason"),
        "error": answer["error"],
        "error_kind": answer.get("error_kind"),
        "judge": None,
    }


def _reading(benchmark: Benchmark, item: Item, answer: Mapping[str, Any], protocol: str) -> dict[str, Any]:
    if answer["error"] is not None or not isinstance(answer["output"], str):
        return {"parsed": None, "guessed": False, "correct": None}
    parsed = benchmark.parse(item, answer["output"], protocol)
    if parsed is None:
        return {"parsed": None, "guessed": False, "correct": None}
    correct = None if item.answer is None else parsed.value == item.answer
    return {"parsed": parsed.value, "guessed": parsed.guessed, "correct": correct}


def judge_rows(
    benchmark: Benchmark, rows: Sequence[Row], judging: Judging, progress: bool = True
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Rows with their verdicts, and the metrics of every aspect under every protocol."""
    metrics: list[dict[str, Any]] = []
    verdicts: dict[str, dict[str, Any]] = {}
    for aspect in benchmark.aspects:
        concerned = [row for row in rows if aspect.concerns(row)]
        if not concerned:
            continue
        text = judging.rubric(aspect.rubric)
        graded = judging.judge.score_rows(concerned, text, progress)
        for row in graded:
            verdicts.setdefault(row["id"], {})[aspect.name] = row["judge"]
        name = "score" if text.wants_pred else aspect.name
        for protocol in PROTOCOLS:
            metrics.extend(summarise_judged(graded, text, protocol, name))
    return [_judged(row, verdicts.get(row["id"], {}), len(benchmark.aspects) > 1) for row in rows], metrics


def judging_cost(benchmark: Benchmark, rows: Sequence[Row], judging: Judging) -> dict[str, dict[str, Any]]:
    """What judging would take, by aspect; see ``Judge.dry_run``. Nothing is sent."""
    return {
        aspect.name: judging.judge.dry_run([row for row in rows if aspect.concerns(row)], judging.rubric(aspect.rubric))
        for aspect in benchmark.aspects
    }


def format_cost(costs: Mapping[str, Mapping[str, Any]]) -> str:
    """What :func:`judging_cost` found, a line for each aspect."""
    return "\n".join(
        f"{aspect}: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in cost.items())
        for aspect, cost in costs.items()
    )


def _judged(row: Row, verdicts: dict[str, Any], several: bool) -> Row:
    if not several:
        return {**row, "judge": next(iter(verdicts.values()), None)}
    failed = next((verdict for verdict in verdicts.values() if verdict and verdict["error"]), None)
    return {**row, "judge": failed, "judges": verdicts}


def option_metrics(
    benchmark: Benchmark, rows: Sequence[Row], protocols: Sequence[str] = PROTOCOLS
) -> list[dict[str, Any]]:
    """Accuracy of multiple choice under each of these protocols."""
    breakdowns = {name: itemgetter(name) for name in benchmark.breakdowns}
    return [summarise(rows, protocol, breakdowns=breakdowns) for protocol in protocols]


def describe_judge(benchmark: Benchmark, judging: Judging | None) -> dict[str, Any] | None:
    """What the results record about the judge."""
    if judging is None or not benchmark.aspects:
        return None
    texts = [judging.rubric(aspect.rubric).describe() for aspect in benchmark.aspects]
    if len(texts) == 1:
        return {**judging.judge.describe(), "rubric": texts[0]}
    # One version for all, so that the report can compare it with the paper's.
    versions = sorted({text["version"] for text in texts})
    return {**judging.judge.describe(), "rubric": {"version": ", ".join(versions), "texts": texts}}
