"""Declares the command line of ``videollama2 eval run | score | compare | show | list | layout | prepare | check``.

This module declares the options. :mod:`videollama2.eval.commands`, which runs the commands, is imported only when one
of them runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from videollama2.commands import add_debug_flag
from videollama2.flags import (
    add_answer_flags,
    add_backend_flag,
    add_count_flag,
    add_model_flags,
    add_num_frames_flag,
)

FORCE_HELP = "replace results that rest on more verdicts than there are now"
Group = Any
"""An ArgumentParser or a group of one; argparse has no public name for their common base class."""
Subparsers = Any
"""The return type of ``ArgumentParser.add_subparsers``, for which argparse has no public name."""


def add_eval_commands(subparsers: Subparsers) -> None:
    """Add the command ``eval`` with its subcommands to another parser.

    The parsed arguments of each subcommand have ``run``, a function of them that returns the exit code, and ``debug``.
    """
    parser = subparsers.add_parser("eval", help="evaluate on benchmarks")
    add_commands(parser.add_subparsers(dest="eval_command", required=True, metavar="COMMAND"))


def add_commands(subparsers: Subparsers) -> None:
    """Add the subcommands of ``eval``."""
    _run(_command(subparsers, "run", "answer a benchmark's questions and report"))
    _score(_command(subparsers, "score", "read and judge saved answers again, also the published code's files"))
    _compare(_command(subparsers, "compare", "paired difference of two evaluations"))
    _show(_command(subparsers, "show", "a page of questions with frames, answers and verdicts"))
    _command(subparsers, "list", "the benchmarks there are")
    _named(_command(subparsers, "layout", "what a benchmark needs on disk"))
    _prepare(_command(subparsers, "prepare", "lay downloaded data out as a benchmark needs them"))
    _check(_command(subparsers, "check", "what of a benchmark's data is missing"))


def _command(subparsers: Subparsers, name: str, text: str) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(name, help=text, description=text)
    add_debug_flag(parser)
    parser.set_defaults(run=_late(name))
    return parser


def _late(name: str) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        from videollama2.eval import commands

        return commands.COMMANDS[name](args)

    return run


def _named(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("benchmark", help="name, see list; or a .jsonl or .json file of questions, see eval/README.md")


def _run(parser: argparse.ArgumentParser) -> None:
    _named(parser)
    _add_folders(parser)
    add_model_flags(parser, device_help="default: cuda of this process's number, else mps, else cpu")
    asked = parser.add_argument_group("questions")
    _add_settings(asked)
    add_count_flag(asked, "--limit", "ask only N questions")
    add_count_flag(asked, "--offset", "skip the first N questions", default=0, least=0)
    add_num_frames_flag(asked)
    asked.add_argument(
        "--sampling",
        default="index",
        choices=("index", "time", "fps"),
        help="spread frames over their numbers (index, the default: published) or over the seconds of the clip (time), "
        "or take one frame per second (fps), which may be more than the model was trained with",
    )
    add_backend_flag(asked)
    asked.add_argument("--strict-data", action="store_true", help="stop at a video that is missing or cannot be read")
    answer = parser.add_argument_group("answers")
    add_answer_flags(
        answer,
        max_new_tokens=None,
        top_p=1.0,
        seed=0,
        max_new_tokens_help="longest answer (default 2048, as published; at most half of the model's positions)",
    )
    add_count_flag(
        answer,
        "--batch-size",
        "answers computed together, which does not change them (default: as many as fit in memory)",
    )
    answer.add_argument("--retry-failed", action="store_true", help="ask questions again that failed in an earlier run")
    answer.add_argument("--no-progress", action="store_true", help="show no progress bar")
    answer.add_argument("--force", action="store_true", help=FORCE_HELP)
    _add_judge(parser)


def _score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("answers", type=Path, help="output folder of eval run, or a file of the published code")
    parser.add_argument("--benchmark", metavar="NAME", help="benchmark of a file of the published code")
    parser.add_argument("--partial", action="store_true", help="score the answers that exist even if some are missing")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")
    parser.add_argument("--force", action="store_true", help=FORCE_HELP)
    _add_folders(parser)
    _add_judge(parser)


def _compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", type=Path, metavar="A", help="output folder, or its samples.jsonl")
    parser.add_argument("b", type=Path, metavar="B", help="the same of the other evaluation")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="output folder of eval run")
    parser.add_argument(
        "other", type=Path, nargs="?", metavar="OTHER", help="output folder with the same questions, to show beside it"
    )
    parser.add_argument("--wrong", action="store_true", help="show only answers that are not right")
    parser.add_argument("--category", metavar="NAME", help="show only this category")
    add_count_flag(parser, "--limit", "show at most N questions", default=200)
    parser.add_argument("--no-frames", action="store_true", help="leave out the pictures, for a small file")
    parser.add_argument("--data", type=Path, metavar="DIR", help="data folder (default: that of the run)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default DIR/show.html")


def _prepare(parser: argparse.ArgumentParser) -> None:
    _named(parser)
    parser.add_argument(
        "--from", dest="source", type=Path, required=True, metavar="DIR", help="folder of the downloads"
    )
    parser.add_argument("--to", type=Path, metavar="DIR", help="data folder (default: eval/ and its usual name)")
    parser.add_argument("--all", action="store_true", help="name every missing file")


def _check(parser: argparse.ArgumentParser) -> None:
    _named(parser)
    parser.add_argument("--data", type=Path, metavar="DIR", help="data folder (default: eval/ and its usual name)")
    parser.add_argument("--all", action="store_true", help="name every missing file")
    _add_settings(parser)


def _add_settings(asked: Group) -> None:
    """Add the options on which a benchmark's questions depend."""
    asked.add_argument(
        "--subtitles",
        nargs="?",
        const="published",
        choices=("published", "seen"),
        metavar="WHICH",
        help="VideoMME: published (the published choice; also without a value) or seen (cues of the "
        "frames that the model sees, each once)",
    )
    asked.add_argument("--split", choices=("test", "valid"), help="Perception Test (default: whichever is there)")
    asked.add_argument(
        "--prompt",
        choices=("question", "options", "lmms-eval"),
        help="moving_shapes, sounding_shapes: the question alone (default), or with options as MVBench; lmms-eval: the "
        "prompts and answer lengths of that harness, for the benchmarks that it has, too, except MLVU",
    )
    asked.add_argument(
        "--shuffle-frames",
        action="store_true",
        help="moving_shapes, sounding_shapes: ask every question again with the frames in another order, to see "
        "whether time is used",
    )
    for flag, how in (("muted", "in silence"), ("blank-frames", "without pictures")):
        asked.add_argument(f"--{flag}", action="store_true", help=f"sounding_shapes: ask every question again {how}")
    asked.add_argument(
        "--shuffle-windows",
        action="store_true",
        help="sounding_shapes: ask every question again with the parts of the sound in another order",
    )


def _add_folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, metavar="DIR", help="data folder (default: eval/ and its usual name)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default eval_output/BENCHMARK/MODEL")
    parser.add_argument(
        "--protocol",
        default="published",
        choices=("published", "strict"),
        help="reading that the results list first; both are reported",
    )
    parser.add_argument(
        "--tensorboard",
        type=Path,
        metavar="DIR",
        help="also write the numbers to this folder for TensorBoard, at the step of a model named checkpoint-N",
    )
    parser.add_argument(
        "--wandb",
        metavar="PROJECT",
        help="also log the numbers to this project of Weights & Biases, at the same step",
    )


def _add_judge(parser: argparse.ArgumentParser) -> None:
    judge = parser.add_argument_group(
        "judge",
        "for open answers; the key is read from OPENAI_API_KEY or AZURE_OPENAI_API_KEY, never from the command line",
    )
    judge.add_argument("--judge-model", metavar="NAME", help="model or Azure deployment; local: compare texts, offline")
    judge.add_argument("--judge-url", metavar="URL", help="any OpenAI-compatible server (default: OpenAI)")
    judge.add_argument("--judge-azure-endpoint", metavar="URL", help="use OpenAI on Azure at this address")
    judge.add_argument("--judge-azure-api-version", metavar="VERSION", help="API version of the Azure service")
    judge.add_argument(
        "--judge-temperature", type=float, metavar="T", help="default 0.7 with protocol published, 0 with strict"
    )
    add_count_flag(
        judge,
        "--judge-max-tokens",
        "longest reply in tokens (default 800, as published); a judge with a short context needs less",
    )
    add_count_flag(judge, "--judge-concurrency", "default %(default)s", default=8)
    add_count_flag(judge, "--judge-retries", "default %(default)s", default=5, least=0)
    judge.add_argument("--judge-timeout", type=float, default=60.0, metavar="SECONDS", help="default %(default)s")
    judge.add_argument(
        "--rubric",
        default="published",
        metavar="WHICH",
        help="published (default), own (this project's texts), or a folder of rubric files",
    )
    judge.add_argument(
        "--dry-run", action="store_true", help="only print how many requests and tokens judging would take"
    )
