"""One evaluation from a benchmark's files to its report: what ``eval run`` and ``eval score`` do.

Several processes do the same: each asks its share and appends to its own file; the one that finds all answers there
makes the report. No process waits for another.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videollama2 import __version__
from videollama2.errors import DataError, MissingDependencyError
from videollama2.eval.items import PUBLISHED, Benchmark, Item, Row
from videollama2.eval.rows import (
    Judging,
    describe_judge,
    format_cost,
    judge_rows,
    judging_cost,
    make_row,
    option_metrics,
)
from videollama2.eval.runner import AnswerOptions, Runner, missing_media, open_engine, share
from videollama2.eval.store import AnswerStore, read_model, read_run, write_samples

SHOWN = 5


@dataclass(frozen=True)
class ModelChoice:
    """Which model, and how it is opened; ``options`` are of :func:`videollama2.model_init`."""

    path: str
    base: str | None = None
    dtype: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """What answers depend on. Device and dtype are written out, since their defaults depend on the machine; they
        and the attention's implementation round differently."""
        from videollama2.checkpoints import default_device
        from videollama2.checkpoints.placement import as_dtype
        from videollama2.eval.fingerprint import model_revision

        device = str(self.options.get("device") or default_device())
        dtype = as_dtype(self.dtype, device)
        bits = [name for name in ("load_8bit", "load_4bit") if self.options.get(name)]
        return {
            "model_revision": model_revision(self.path, self.base),
            "dtype": str(dtype).removeprefix("torch."),
            "quantization": bits[0].removeprefix("load_") if bits else None,
            "device": device.split(":")[0],
            "attention": self.options.get("attn_implementation") or "sdpa",
        }


@dataclass(frozen=True)
class Plan:
    """Everything one evaluation needs.

    Attributes:
        limit, offset: ask only so many items, from there on.
        batch_size: questions decoded together; None: what memory allows. Answers do not depend on it.
        retry_failed: ask again what failed in a former run.
        rank, world: this process and how many there are.
        dry_run: say what judging would take instead of judging.
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

    def items(self) -> list[Item]:
        """The items asked.

        Raises:
            DataError: a broken annotation file, or nothing left after ``offset`` and ``limit``.
        """
        found = self.benchmark.load(self.data)
        chosen = found[self.offset :] if self.limit is None else found[self.offset : self.offset + self.limit]
        if not chosen:
            bounds = f"offset {self.offset}, limit {self.limit}"
            raise DataError(f"{self.data}: of {len(found)} questions none is left ({bounds})")
        return chosen

    def configuration(self, items: Sequence[Item]) -> dict[str, Any]:
        """Everything that answers depend on."""
        return {
            "project_version": __version__,
            "benchmark": self.benchmark.name,
            "benchmark_version": self.benchmark.version,
            "settings": self.benchmark.settings(),
            "items": items_digest(items),
            "texts": texts_digest(self.benchmark.texts(items, self.data)),
            **self.model.describe(),
            "generation": self.options.describe(),
        }


def items_digest(items: Sequence[Item]) -> str:
    """Changes with every question, prompt, clip and answer."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps([item.id, *item.clip, item.instruction, item.answer, item.options]).encode())
    return digest.hexdigest()[:16]


def texts_digest(files: Sequence[Path]) -> str | None:
    """Changes with the name and content of any of these files, and with one more or one less; None without files."""
    if not files:
        return None
    digest = hashlib.sha256()
    for path in sorted(files):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(json.dumps([path.name, content]).encode())
    return digest.hexdigest()[:16]


def run(plan: Plan, say: Callable[[str], None] = print) -> dict[str, Any] | None:
    """Ask what is left of this process's share, and report if nothing is left of all.

    Returns:
        the content of results.json, or None where answers of other processes are outstanding.

    Raises:
        VideoLlama2Error: data, model, output folder or judge cannot be used.
    """
    items = plan.items()
    _tell_missing(plan, items)
    about = {
        "data": str(plan.data.resolve()),
        "model": plan.model.path,
        "model_base": plan.model.base,
        "limit": plan.limit,
        "offset": plan.offset,
    }
    store = AnswerStore(plan.output, plan.configuration(items), about)
    answered = store.read()
    mine = share(items, plan.rank, plan.world)
    left = [item for item in mine if not _done(answered.get(item.id), plan.retry_failed)]
    with store.shard(plan.rank, plan.world) as writer:
        if left:
            _answer(plan, store, left, len(mine), writer.append)
    answers, gaps = store.merge([item.id for item in items])
    if gaps:
        say(f"process {plan.rank} of {plan.world} is done; {len(gaps)} of {len(items)} answers are still to come")
        return None
    if not left and plan.rank:
        return None  # a finished run is reported again by the first process alone
    with store.merging() as alone:
        return report(plan, store.folder, items, answers, say) if alone else None


def report(
    plan: Plan, folder: Path, items: Sequence[Item], answers: Sequence[Mapping[str, Any]], say: Callable[[str], None]
) -> dict[str, Any] | None:
    """Score answers, write samples, submission files and the report, and say the numbers; None for a dry run."""
    rows = [make_row(plan.benchmark, item, answer, plan.protocol) for item, answer in zip(items, answers, strict=True)]
    if plan.dry_run and plan.judging is not None:
        say(format_cost(judging_cost(plan.benchmark, rows, plan.judging)))
        return None
    former = folder / "results.json"
    if plan.benchmark.aspects and plan.judging is None and former.is_file():
        say(f"{former} is kept as it is: no judge is given now")
        return json.loads(former.read_text(encoding="utf-8"))
    rows, metrics = _metrics(plan, rows, say)
    write_samples(folder, rows)
    submissions = plan.benchmark.write_submission(items, rows, folder)
    return write_results(folder, header(plan, folder), rows, metrics, submissions, say)


def _metrics(plan: Plan, rows: list[Row], say: Callable[[str], None]) -> tuple[list[Row], list[dict[str, Any]]]:
    if not plan.benchmark.aspects:
        return rows, option_metrics(plan.benchmark, rows)
    if plan.judging is None:
        say(f"{plan.benchmark.title} is judged, and no judge is given. The answers are saved; next:")
        say(f"  videollama2 eval score {plan.output} --judge-model NAME   (or local, which compares texts)")
        return rows, []
    return judge_rows(plan.benchmark, rows, plan.judging, plan.progress)


def header(plan: Plan, folder: Path) -> dict[str, Any]:
    """What the results say about how they came about."""
    former = read_run(folder)
    asked, model = former["configuration"], read_model(folder)
    return {
        "benchmark": plan.benchmark.name,
        "model": plan.model.path,
        "model_base": plan.model.base,
        "revision": asked["model_revision"],
        "dtype": asked["dtype"],
        "quantization": asked["quantization"],
        "device": asked.get("device"),
        "attention": asked.get("attention"),
        "frames": asked["generation"]["num_frames"] or model.get("frames"),
        "generation": {**asked["generation"], "max_new_tokens": model.get("max_new_tokens")},
        "protocol": plan.protocol,
        "judge": describe_judge(plan.benchmark, plan.judging),
        "configuration_hash": former["hash"],
        **asked["settings"],
    }


def write_results(
    folder: Path,
    head: Mapping[str, Any],
    rows: Sequence[Row],
    metrics: Sequence[Mapping[str, Any]],
    submissions: Sequence[Path],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Write the report and say its tables."""
    from videollama2.eval.report.tables import write_report

    summary = {"metrics": list(metrics), "submissions": [path.name for path in submissions]}
    try:
        write_report(folder, head, rows, summary)
    except MissingDependencyError as error:  # tables are written; only the chart is not
        say(f"no chart: {error}")
    say((folder / "results.md").read_text(encoding="utf-8"))
    made = [name for name in ("results.json", "results.md", "results.png", "samples.jsonl") if (folder / name).exists()]
    say(f"written to {folder}: {', '.join([*made, *(path.name for path in submissions)])}")
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def _tell_missing(plan: Plan, items: Sequence[Item]) -> None:
    missing = missing_media(items, plan.data)
    if not missing:
        return
    shown = ", ".join(missing[:SHOWN]) + (f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else "")
    text = f"{len(missing)} media files are missing below {plan.data}: {shown}"
    if plan.strict_data:
        raise DataError(f"{text} (--strict-data)")
    if plan.rank == 0:
        print(f"warning: {text}; their questions are counted as missing media", file=sys.stderr)


def _done(answer: Mapping[str, Any] | None, retry_failed: bool) -> bool:
    return answer is not None and not (retry_failed and answer["error"] is not None)


def _answer(
    plan: Plan, store: AnswerStore, items: Sequence[Item], of: int, append: Callable[[dict[str, Any]], None]
) -> None:
    from tqdm import tqdm
    from transformers.utils import logging

    from videollama2 import model_init

    logging.disable_progress_bar()  # the one bar is ours

    options = {"model_base": plan.model.base, "dtype": plan.model.dtype, **plan.model.options}
    model, processor, _ = model_init(plan.model.path, **options)
    name = plan.benchmark.name + (f" {plan.rank + 1}/{plan.world}" if plan.world > 1 else "")
    with (
        open_engine(model, processor, plan.batch_size) as engine,
        tqdm(total=of, initial=of - len(items), desc=name, unit=" answers", disable=not _shows(plan)) as bar,
    ):
        runner = Runner(engine, plan.benchmark, plan.data, plan.options, plan.strict_data)
        store.write_model(
            {"frames": runner.num_frames, "max_new_tokens": runner.max_new_tokens, "project_version": __version__}
        )

        def keep(answer: dict[str, Any]) -> None:
            append(answer)
            bar.update()

        runner.run(items, keep)


def _shows(plan: Plan) -> bool:
    """One bar: the shares are equal, so the first process's speaks for all."""
    return plan.progress and plan.rank == 0
