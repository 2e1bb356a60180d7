"""Trains on the machines of a Ray cluster: Ray Train places the processes of :mod:`videollama2.train`.

    python -m videollama2.engines.ray_train --workers 16 --max-restarts 3 --model_path ... --output_dir /shared/run

All flags that are not listed here are those of ``videollama2.train``. The working folder, the data and the output
folder are at the same place on all machines, and the output folder is shared by them, as with ``torchrun``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from subprocess import run
from typing import Any

from videollama2.commands import add_debug_flag, run_command
from videollama2.errors import EngineError, MissingDependencyError, first_line
from videollama2.flags import add_count_flag, number
from videollama2.serve.part_flags import processor_share

_CHILD = """
import sys
from videollama2.serve.untrusted_media.limits import die_with_parent
die_with_parent(int(sys.argv.pop(1)))
from videollama2.train import main
sys.exit(main())
"""
"""The program of a process that trains. It must not outlive Ray's process, since it owns the output folder."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the flags that are not those of ``videollama2.train``."""
    parser = argparse.ArgumentParser(
        prog="python -m videollama2.engines.ray_train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--workers",
        type=number(1),
        required=True,
        metavar="N",
        help="number of processes; each gets a GPU if the cluster has any",
    )
    parser.add_argument(
        "--cpus-per-worker",
        type=processor_share,
        default=1.0,
        metavar="X",
        help="cores of each process (default %(default)g)",
    )
    add_count_flag(
        parser,
        "--max-restarts",
        "how often all processes start again from the last checkpoint after one has died",
        default=0,
        least=0,
    )
    parser.add_argument(
        "--output_dir", type=Path, required=True, metavar="DIR", help="output folder of videollama2.train"
    )
    add_debug_flag(parser)
    return parser


def run_on_cluster(args: argparse.Namespace, flags: Sequence[str]) -> None:
    """Run a training on the cluster that ``RAY_ADDRESS`` names, or on this machine alone.

    Args:
        flags: those of ``videollama2.train`` that are not in ``args``.

    Raises:
        MissingDependencyError: Ray is not installed. EngineError: Ray cannot start, or the training failed.
    """
    try:
        from videollama2.engines.ray.core import joined, ray

        ray_train, torch_train = import_module("ray.train"), import_module("ray.train.torch")
    except ModuleNotFoundError as error:
        raise MissingDependencyError.of("Ray Train is not installed", "[ray,train]") from error
    out = args.output_dir.resolve()
    with joined():
        trainer = torch_train.TorchTrainer(
            train_process,
            train_loop_config={"flags": ["--output_dir", str(out), *flags], "folder": os.getcwd()},
            torch_config=torch_train.TorchConfig(backend="gloo"),  # of Ray's own processes, which hold its store
            scaling_config=ray_train.ScalingConfig(
                num_workers=args.workers,
                use_gpu=bool(ray.cluster_resources().get("GPU")),
                resources_per_worker={"CPU": args.cpus_per_worker},
            ),
            run_config=ray_train.RunConfig(
                name=f"{out.name}.ray",
                storage_path=str(out.parent),
                failure_config=ray_train.FailureConfig(max_failures=args.max_restarts),
            ),
        )
        try:
            trainer.fit()
        except (RuntimeError, ray.exceptions.RayError, ray_train.TrainingFailedError) as error:
            raise EngineError(f"Ray Train: {first_line(error)}") from error


def train_process(config: dict[str, Any]) -> None:
    """Run one process of the training, with the number that Ray has given to this one.

    Ray's process cannot train itself: it calls this function in a thread, where no signal arrives.
    """
    # The store of Ray's own processes, in which these must not take the keys of those for theirs. As those of a second
    # attempt below torchrun, they agree on a store of their own there; see videollama2.training.distributed.restarts.
    store = {"TORCHELASTIC_USE_AGENT_STORE": str(True), "TORCHELASTIC_RESTART_COUNT": "1"}
    command = [sys.executable, "-c", _CHILD, str(os.getpid()), *config["flags"]]
    run(command, cwd=config["folder"], env={**os.environ, **store}, check=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    args, flags = build_parser().parse_known_args(arguments)
    return run_command(lambda: run_on_cluster(args, flags), "ray_train", args.debug)


if __name__ == "__main__":
    sys.exit(main())
