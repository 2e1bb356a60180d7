"""Results put into their folder: written beside first, then swapped in whole, and never in place of better ones."""

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
    """A report, and in one line why it is no success; empty where it is one."""

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
    """Write samples, submission files and report, and say the tables.

    Results that are there already stay where fewer questions have a verdict now (the judge failed, videos are gone):
    then the new ones lie beside them in ``results-not-taken/``. ``force`` replaces them all the same.

    Raises:
        DataError: the disk does not take the files; what stood there before is whole.
    """
    with _stage(folder) as stage:
        write_samples(stage, samples)
        submissions = [path.name for path in write_submission(stage)]
        report = build_report(header, samples, metrics, submissions, own_table)
        try:
            write_report(stage, report)
        except MissingDependencyError as error:  # tables are written; only the chart is not
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
    """A judge that gave no reply, or nothing scored though there was something to score."""
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
    """How many verdicts the results of a former run rest on; 0 where there are none that can be read."""
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
    """Move every file to its place, results.json last: with it the results are there. Returns their names."""
    names = [path.name for path in stage.iterdir()]
    if "results.png" not in names:  # a chart of former numbers would be wrong
        (folder / "results.png").unlink(missing_ok=True)
    ordered = [*(name for name in SHOWN_FILES if name in names), *sorted(set(names) - set(SHOWN_FILES))]
    for name in reversed(ordered):
        os.replace(stage / name, folder / name)
    return ordered


def _replace_folder(stage: Path, target: Path) -> None:
    if target.exists():
        shutil.rmtree(target)
    os.replace(stage, target)
