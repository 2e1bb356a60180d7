"""Scores saved answers again, from an output folder of ``eval run`` or from a file that the published code wrote."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videollama2.errors import ConfigError, DataError
from videollama2.eval.benchmarks import benchmark, configured, names
from videollama2.eval.coverage import QuestionCount
from videollama2.eval.items import PUBLISHED, Benchmark, Item
from videollama2.eval.published_files import entries, read_published
from videollama2.eval.report.document import Header, build_report
from videollama2.eval.report.metrics import Metric
from videollama2.eval.report.publish import Published, publish
from videollama2.eval.report.tables import build_markdown
from videollama2.eval.running.run import describe_judge_if_any
from videollama2.eval.samples import Sample
from videollama2.eval.scoring import judged_metrics, read_metrics

if TYPE_CHECKING:  # benchmarks without a judge must not import the judging package
    from videollama2.eval.judging.aspects import Judging


def score_folder(args: argparse.Namespace) -> Published | None:
    """Score an output folder of ``eval run``, with the arguments of ``eval score``."""
    from videollama2.eval.running.run import EvaluationPlan, ModelChoice, items_digest, report
    from videollama2.eval.store import AnswerStore, read_run

    former = read_run(args.answers)
    asked, about = former["configuration"], former["about"]
    found = configured(about.get("source_file") or asked["benchmark"], **asked["settings"])
    if found.aspects and not args.judge_model:
        raise _needs_judge(found)
    if args.benchmark and benchmark(args.benchmark).name != found.name:
        raise ConfigError(f"{args.answers} holds answers of {found.name}, not of {args.benchmark}")
    if args.output:
        raise ConfigError("--output is for files of the published code; a folder of answers is scored in place")
    plan = EvaluationPlan(
        benchmark=found,
        data=args.data or Path(about["data"]),
        output=args.answers,
        model=ModelChoice(about["model"], about["model_base"]),
        protocol=args.protocol,
        judging=choose_judge(args, found, args.answers),
        limit=about["limit"],
        offset=about["offset"],
        progress=not args.no_progress,
        dry_run=args.dry_run,
        force=args.force or args.partial,
    )
    items, questions = plan.select()
    if items_digest(items) != asked["items"]:
        raise DataError(f"{plan.data}: its questions are not those that {args.answers} holds answers to")
    answers, gaps = AnswerStore(args.answers, asked, about).merge([item.id for item in items])
    if gaps and not args.partial:
        raise DataError(
            f"{args.answers}: {len(gaps)} of {len(items)} answers are missing, {gaps[0]!r} first; repeat the "
            "command to continue where it stopped, or score what is there with --partial"
        )
    missing = set(gaps)
    there = [item for item in items if item.id not in missing]
    return report(plan, args.answers, there, replace(questions, asked=len(there)), answers, print)


def score_file(args: argparse.Namespace) -> Published | None:
    """Score a file of the published code, with the arguments of ``eval score``."""
    if not args.benchmark:
        raise ConfigError(f"{args.answers} is a file: say with --benchmark what it is about ({', '.join(names())})")
    found = benchmark(args.benchmark)
    items = found.load(args.data) if args.data else []
    samples = read_published(args.answers, found, items)
    questions = _check_questions(args.answers, samples, items, found, args.partial)
    judging = choose_judge(args, found, args.output)
    if args.dry_run:
        _print_cost(found, samples, judging)
        return None
    samples, metrics = _metrics(found, samples, judging, not args.no_progress)
    head = Header(
        benchmark=found.name,
        model=f"{args.answers.name} (published code)",
        revision=None,
        dtype=None,
        frames=None,
        generation=None,
        protocol=PUBLISHED,
        judge=describe_judge_if_any(found, judging),
        questions=questions,
    )
    published = Published(build_report(head, samples, metrics))
    if args.output:
        published = publish(args.output, head, samples, metrics, print, force=args.force)
    else:
        print(build_markdown(published.report))
    if found.name == "videomme":
        from videollama2.eval.report.videomme_official import official_report

        print(official_report(entries(args.answers)))
    return published


def _check_questions(
    path: Path, samples: Sequence[Sample], items: Sequence[Item], found: Benchmark, partial: bool
) -> QuestionCount:
    """Check that each question is answered once, and that none is missing unless ``partial`` allows it.

    In some formats the lines have no question id; of those, equal questions are counted and reported.

    Raises:
        DataError: an id occurs twice, or there are more answers than questions, or fewer without ``partial``.
    """
    twice = [name for name, count in Counter(sample.id for sample in samples).items() if count > 1]
    if twice:
        count = sum(sample.id == twice[0] for sample in samples)
        raise DataError(f"{path}: {len(twice)} questions are there more than once, {twice[0]!r} {count} times")
    if items and len(samples) > len(items):
        raise DataError(f"{path}: holds {len(samples)} answers to {len(items)} questions; some are there twice")
    if items and len(samples) < len(items) and not partial:
        raise DataError(
            f"{path}: {len(items) - len(samples)} of {len(items)} questions are missing; --partial scores what is there"
        )
    same = Counter(str((sample.category, sample.group, sample.question, sample.answer)) for sample in samples)
    repeated = sum(count - 1 for count in same.values()) if found.aspects else 0
    if repeated:
        print(f"note: {path}: {repeated} of {len(samples)} answers are to a question that is there already")
    return QuestionCount(len(samples), len(items) or len(samples), official=found.questions)


def _metrics(
    found: Benchmark, samples: list[Sample], judging: Judging | None, progress: bool
) -> tuple[list[Sample], list[Metric]]:
    if not found.aspects:
        return samples, read_metrics(found, samples, list(samples[0].protocols or (PUBLISHED,)))
    if judging is None:
        raise _needs_judge(found)
    return judged_metrics(found, samples, judging, progress)


def _needs_judge(found: Benchmark) -> ConfigError:
    return ConfigError(f"{found.title} is judged: give --judge-model (local compares texts, offline)")


def _print_cost(found: Benchmark, samples: Sequence[Sample], judging: Judging | None) -> None:
    """Print what judging these samples would cost."""
    if judging is None:
        raise ConfigError("--dry-run tells what judging would cost: give --judge-model")
    from videollama2.eval.judging.aspects import format_cost, judging_cost

    print(format_cost(judging_cost(found, samples, judging)))


def choose_judge(args: argparse.Namespace, found: Benchmark, folder: Path | None) -> Judging | None:
    """Return the judge that the options describe, if any.

    Its rubrics are loaded here, so that a missing one raises an error before hours of answering.
    """
    if not args.judge_model:
        return None
    if not found.aspects:
        raise ConfigError(f"{found.title} is multiple choice: it takes no judge (--judge-model)")
    from videollama2.eval.judging.aspects import Judging
    from videollama2.eval.judging.judge import LocalJudge, OpenAIJudge
    from videollama2.eval.judging.rubrics import PUBLISHED_SAMPLING

    if args.judge_model == "local":
        judging = Judging(LocalJudge(), "own" if args.rubric == PUBLISHED else args.rubric)
    else:
        sampling: dict[str, Any] = dict(PUBLISHED_SAMPLING) if args.protocol == PUBLISHED else {"temperature": 0.0}
        if args.judge_temperature is not None:
            sampling["temperature"] = args.judge_temperature
        if args.judge_max_tokens is not None:
            sampling["max_tokens"] = args.judge_max_tokens
        judge = OpenAIJudge(
            args.judge_model,
            base_url=args.judge_url,
            azure_endpoint=args.judge_azure_endpoint,
            azure_api_version=args.judge_azure_api_version,
            concurrency=args.judge_concurrency,
            retries=args.judge_retries,
            timeout=args.judge_timeout,
            cache_dir=None if folder is None else folder / "judge_cache",
            **sampling,
        )
        judging = Judging(judge, args.rubric)
    for aspect in found.aspects:
        judging.rubric(aspect.rubric)
    return judging
