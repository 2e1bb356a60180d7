"""What the commands of :mod:`videollama2.eval.cli` do."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from videollama2.errors import ConfigError, DataError
from videollama2.eval.benchmarks import benchmark, names
from videollama2.eval.items import PUBLISHED, Benchmark, Row
from videollama2.eval.rows import Judging, describe_judge, format_cost, judge_rows, judging_cost, option_metrics
from videollama2.flags import AnswerFlags, frame_options

DATA_ROOT, OUTPUT_ROOT = Path("eval"), Path("eval_output")
SHOWN = 20


def run_command(args: argparse.Namespace) -> int:
    """``eval run``: one process of one evaluation; torchrun's environment says which."""
    from videollama2.eval.run import ModelChoice, Plan, run
    from videollama2.eval.runner import AnswerOptions
    from videollama2.media.frames import FrameSampling

    settings = {"subtitles": args.subtitles, "split": args.split, "prompt": args.prompt}
    found = benchmark(args.benchmark).configure(**settings)
    if args.dry_run and not args.judge_model:
        raise ConfigError("--dry-run is about a judge: give --judge-model")
    rank, world = _processes()
    options = {
        "device": args.device or _own_device(),
        "attn_implementation": args.attn_implementation,
        "load_8bit": args.load_8bit,
        "load_4bit": args.load_4bit,
    }
    folder = "_".join([found.name, *filter(None, settings.values())])
    output = args.output or OUTPUT_ROOT / folder / Path(args.model_path).name
    plan = Plan(
        benchmark=found,
        data=args.data or DATA_ROOT / found.folder,
        output=output,
        model=ModelChoice(args.model_path, args.model_base, args.dtype, options),
        options=AnswerOptions(
            num_frames=FrameSampling(**frame_options(args)).num_frames,
            video_backend=args.video_backend,
            **asdict(AnswerFlags.of(args)),
        ),
        protocol=args.protocol,
        judging=_judging(args, found, output),
        limit=args.limit,
        offset=args.offset,
        batch_size=args.batch_size,
        strict_data=args.strict_data,
        retry_failed=args.retry_failed,
        rank=rank,
        world=world,
        progress=not args.no_progress,
        dry_run=args.dry_run,
    )
    run(plan)
    return 0


def score_command(args: argparse.Namespace) -> int:
    """``eval score``: an output folder, or a file of the published code."""
    if args.answers.is_dir():
        return _score_folder(args)
    if not args.answers.is_file():
        raise DataError(f"{args.answers}: no such file or folder")
    return _score_file(args)


def _score_folder(args: argparse.Namespace) -> int:
    from videollama2.eval.run import ModelChoice, Plan, items_digest, report
    from videollama2.eval.store import AnswerStore, read_run

    former = read_run(args.answers)
    asked, about = former["configuration"], former["about"]
    found = benchmark(asked["benchmark"]).configure(**asked["settings"])
    if found.aspects and not args.judge_model:
        raise _needs_judge(found)
    if args.benchmark and benchmark(args.benchmark).name != found.name:
        raise ConfigError(f"{args.answers} holds answers of {found.name}, not of {args.benchmark}")
    if args.output:
        raise ConfigError("--output is for files of the published code; a folder of answers is scored in place")
    plan = Plan(
        benchmark=found,
        data=args.data or Path(about["data"]),
        output=args.answers,
        model=ModelChoice(about["model"], about["model_base"]),
        protocol=args.protocol,
        judging=_judging(args, found, args.answers),
        limit=about["limit"],
        offset=about["offset"],
        progress=not args.no_progress,
        dry_run=args.dry_run,
    )
    items = plan.items()
    if items_digest(items) != asked["items"]:
        raise DataError(f"{plan.data}: its questions are not those that {args.answers} holds answers to")
    answers, gaps = AnswerStore(args.answers, asked, about).merge([item.id for item in items])
    if gaps and not args.partial:
        raise DataError(
            f"{args.answers}: {len(gaps)} of {len(items)} answers are missing, {gaps[0]!r} first; the command that "
            "began it goes on where it stopped, and --partial scores what is there"
        )
    missing = set(gaps)
    report(plan, args.answers, [item for item in items if item.id not in missing], answers, print)
    return 0


def _score_file(args: argparse.Namespace) -> int:
    from videollama2.eval.published_files import entries, read_published
    from videollama2.eval.report.tables import build_document, build_markdown
    from videollama2.eval.run import write_results

    if not args.benchmark:
        raise ConfigError(f"{args.answers} is a file: say with --benchmark what it is about ({', '.join(names())})")
    found = benchmark(args.benchmark)
    rows = read_published(args.answers, found, args.data)
    judging = _judging(args, found, args.output)
    if args.dry_run:
        _print_cost(found, rows, judging)
        return 0
    rows, metrics = _metrics(found, rows, judging, not args.no_progress)
    empty = dict.fromkeys(("revision", "dtype", "frames", "generation"))
    head = {
        "benchmark": found.name,
        "model": f"{args.answers.name} (published code)",
        **empty,
        "protocol": PUBLISHED,
        "judge": describe_judge(found, judging),
    }
    if args.output:
        from videollama2.eval.store import write_samples

        args.output.mkdir(parents=True, exist_ok=True)
        write_samples(args.output, rows)
        write_results(args.output, head, rows, metrics, (), print)
    else:
        print(build_markdown(build_document(head, rows, {"metrics": metrics})))
    if found.name == "videomme":
        from videollama2.eval.report.videomme_official import official_report

        print(official_report(entries(args.answers)))
    return 0


def _metrics(
    found: Benchmark, rows: list[Row], judging: Judging | None, progress: bool
) -> tuple[list[Row], list[dict[str, Any]]]:
    if not found.aspects:
        return rows, option_metrics(found, rows, (PUBLISHED,))
    if judging is None:
        raise _needs_judge(found)
    return judge_rows(found, rows, judging, progress)


def _needs_judge(found: Benchmark) -> ConfigError:
    return ConfigError(f"{found.title} is judged: give --judge-model (local compares texts, offline)")


def _print_cost(found: Benchmark, rows: Sequence[Row], judging: Judging | None) -> None:
    """Say what judging these rows would take."""
    if judging is None:
        raise ConfigError("--dry-run is about a judge: give --judge-model")
    print(format_cost(judging_cost(found, rows, judging)))


def compare_command(args: argparse.Namespace) -> int:
    """``eval compare``."""
    from videollama2.eval.report.compare import compare, format_comparisons

    found = compare(args.a, args.b)
    if args.json:
        rows = [{**asdict(each), "difference": each.difference._asdict()} for each in found]
        print(json.dumps(rows, indent=1))
    else:
        print(format_comparisons(found, str(args.a), str(args.b)))
    return 0


def list_command(args: argparse.Namespace) -> int:
    """``eval list``."""
    for name in names():
        found = benchmark(name)
        how = "judged: " + ", ".join(aspect.name for aspect in found.aspects) if found.aspects else "multiple choice"
        print(f"{name:<18}{found.title:<26}{DATA_ROOT / found.folder!s:<34}{how}")
    return 0


def layout_command(args: argparse.Namespace) -> int:
    """``eval layout``."""
    found = benchmark(args.benchmark)
    print(f"{found.title}: {found.source}\n\n{DATA_ROOT / found.folder}/")
    print("\n".join(f"  {line}" for line in found.layout.splitlines()))
    return 0


def check_command(args: argparse.Namespace) -> int:
    """``eval check``: exit code 1 where media are missing."""
    from videollama2.eval.runner import by_clip, missing_media

    found = benchmark(args.benchmark)
    data = args.data or DATA_ROOT / found.folder
    items = found.load(data)
    missing = missing_media(items, data)
    scored = sum(item.answer is not None for item in items)
    files = len({item.media for item in items})
    print(f"{data}: {len(items)} questions ({scored} with answers) about {len(by_clip(items))} clips of {files} files")
    if not missing:
        print("all files are there")
        return 0
    print(f"{len(missing)} of {files} files are missing:")
    for path in missing if args.all else missing[:SHOWN]:
        print(f"  {data / path}")
    if len(missing) > SHOWN and not args.all:
        print(f"  and {len(missing) - SHOWN} more (--all names them)")
    return 1


def _judging(args: argparse.Namespace, found: Benchmark, folder: Path | None) -> Judging | None:
    """The judge that the options describe; its texts are looked up now, not after hours of answering."""
    if not args.judge_model:
        return None
    if not found.aspects:
        raise ConfigError(f"{found.title} is multiple choice: it takes no judge (--judge-model)")
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


def _processes() -> tuple[int, int]:
    """Number of this process and how many there are, as torchrun says."""
    try:
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError as error:
        raise ConfigError(f"RANK and WORLD_SIZE must be whole numbers ({error})") from error
    if not 0 <= rank < world:
        raise ConfigError(f"RANK {rank} must be below WORLD_SIZE {world}")
    return rank, world


def _own_device() -> str | None:
    """The GPU of this process where torchrun started several."""
    local = os.environ.get("LOCAL_RANK")
    if local is None:
        return None
    import torch

    return f"cuda:{local}" if torch.cuda.is_available() else None


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": run_command,
    "score": score_command,
    "compare": compare_command,
    "list": list_command,
    "layout": layout_command,
    "check": check_command,
}
