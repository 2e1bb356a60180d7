"""Defines the command-line flags of a model worker, which the launcher of a whole installation also has."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import PurePath
from typing import Any

from videollama2 import flags
from videollama2.constants import DEFAULT_MODEL_NAME
from videollama2.errors import ConfigError, MissingDependencyError
from videollama2.flags import add_count_flag, add_seconds_flag

WORKER_MODULES = {"own": "videollama2.serve.model_worker", "vllm": "videollama2.engines.vllm.worker"}
"""Engines that a worker can run its model with -> the module that is this worker's program."""

RAY = "ray"
RAY_MODULE = "videollama2.engines.ray.server"
"""With this engine, there are no workers: the models run on Ray Serve, in replicas with one of the other engines."""


class EngineOption(str):
    """``NAME=VALUE``, a field of an engine of another project. It stays text, to be handed on to other processes."""

    @property
    def name(self) -> str:
        """The name of the field."""
        return self.partition("=")[0]

    @property
    def value(self) -> Any:
        """The value: JSON, or else the text itself."""
        text = self.partition("=")[2]
        try:
            return json.loads(text)
        except ValueError:
            return text


def engine_option(text: str) -> EngineOption:
    """Parse the value of ``--engine-option``."""
    if not text.partition("=")[0].isidentifier() or "=" not in text:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return EngineOption(text)


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the given fields of an engine of another project."""
    options = {option.name: option.value for option in args.engine_option or ()}
    if args.tensor_parallel_size is not None:
        options["tensor_parallel_size"] = args.tensor_parallel_size
    return options


def check_own_engine(args: argparse.Namespace) -> None:
    """Check the flags for the package's own engine.

    Raises:
        ConfigError: one of them is for an engine of another project.
    """
    options = engine_options(args)
    if options:
        raise ConfigError(f"{', '.join(options)}: an option of --engine vllm; the own engine has no such option")


def add_worker_flags(parser: argparse.ArgumentParser, is_several: bool = False, has_ray: bool = False) -> None:
    """Add the flags for the model, its engine and the worker's log.

    Args:
        is_several: whether ``--model-path`` may be repeated; the models' names are then derived from the paths.
        has_ray: whether the engine may be Ray Serve.
    """
    if is_several:
        text = f"{flags.PATH_HELP}; repeatable (default {DEFAULT_MODEL_NAME})"
        flags.add_model_flags(parser, action="append", default=None, help=text)
    else:
        flags.add_model_flags(parser).add_argument(
            "--model-name", metavar="NAME", help="name of the model for clients (default: last part of the path)"
        )
    engine = parser.add_argument_group("engine")
    add_engine_choice(engine, has_ray)
    add_count_flag(
        engine, "--limit-model-concurrency", "answers computed at once (default: 16, or fewer if memory is short)"
    )
    add_count_flag(
        engine,
        "--max-length",
        "longest prompt with its answer, in tokens (default: 4096, or less if model or memory allow less)",
    )
    add_count_flag(engine, "--max-queue", "requests that may wait; more are refused with 429", default=256)
    _add_speed_flags(engine)
    add_count_flag(engine, "--stream-interval", "send the text of /worker_generate_stream every N pieces", default=1)
    add_seconds_flag(engine, "--drain-timeout", "time that running answers have to finish after SIGTERM", default=300.0)
    parser.add_argument("--log-prompts", action="store_true", help="write questions to the log")


def _add_speed_flags(engine: argparse._ActionsContainer) -> None:
    engine.add_argument(
        "--cuda-graphs",
        action="store_true",
        help="replay decode steps as CUDA graphs (dense, unquantised model on one GPU)",
    )
    engine.add_argument(
        "--pack-weights",
        action=argparse.BooleanOptionalAction,
        help="keep float32 weights a second time in the order of oneDNN's kernels: faster steps on a CPU, for twice "
        "the memory (default: on processors other than Intel's, if the copies fit into half of the free memory)",
    )


def add_engine_choice(engine: argparse._ActionsContainer, has_ray: bool) -> None:
    """Add the flags that choose an engine, and those for an engine of another project.

    Args:
        has_ray: whether the engine may be Ray.
    """
    choices = (*WORKER_MODULES, *((RAY,) if has_ray else ()))
    engine.add_argument(
        "--engine", choices=choices, default="own", help="engine that runs the model (default %(default)s)"
    )
    add_count_flag(engine, "--tensor-parallel-size", "processes that share each layer (vllm only)")
    engine.add_argument(
        "--engine-option",
        action="append",
        type=engine_option,
        metavar="NAME=VALUE",
        help="field of vLLM's engine arguments, with a value in JSON or plain text; repeatable (vllm only)",
    )


def add_replica_engine_flag(parser: argparse._ActionsContainer) -> None:
    """Add the flag that chooses the engine of each copy of a model on a Ray cluster."""
    parser.add_argument(
        "--replica-engine",
        choices=tuple(WORKER_MODULES),
        default="own",
        help="engine of the replicas, with --engine ray (default %(default)s)",
    )


def check_engines_installed(engines: Iterable[str]) -> None:
    """Check that the packages of engines of other projects are installed.

    Raises:
        MissingDependencyError: one of them is not.
    """
    for engine in engines:
        if engine != "own" and find_spec(engine) is None:
            raise MissingDependencyError.of(f"--engine {engine} is not installed", f"[{engine}]")


def model_paths_of(args: argparse.Namespace) -> list[str]:
    """Return the models of an installation, from a ``--model-path`` that may be repeated."""
    return args.model_path or [DEFAULT_MODEL_NAME]


def model_name_of(path: str) -> str:
    """Return the published name of a model: the last part of its path, or the last two for a checkpoint folder."""
    place = PurePath(path.rstrip("/"))
    if place.name.startswith("checkpoint-") and place.parent.name:
        return f"{place.parent.name}_{place.name}"
    return place.name or path
