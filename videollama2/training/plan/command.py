"""Runs ``videollama2 plan``: a table of the ways of training a model, which of them fit, and how long a step takes."""

from __future__ import annotations

import argparse
from typing import Any

from videollama2.checkpoints import resolve_name
from videollama2.commands import add_debug_flag
from videollama2.config import VideoLlama2Config, is_videollama2
from videollama2.constants import DEFAULT_MODEL_NAME
from videollama2.errors import ConfigError, MissingDependencyError
from videollama2.flags import PATH_HELP
from videollama2.hub import read_config
from videollama2.training.plan.planner import UTILISATION, Load, Memory, Planner, Way
from videollama2.training.reports.meter import PEAK_FLOPS

WAYS = (
    Way("connector alone", connector_alone=True),
    Way("connector alone, recomputed", connector_alone=True, recompute=True),
    Way("all weights"),
    Way("all weights, recomputed", recompute=True),
    Way("all weights, ZeRO-2, recomputed", zero=2, recompute=True),
    Way("all weights, ZeRO-3", zero=3),
    Way("all weights, ZeRO-3, recomputed", zero=3, recompute=True),
    Way("all weights, FSDP2, recomputed", fully_shard=True, recompute=True),
    Way("LoRA 64", lora=64),
    Way("LoRA 64, recomputed", lora=64, recompute=True),
    Way("LoRA 64, ZeRO-3, recomputed", lora=64, zero=3, recompute=True),
    Way("LoRA 64, encoder too, recomputed", lora=64, parts=("language_model", "vision_tower"), recompute=True),
    Way("QLoRA 64", lora=64, quantised=True),
    Way("QLoRA 64, recomputed", lora=64, quantised=True, recompute=True),
    Way("QLoRA 64, ZeRO-2, recomputed", lora=64, quantised=True, zero=2, recompute=True),
)

_COLUMNS = {
    "weights": 9,
    "optimizer": 11,
    "buffers": 9,
    "gradients": 11,
    "activations": 13,
    "peak": 8,
    "s/step": 9,
}
"""Columns of the table behind the names of ways, with their widths."""
_NOTE = """\
The peak is the sum of weights, optimizer, buffers and the larger one of gradients and activations. Fragmentation and
CUDA's own memory come on top. The buckets of ZeRO are those of scripts/zero2.json and scripts/zero3.json."""


def add_plan_command(subparsers: Any) -> None:
    """Add ``plan`` to the command line."""
    parser = subparsers.add_parser("plan", help="show which ways of training a model fit into a GPU")
    parser.description = (
        "Compute the memory and the time of a step for each way of training a model, from its configuration alone, and "
        "show which of them fit. A step is a forward and a backward pass of --batch records on each GPU."
    )
    parser.add_argument("--model", required=True, help=f"a checkpoint: {PATH_HELP}, such as {DEFAULT_MODEL_NAME}")
    parser.add_argument("--gpus", type=int, default=8, metavar="N", help="number of GPUs (default: %(default)s)")
    parser.add_argument("--memory", type=float, default=80, metavar="GB", help="memory of a GPU (default: %(default)s)")
    parser.add_argument("--gpu", choices=sorted(PEAK_FLOPS), default="H100", help="kind of GPU (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4, metavar="N", help="records per GPU (default: %(default)s)")
    parser.add_argument(
        "--tokens", type=int, default=2048, metavar="N", help="tokens of a record or packed row (default: %(default)s)"
    )
    parser.add_argument(
        "--clips", type=int, default=1, metavar="N", help="clips of a record or packed row (default: %(default)s)"
    )
    add_debug_flag(parser)
    parser.set_defaults(run=_plan)


def _plan(args: argparse.Namespace) -> int:
    for name in ("gpus", "memory", "batch", "tokens", "clips"):
        if not 0 < getattr(args, name) < float("inf"):
            raise ConfigError(f"--{name} {getattr(args, name)} is not a number above 0")
    path = resolve_name(args.model)
    if not is_videollama2(read_config(path)):  # read_config says in one line where there is none
        raise ConfigError(f"--model {args.model} is not a VideoLLaMA 2 checkpoint")
    config = VideoLlama2Config.from_pretrained(path)
    planner, load = Planner(config), Load(args.batch, args.tokens, args.gpus, args.clips)
    if args.tokens <= planner.visual * args.clips:
        raise ConfigError(
            f"--tokens {args.tokens} leaves no room for text: the clips of a record take "
            f"{planner.visual * args.clips} tokens"
        )
    each = "a clip" if args.clips == 1 else f"{args.clips} clips"
    print(f"{args.model}: {planner.total:,} weights; {args.batch} records of {args.tokens} tokens, each with {each}")
    print(f"{'GB of each GPU':<34}" + "".join(f"{head:>{width}}" for head, width in _COLUMNS.items()))
    fitting: dict[str, float] = {}
    for way in WAYS:
        if (way.fully_shard and args.gpus == 1) or (
            ("vision_tower" in way.parts or way.connector_alone) and not config.sees
        ):
            continue
        try:
            memory, seconds = planner.memory(way, load), planner.seconds(way, load, PEAK_FLOPS[args.gpu])
        except MissingDependencyError as error:
            print(f"{way.name:<34}{error}")
            continue
        if fits := memory.peak < args.memory * 1e9:
            fitting[way.name] = seconds
        print(f"{way.name:<34}{_row(memory, seconds)}  {'fits' if fits else 'too large'}")
    print(_advice(fitting))
    print(_NOTE)
    print(f"Seconds assume {UTILISATION:.0%} of the peak of {args.gpu}, and no waiting for other GPUs or for data.")
    return 0


def _row(memory: Memory, seconds: float) -> str:
    parts = (memory.weights, memory.optimizer, memory.buffers, memory.gradients, memory.activations, memory.peak)
    values = (*(part / 1e9 for part in parts), seconds)
    return "".join(f"{value:>{width}.3g}" for value, width in zip(values, _COLUMNS.values(), strict=True))


def _advice(fitting: dict[str, float]) -> str:
    """Return which ways that fit are the fastest, one for each choice of what learns.

    Args:
        fitting: seconds of a step of each way that fits, by the way's name, which begins with what learns.
    """
    if not fitting:
        return "None of these fits: take fewer records or tokens, or more GPUs."
    fastest: dict[str, str] = {}
    for name in sorted(fitting, key=fitting.__getitem__):
        fastest.setdefault(name.partition(",")[0], name)
    return f"The fastest that fit: {'; '.join(fastest.values())}."
