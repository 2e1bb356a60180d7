"""Runs one evaluation, from a benchmark's files to its report: the work of ``eval run`` and ``eval score``.

If several processes run an evaluation, each asks its share of the questions and appends the answers to its own file.
The process that finds all answers complete makes the report. No process waits for another.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videollama2 import __version__
from videollama2.commands import hides_bar
from videollama2.errors import DataError, some_of
from videollama2.eval.coverage import QuestionCount
from videollama2.eval.items import PUBLISHED, Benchmark, Item
from videollama2.eval.report.document import Header
from videollama2.eval.report.metrics import Metric
from videollama2.eval.report.publish import RESULTS_FILE, Published, publish
from videollama2.eval.running.clips import missing_media, share_of_process
from videollama2.eval.running.runner import AnswerOptions, Runner, open_evaluation_engine
from videollama2.eval.samples import Sample, StoredAnswer
from videollama2.eval.scoring import judged_metrics, make_sample, read_metrics
from videollama2.eval.store import AnswerStore, read_model, read_run
from videollama2.flags import quantization_asked

if TYPE_CHECKING:  # benchmarks without a judge must not import the judging package
    from videollama2.eval.judging.aspects import Judging


@dataclass(frozen=True)
class ModelChoice:
    """The model to evaluate and how it is loaded; ``options`` are passed to :func:`videollama2.model_init`."""

    path: str
    base: str | None = None
    dtype: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Return the properties of the model on which answers depend.

        Device, dtype and attention implementation are among them, because they round differently. Their values are
        written out, because the defaults depend on the machine.
        """
        from videollama2.checkpoints import default_device
        from videollama2.checkpoints.fingerprint import model_revision
        from videollama2.checkpoints.placement import as_dtype

        device = str(self.options.get("device") or default_device())
        dtype = as_dtype(self.dtype, device)
        return {
            "model_revision": model_revision(self.path, self.base),
            "dtype": str(dtype).removeprefix("torch."),
            "quantization": quantization_asked(self.options),
            "device": device.split(":")[0],
            "attention": self.options.get("attn_implementation") or "sdpa",
        }


@dataclass(frozen=True)
class EvaluationPlan:
    """The settings of one evaluation.

    Attributes:
        data, output: the benchmark's data folder, and the folder of answers and results.
        protocol: the reading that comes first in the results.
        limit, offset: ask only ``limit`` items, after skipping ``offset``.
        batch_size: questions answered together, or None for as many as memory allows. Answers do not depend on it.
        strict_data: stop at a medium that is missing or unreadable.
        retry_failed: ask questions again that failed in an earlier run.
        rank, world: number of this process, and number of processes.
        dry_run: print what judging would cost instead of judging.
        force: replace existing results also by results with fewer verdicts.
    """

    benchmark: Benchmark
    data: Path
    output: Path
    model: ModelChoice
    options: AnswerOptions = AnswerOptions()
    protocol: str = PUBLISHED
    judging: Judging | None = None
    limit: int | None = None
    offset: int = 0
    batch_size: int | None = None
    strict_data: bool = False
    retry_failed: bool = False
    rank: int = 0
    world: int = 1
    progress: bool = True
    dry_run: bool = False
    force: bool = False

    def select(self) -> tuple[list[Item], QuestionCount]:
        """Return the items to ask, and their number in relation to the whole benchmark.

        Raises:
            DataError: an annotation file is malformed, or ``offset`` and ``limit`` leave no item.
        """
        loaded = self.benchmark.asked(self.data)
        end = None if self.limit is None else self.offset + self.limit
        chosen = loaded[self.offset : end]
        if not chosen:
            bounds = f"offset {self.offset}, limit {self.limit}"
            raise DataError(f"{self.data}: of {len(loaded)} questions none is left ({bounds})")
        return chosen, QuestionCount(len(chosen), len(loaded), self.offset, self.benchmark.questions)

    def items(self) -> list[Item]:
        """Return the items to ask; see :meth:`select`."""
        return self.select()[0]

    def configuration(self, items: Sequence[Item]) -> dict[str, Any]:
        """Return everything on which answers depend."""
        return {
            "project_version": __version__,
            "benchmark": self.benchmark.name,
            "benchmark_version": self.benchmark.version,
            "settings": self.benchmark.all_settings(),
            "items": items_digest(items),
            "texts": texts_digest(self.benchmark.texts(items, self.data)),
            **self.model.describe(),
            "generation": self.options.describe(),
        }


def items_digest(items: Sequence[Item]) -> str:
    """Return a digest that changes with every question, prompt, clip and reference answer."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps([item.id, *item.clip, item.instruction, item.answer, item.options]).encode())
    return digest.hexdigest()[:16]


def texts_digest(files: Sequence[Path]) -> str | None:
    """Return a digest of the names and contents of all files, or None without files."""
    if not files:
        return None
    digest = hashlib.sha256()
    for path in sorted(files):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(json.dumps([path.name, content]).encode())
    return digest.hexdigest()[:16]


def run_evaluation(plan: EvaluationPlan, say: Callable[[str], None] = print) -> Published | None:
    """Ask the remaining questions of this process's share, and report if all questions of all processes are answered.

    Returns:
        The report, or None if answers of other processes are outstanding or existing results are kept.

    Raises:
        VideoLlama2Error: data, model, output folder or judge cannot be used.
    """
    # Every process selects the same items in the same order, so that the shares below add up to the whole.
    items, questions = plan.select()
    _tell_missing(plan, items)
    about = {
        "data": str(plan.data.resolve()),
        "model": plan.model.path,
        "model_base": plan.model.base,
        "limit": plan.limit,
        "offset": plan.offset,
        "source_file": plan.benchmark.source_file and str(plan.benchmark.source_file.resolve()),
    }
    store = AnswerStore(plan.output, plan.configuration(items), about)
    mine = share_of_process(items, plan.rank, plan.world)
    with store.shard(plan.rank, plan.world) as writer:
        answered = store.read()  # we hold the shard, so no other process answers its questions now
        left = [item for item in mine if not _done(answered.get(item.id), plan.retry_failed)]
        if left:
            plan.benchmark.check_texts(left, plan.data)  # raise errors now and not after hours
            _answer(plan, store, left, len(mine), writer.append)
    # Every process looks whether all is answered when it is done. The last one to finish finds no gap, and reports.
    answers, gaps = store.merge([item.id for item in items])
    if gaps:
        say(f"process {plan.rank} of {plan.world} is done; {len(gaps)} of {len(items)} answers are still to come")
        return None
    if not left and plan.rank:
        return None  # only the first process reports a finished run again
    # Two processes may finish at the same moment and both find no gap. The one that gets the lock reports.
    with store.merging() as alone:
        return report(plan, store.folder, items, questions, answers, say) if alone else None


def report(
    plan: EvaluationPlan,
    folder: Path,
    items: Sequence[Item],
    questions: QuestionCount,
    answers: Sequence[StoredAnswer],
    say: Callable[[str], None],
) -> Published | None:
    """Score answers, write samples, submission files and the report, and print the numbers with ``say``.

    The result is None, and existing results are kept, in a dry run and for a judged benchmark without a judge.
    """
    samples = [
        make_sample(plan.benchmark, item, answer, plan.protocol) for item, answer in zip(items, answers, strict=True)
    ]
    if plan.dry_run and plan.judging is not None:
        from videollama2.eval.judging.aspects import format_cost, judging_cost

        say(format_cost(judging_cost(plan.benchmark, samples, plan.judging)))
        return None
    # Verdicts cost money and hours: a run that only adds answers must not put a report without them in their place.
    former = folder / RESULTS_FILE
    if plan.benchmark.aspects and plan.judging is None and former.is_file():
        say(f"{former} is kept as it is: no judge is given now")
        return None
    samples, metrics = _metrics(plan, samples, say)
    return publish(
        folder,
        header(plan, folder, items, questions),
        samples,
        metrics,
        say,
        lambda stage: plan.benchmark.write_submission(items, samples, stage),
        plan.benchmark.own_table(items, samples, plan.protocol),
        plan.force,
    )


def _metrics(
    plan: EvaluationPlan, samples: list[Sample], say: Callable[[str], None]
) -> tuple[list[Sample], list[Metric]]:
    if not plan.benchmark.aspects:
        return samples, read_metrics(plan.benchmark, samples)
    if plan.judging is None:
        say(f"{plan.benchmark.title} is judged, and no judge is given. The answers are saved; next:")
        say(f"  videollama2 eval score {plan.output} --judge-model NAME   (or local, which compares texts)")
        return samples, []
    return judged_metrics(plan.benchmark, samples, plan.judging, plan.progress)


def header(plan: EvaluationPlan, folder: Path, items: Sequence[Item], questions: QuestionCount) -> Header:
    """Return the head of the results, which says how they were made."""
    former = read_run(folder)
    asked, model = former["configuration"], read_model(folder)
    return Header(
        benchmark=plan.benchmark.name,
        model=plan.model.path,
        model_base=plan.model.base,
        revision=asked["model_revision"],
        dtype=asked["dtype"],
        quantization=asked["quantization"],
        device=asked.get("device"),
        attention=asked.get("attention"),
        frames=asked["generation"]["num_frames"] or model.get("frames"),
        generation={**asked["generation"], "max_new_tokens": model.get("max_new_tokens")},
        protocol=plan.protocol,
        judge=describe_judge_if_any(plan.benchmark, plan.judging),
        configuration_hash=former["hash"],
        questions=questions,
        supplements=[each for each in plan.benchmark.supplements(items, plan.data) if each.wanted],
        settings=asked["settings"],
    )


def describe_judge_if_any(benchmark: Benchmark, judging: Judging | None) -> dict[str, Any] | None:
    """Return what the results record about the judge, or None if answers are not judged."""
    if judging is None or not benchmark.aspects:
        return None
    from videollama2.eval.judging.aspects import describe_judge

    return describe_judge(benchmark, judging)


def _tell_missing(plan: EvaluationPlan, items: Sequence[Item]) -> None:
    for supplement in plan.benchmark.supplements(items, plan.data):
        if supplement.wanted and plan.rank == 0:
            print(f"{plan.benchmark.title}: {supplement.text()}", file=sys.stderr)
    missing = missing_media(items, plan.data)
    if not missing:
        return
    text = f"{len(missing)} media files are missing below {plan.data}: {some_of(missing)}"
    if plan.strict_data:
        raise DataError(f"{text} (--strict-data)")
    if plan.rank == 0:
        print(f"warning: {text}; their questions are counted as missing media", file=sys.stderr)


def _done(answer: StoredAnswer | None, retry_failed: bool) -> bool:
    return answer is not None and not (retry_failed and answer.error is not None)


def _answer(
    plan: EvaluationPlan, store: AnswerStore, items: Sequence[Item], of: int, append: Callable[[StoredAnswer], None]
) -> None:
    from tqdm import tqdm

    from videollama2 import model_init
    from videollama2.quiet import hide_library_bars

    hide_library_bars()  # the bar below is the only one
    options = {"model_base": plan.model.base, "dtype": plan.model.dtype, **plan.model.options}
    model, processor, _ = model_init(plan.model.path, **options)
    name = plan.benchmark.name + (f" {plan.rank + 1}/{plan.world}" if plan.world > 1 else "")
    with (
        open_evaluation_engine(model, processor, plan.batch_size) as engine,
        tqdm(total=of, initial=of - len(items), desc=name, unit=" answers", disable=hides_bar(_shows(plan))) as bar,
    ):
        runner = Runner(engine, plan.benchmark, plan.data, plan.options, plan.strict_data)
        store.write_model(
            {"frames": runner.num_frames, "max_new_tokens": runner.max_new_tokens, "project_version": __version__}
        )

        def keep(answer: StoredAnswer) -> None:
            append(answer)
            bar.update()

        runner.run(items, keep)
    if _shows(plan):
        print(f"{name}: {runner.work.text()}", file=sys.stderr)


def _shows(plan: EvaluationPlan) -> bool:
    """Whether this process shows a progress bar: only the first one does, since all shares are equal."""
    return plan.progress and plan.rank == 0
