"""Judges all aspects of a benchmark, estimates the cost of judging, and describes the judge for the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from videollama2.eval.items import PUBLISHED, Benchmark
from videollama2.eval.judging.judge import Judge
from videollama2.eval.judging.reply import written_pred
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
    """The samples that one aspect concerns, with a verdict for each (None for a sample without an answer).

    For ``exact_yes`` see :class:`~videollama2.eval.measures.Aspect`. ``wants_score``: whether verdicts have a score.
    """

    name: str
    wants_pred: bool
    samples: list[Sample]
    verdicts: list[Verdict | None]
    exact_yes: bool = False
    wants_score: bool = True

    def is_yes(self, verdict: Verdict, protocol: str) -> bool:
        """Whether a verdict counts as right under a protocol."""
        if verdict.pred != "yes" or protocol != PUBLISHED or not self.exact_yes or verdict.raw is None:
            return verdict.pred == "yes"
        return written_pred(verdict.raw) == "yes"


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
        verdicts = _verdicts(judging.judge, concerned, text, progress)
        for sample, verdict in zip(concerned, verdicts, strict=True):
            by_sample.setdefault(sample.id, {})[aspect.name] = verdict
        name = "score" if text.wants_pred else aspect.name
        judged.append(JudgedAspect(name, text.wants_pred, concerned, verdicts, aspect.exact_yes, not text.chooses))
    several = len(benchmark.aspects) > 1
    return [_with_verdicts(sample, by_sample.get(sample.id, {}), several) for sample in samples], judged


def _verdicts(judge: Judge, samples: Sequence[Sample], rubric: Rubric, progress: bool) -> list[Verdict | None]:
    """Return a verdict for each sample; if the rubric compares single references, their mean."""
    if not rubric.per_reference:
        return judge.verdicts(samples, rubric, progress)
    parts = [_one_reference_each(sample) for sample in samples]
    given = iter(judge.verdicts([part for own in parts for part in own], rubric, progress))
    return [_mean([next(given) for _ in own]) for own in parts]


def _one_reference_each(sample: Sample) -> list[Sample]:
    """Return a sample for each reference answer; a sample without an answer of the model is not repeated."""
    references = sample.answer if isinstance(sample.answer, list) and not sample.error else [sample.answer]
    return [replace(sample, answer=reference) for reference in references]


def _mean(verdicts: Sequence[Verdict | None]) -> Verdict | None:
    """Return the verdict with the mean score. If one failed, the result is that one, and no mean of the others."""
    failed = next((each for each in verdicts if each is None or each.error is not None), verdicts[0])
    if failed is None or failed.error is not None or len(verdicts) == 1:
        return failed
    given = [each for each in verdicts if each is not None]
    scores = [each.score for each in given if each.score is not None]
    return Verdict(score=sum(scores) / len(scores), raw="\n".join(each.raw or "" for each in given))


def _with_verdicts(sample: Sample, verdicts: Mapping[str, Verdict | None], several: bool) -> Sample:
    if not several:
        return replace(sample, judge=next(iter(verdicts.values()), None))
    failed = next((verdict for verdict in verdicts.values() if verdict and verdict.error), None)
    return replace(sample, judge=failed, judges=verdicts)


def judging_cost(benchmark: Benchmark, samples: Sequence[Sample], judging: Judging) -> dict[str, dict[str, Any]]:
    """Return the cost of judging by aspect, as ``Judge.dry_run`` estimates it; no request is sent."""
    return {
        aspect.name: _cost(judging, [sample for sample in samples if aspect.concerns(sample)], aspect.rubric)
        for aspect in benchmark.aspects
    }


def _cost(judging: Judging, samples: Sequence[Sample], name: str) -> dict[str, Any]:
    text = judging.rubric(name)
    if text.per_reference:
        samples = [part for sample in samples for part in _one_reference_each(sample)]
    return judging.judge.dry_run(samples, text)


def format_cost(costs: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the result of :func:`judging_cost` with a line for each aspect."""
    return "\n".join(
        f"{aspect}: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in cost.items())
        for aspect, cost in costs.items()
    )


def describe_judge(benchmark: Benchmark, judging: Judging) -> dict[str, Any]:
    """Return what the results record about the judge and the texts that it was asked with."""
    texts = [judging.rubric(aspect.rubric).describe() for aspect in benchmark.aspects]
    if len(texts) == 1:
        return {**judging.judge.describe(), "rubric": texts[0]}
    # The texts are summed up in one version, so that the report can compare it with the paper's.
    versions = sorted({text["version"] for text in texts})
    return {**judging.judge.describe(), "rubric": {"version": ", ".join(versions), "texts": texts}}
