"""Runs the commands of :mod:`videollama2.eval.cli`, each by a function that returns the exit code."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videollama2.errors import ConfigError, DataError
from videollama2.eval.benchmarks import benchmark, configured, names
from videollama2.eval.controls import CONTROL_OPTIONS
from videollama2.flags import AnswerFlags, frame_options
from videollama2.ranks import own_device, rank_and_world

if TYPE_CHECKING:
    from videollama2.eval.report.publish import Published

DATA_ROOT, OUTPUT_ROOT = Path("eval"), Path("eval_output")
SHOWN_MISSING = 20


def eval_run(args: argparse.Namespace) -> int:
    """Run ``eval run`` in one process of an evaluation; torchrun's environment variables say which process it is."""
    from videollama2.eval.report.curves import check_writers_installed
    from videollama2.eval.rescore import choose_judge
    from videollama2.eval.running.run import EvaluationPlan, ModelChoice, run_evaluation
    from videollama2.eval.running.runner import AnswerOptions
    from videollama2.media.frames import FrameSampling

    settings = _settings(args)
    check_writers_installed(args.tensorboard, args.wandb)
    found = configured(args.benchmark, **settings)
    if args.dry_run and not args.judge_model:
        raise ConfigError("--dry-run tells what judging would cost: give --judge-model")
    if args.sampling == "fps" and (args.num_frames is not None or settings["subtitles"]):
        raise ConfigError(
            "--sampling fps takes its number of frames from the clip: leave out --num-frames and --subtitles"
        )
    checked = {name: value for name, value in frame_options(args).items() if name != "sampling"}
    FrameSampling(**checked)  # raises the same error as other commands for a number out of range
    rank, world = rank_and_world()
    options = {
        "device": args.device or own_device(),
        "attn_implementation": args.attn_implementation,
        "load_8bit": args.load_8bit,
        "load_4bit": args.load_4bit,
    }
    folder = "_".join(
        [found.name, *(value if isinstance(value, str) else name for name, value in settings.items() if value)]
    )
    output = args.output or OUTPUT_ROOT / folder / Path(args.model_path).name
    plan = EvaluationPlan(
        benchmark=found,
        data=args.data or found.default_data(DATA_ROOT),
        output=output,
        model=ModelChoice(args.model_path, args.model_base, args.dtype, options),
        options=AnswerOptions(
            num_frames=args.num_frames,
            frames_over=args.sampling,
            video_backend=args.video_backend,
            **asdict(AnswerFlags.of(args)),
        ),
        protocol=args.protocol,
        judging=choose_judge(args, found, output),
        limit=args.limit,
        offset=args.offset,
        batch_size=args.batch_size,
        strict_data=args.strict_data,
        retry_failed=args.retry_failed,
        rank=rank,
        world=world,
        progress=not args.no_progress,
        dry_run=args.dry_run,
        force=args.force,
    )
    return finish(run_evaluation(plan), args)


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options that belong to single benchmarks; the value of an option that is not given is None."""
    given = {name: getattr(args, name, None) for name in ("subtitles", "split", "prompt")}
    return {**given, **{name: getattr(args, name, False) or None for name in CONTROL_OPTIONS}}


def eval_score(args: argparse.Namespace) -> int:
    """Run ``eval score`` on an output folder, or on a file of the published code."""
    from videollama2.eval.report.curves import check_writers_installed
    from videollama2.eval.rescore import score_file, score_folder

    check_writers_installed(args.tensorboard, args.wandb)
    if args.answers.is_dir():
        return finish(score_folder(args), args)
    if not args.answers.is_file():
        raise DataError(f"{args.answers}: no such file or folder")
    return finish(score_file(args), args)


def finish(published: Published | None, args: argparse.Namespace) -> int:
    """Return the exit code, which is 1 if the report has a problem; the problem is printed on one line.

    Numbers without a problem are also written where ``args.tensorboard`` and ``args.wandb`` say.
    """
    from videollama2.eval.report.curves import write_tensorboard, write_wandb

    if published is None or not published.problem:
        if published is not None and args.tensorboard is not None:
            write_tensorboard(published.report, args.tensorboard)
        if published is not None and args.wandb is not None:
            write_wandb(published.report, args.wandb)
        return 0
    print(f"videollama2 eval: {published.problem}", file=sys.stderr)
    return 1


def eval_compare(args: argparse.Namespace) -> int:
    """Run ``eval compare``."""
    from videollama2.eval.report.compare import compare, format_comparisons

    found = compare(args.a, args.b)
    if args.json:
        rows = [{**asdict(each), "difference": each.difference._asdict()} for each in found]
        print(json.dumps(rows, indent=1))
    else:
        print(format_comparisons(found, str(args.a), str(args.b)))
    return 0


def eval_show(args: argparse.Namespace) -> int:
    """Run ``eval show``."""
    from videollama2.eval.atomic import write_atomically
    from videollama2.eval.show import QuestionFilter, evaluation_page

    choice = QuestionFilter(args.wrong, args.category, args.limit, not args.no_frames)
    page = evaluation_page([args.folder, *([args.other] if args.other else [])], choice, args.data)
    path = args.output or args.folder / "show.html"
    write_atomically(path, page.to_html())
    print(f"{path}: {len(page.questions)} of {page.total} questions")
    return 0


def eval_list(args: argparse.Namespace) -> int:
    """Run ``eval list``."""
    rows = []
    for name in names():
        found = benchmark(name)
        how = "judged: " + ", ".join(aspect.name for aspect in found.aspects) if found.aspects else found.how
        rows.append((name, found.title, str(DATA_ROOT / found.folder), how))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def eval_layout(args: argparse.Namespace) -> int:
    """Run ``eval layout``."""
    found = benchmark(args.benchmark)
    print(f"{found.title}: {found.source}\n\n{DATA_ROOT / found.folder}/")
    print("\n".join(f"  {line}" for line in found.layout.splitlines()))
    return 0


def eval_check(args: argparse.Namespace) -> int:
    """Run ``eval check``; the exit code is 1 if media are missing."""
    from videollama2.eval.downloads.sound_tracks import sound_tracks
    from videollama2.eval.running.clips import by_clip, missing_media

    found = configured(args.benchmark, **_settings(args))
    data = args.data or found.default_data(DATA_ROOT)
    items = found.load(data)
    missing = missing_media(items, data)
    scored = sum(item.answer is not None for item in items)
    files = len({item.media for item in items})
    print(f"{data}: {len(items)} questions ({scored} with answers) about {len(by_clip(items))} clips of {files} files")
    for supplement in (*found.supplements(items, data), sound_tracks(items, data)):
        if supplement is not None:
            print(supplement.text())
    found.check_texts(items, data)
    if not missing:
        print("all files are there")
        return 0
    print(f"{len(missing)} of {files} files are missing:")
    _name_missing(data, missing, args.all)
    return 1


def eval_prepare(args: argparse.Namespace) -> int:
    """Run ``eval prepare``; the exit code is 1 if videos are missing."""
    from videollama2.eval.downloads.prepare import prepare

    found = benchmark(args.benchmark)
    target = args.to or DATA_ROOT / found.folder
    prepared = prepare(found, args.source, target)
    print(f"{found.title}: {args.source} -> {target}\n{prepared.table()}")
    _name_missing(target, prepared.missing, args.all)
    return 1 if prepared.missing else 0


def _name_missing(data: Path, missing: Sequence[str], every: bool) -> None:
    for path in missing if every else missing[:SHOWN_MISSING]:
        print(f"  {data / path}")
    if len(missing) > SHOWN_MISSING and not every:
        print(f"  and {len(missing) - SHOWN_MISSING} more (--all names them)")


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": eval_run,
    "score": eval_score,
    "compare": eval_compare,
    "show": eval_show,
    "list": eval_list,
    "layout": eval_layout,
    "prepare": eval_prepare,
    "check": eval_check,
}
