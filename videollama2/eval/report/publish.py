"""Publishes results: writes them beside the old ones, swaps all of them in, and never replaces better ones."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from videollama2.errors import DataError, MissingDependencyError
from videollama2.eval.report.document import Header, Report, build_report
from videollama2.eval.report.metrics import Metric
from videollama2.eval.report.tables import write_report
from videollama2.eval.samples import Sample
from videollama2.eval.store import write_samples

RESULTS_FILE, NOT_TAKEN = "results.json", "results-not-taken"
SHOWN_FILES = (RESULTS_FILE, "results.md", "results.png", "samples.jsonl")


@dataclass(frozen=True)
class Published:
    """A report and a one-line problem, which is empty for a successful evaluation."""

    report: Report
    problem: str = ""


def publish(
    folder: Path,
    header: Header,
    samples: Sequence[Sample],
    metrics: Sequence[Metric],
    say: Callable[[str], None],
    write_submission: Callable[[Path], list[Path]] = lambda folder: [],
    own_table: str = "",
    force: bool = False,
) -> Published:
    """Write samples, submission files and report, and print the tables with ``say``.

    Existing results are kept if fewer questions have a verdict now (the judge failed, or videos are gone). The new
    results are then written to ``results-not-taken/``. With ``force``, they replace existing results in any case.

    Raises:
        DataError: the files cannot be written; existing results are unchanged.
    """
    with _stage(folder) as stage:
        write_samples(stage, samples)
        submissions = [path.name for path in write_submission(stage)]
        report = build_report(header, samples, metrics, submissions, own_table)
        try:
            write_report(stage, report)
        except MissingDependencyError as error:  # the tables have been written, only the chart is missing
            say(f"no chart: {error}")
        say((stage / "results.md").read_text(encoding="utf-8"))
        problem = _why_no_success(report, samples)
        former, now = _verdicts_there(folder / RESULTS_FILE), _verdicts(report)
        if now < former and not force:
            _replace_folder(stage, folder / NOT_TAKEN)
            kept = f"{folder / RESULTS_FILE} is kept: it has {former} verdicts, and now there are {now}"
            return Published(report, f"{kept}; these results are in {folder / NOT_TAKEN}, and --force takes them")
        made = _take(stage, folder)
    say(f"written to {folder}: {', '.join(made)}")
    return Published(report, problem)


def _why_no_success(report: Report, samples: Sequence[Sample]) -> str:
    """Return the problem of an evaluation: the judge gave no reply, or no question is scored though some should be."""
    verdicts = [verdict for sample in samples for verdict in sample.verdicts().values()]
    silent = sum(verdict is not None and verdict.unanswered for verdict in verdicts)
    if silent:
        return (
            f"the judge gave no reply to {silent} of {len(verdicts)} questions; the same command asks only these again"
        )
    due = [metric for metric in report.metrics if metric.overall.lower_bound is not None]
    if due and not _verdicts(report):
        counts = due[0].counts
        return (
            f"none of {counts.total} questions is scored ({counts.missing_media} with missing or unreadable media, "
            f"{counts.failed} failed, {counts.judge_failed} without a readable verdict)"
        )
    return ""


def _verdicts(report: Report) -> int:
    return sum(metric.overall.n for metric in report.metrics)


def _verdicts_there(path: Path) -> int:
    """Return the number of verdicts in existing results, or 0 if there are no readable ones."""
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))["metrics"]
        return sum(int(metric["overall"]["n"]) for metric in metrics)
    except (OSError, ValueError, LookupError, TypeError):
        return 0


@contextmanager
def _stage(folder: Path) -> Iterator[Path]:
    stage = folder / f".results.{os.getpid()}"
    try:
        stage.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: results cannot be written ({error.strerror or error})") from error
    try:
        yield stage
    except OSError as error:
        raise DataError(f"{folder}: results cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            shutil.rmtree(stage)


def _take(stage: Path, folder: Path) -> list[str]:
    """Move every file to its place and return the names. results.json is last, since it marks results as complete."""
    names = [path.name for path in stage.iterdir()]
    if "results.png" not in names:  # a chart of the old numbers would be wrong
        (folder / "results.png").unlink(missing_ok=True)
    ordered = [*(name for name in SHOWN_FILES if name in names), *sorted(set(names) - set(SHOWN_FILES))]
    # Each file is replaced in one step. Whoever reads meanwhile sees an old or a new file, and results.json last.
    for name in reversed(ordered):
        os.replace(stage / name, folder / name)
    return ordered


def _replace_folder(stage: Path, target: Path) -> None:
    if target.exists():
        shutil.rmtree(target)
    os.replace(stage, target)
