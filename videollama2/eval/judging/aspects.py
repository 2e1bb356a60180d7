"""Judge all aspects of a benchmark, estimate the cost of judging, and describe the judge for the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from videollama2.eval.items import Benchmark
from videollama2.eval.judging.judge import Judge
from videollama2.eval.judging.rubrics import Rubric, rubric
from videollama2.eval.samples import Sample, Verdict


@dataclass(frozen=True)
class Judging:
    """A judge and its rubrics, which are ``published``, ``own``, or a folder of rubric files."""

    judge: Judge
    rubrics: str = "published"

    def rubric(self, name: str) -> Rubric:
        """Return the rubric with this name; see :func:`videollama2.eval.judging.rubrics.rubric`."""
        folder = Path(self.rubrics)
        return rubric(name, str(folder / f"{name}.json") if folder.is_dir() else self.rubrics)


@dataclass(frozen=True)
class JudgedAspect:
    """The samples that one aspect concerns, with a verdict for each (None for a sample without an answer)."""

    name: str
    wants_pred: bool
    samples: list[Sample]
    verdicts: list[Verdict | None]


def judge_aspects(
    benchmark: Benchmark, samples: Sequence[Sample], judging: Judging, progress: bool = True
) -> tuple[list[Sample], list[JudgedAspect]]:
    """Return all samples with their verdicts, and the judged aspects except those that concern no sample."""
    judged = []
    by_sample: dict[str, dict[str, Verdict | None]] = {}
    for aspect in benchmark.aspects:
        concerned = [sample for sample in samples if aspect.concerns(sample)]
        if not concerned:
            continue
        text = judging.rubric(aspect.rubric)
        verdicts = judging.judge.verdicts(concerned, text, progress)
        for sample, verdict in zip(concerned, verdicts, strict=True):
            by_sample.setdefault(sample.id, {})[aspect.name] = verdict
        name = "score" if text.wants_pred else aspect.name
        judged.append(JudgedAspect(name, text.wants_pred, concerned, verdicts))
    several = len(benchmark.aspects) > 1
    return [_with_verdicts(sample, by_sample.get(sample.id, {}), several) for sample in samples], judged


def _with_verdicts(sample: Sample, verdicts: Mapping[str, Verdict | None], several: bool) -> Sample:
    if not several:
        return replace(sample, judge=next(iter(verdicts.values()), None))
    failed = next((verdict for verdict in verdicts.values() if verdict and verdict.error), None)
    return replace(sample, judge=failed, judges=verdicts)


def judging_cost(benchmark: Benchmark, samples: Sequence[Sample], judging: Judging) -> dict[str, dict[str, Any]]:
    """Return the cost of judging by aspect, as ``Judge.dry_run`` estimates it; no request is sent."""
    return {
        aspect.name: judging.judge.dry_run(
            [sample for sample in samples if aspect.concerns(sample)], judging.rubric(aspect.rubric)
        )
        for aspect in benchmark.aspects
    }


def format_cost(costs: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the result of :func:`judging_cost` with a line for each aspect."""
    return "\n".join(
        f"{aspect}: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in cost.items())
        for aspect, cost in costs.items()
    )


def describe_judge(benchmark: Benchmark, judging: Judging | None) -> dict[str, Any] | None:
    """Return what the results record about the judge, or None if answers are not judged."""
    if judging is None or not benchmark.aspects:
        return None
    texts = [judging.rubric(aspect.rubric).describe() for aspect in benchmark.aspects]
    if len(texts) == 1:
        return {**judging.judge.describe(), "rubric": texts[0]}
    # The texts are summed up in one version, so that the report can compare it with the paper's.
    versions = sorted({text["version"] for text in texts})
    return {**judging.judge.describe(), "rubric": {"version": ", ".join(versions), "texts": texts}}
