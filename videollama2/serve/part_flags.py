"""Makes the parsers of an installation's parts: what every part's command has, and where the controller is."""

from __future__ import annotations

import argparse

from videollama2.commands import CommandParser
from videollama2.flags import add_count_flag, add_seconds_flag, address, port

CONTROLLER = "http://localhost:10000"


def part_parser(module: str, description: str | None) -> CommandParser:
    """Return the parser of ``python -m videollama2.serve.MODULE``.

    Args:
        description: text of its help, which keeps its line breaks.
    """
    return CommandParser(
        prog=f"python -m videollama2.serve.{module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_listen_flags(parser: argparse.ArgumentParser, default_port: int) -> None:
    """Add ``--host`` and ``--port``, the address that a part listens on."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=port, default=default_port, help="default %(default)s")


def add_controller_flag(parser: argparse._ActionsContainer) -> None:
    """Add ``--controller``, the controller's address, also under the names of the published commands."""
    parser.add_argument(
        "--controller",
        "--controller-address",
        "--controller-url",
        dest="controller",
        type=address,
        metavar="URL",
        default=CONTROLLER,
        help="default %(default)s",
    )


def add_replica_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a model's copies (replicas) on Ray Serve."""
    group = parser.add_argument_group("replicas on Ray Serve")
    add_count_flag(group, "--min-replicas", "replicas of a model", default=1)
    add_count_flag(group, "--max-replicas", "replicas under load (default: as --min-replicas)")
    add_count_flag(group, "--target-requests", "running requests per replica above which replicas are added", default=8)
    add_count_flag(
        group,
        "--replica-requests",
        "requests that a replica takes; more wait in the API, up to --max-queue",
        default=32,
    )
    add_seconds_flag(group, "--scale-up-after", "time of high load before a replica is added", default=30.0)
    add_seconds_flag(group, "--scale-down-after", "time of low load before a replica is removed", default=600.0)
    add_reservation_flags(group)
    add_count_flag(group, "--fronts", "processes of the API, each on a machine of its own", default=1)


def add_reservation_flags(group: argparse._ActionsContainer) -> None:
    """Add the flags for the processors that Ray reserves for each copy of a model."""
    group.add_argument(
        "--gpus-per-replica",
        type=processor_share,
        metavar="X",
        help="GPUs to reserve, or a fraction (default: --tensor-parallel-size, or 1, if the cluster has GPUs; else 0)",
    )
    group.add_argument(
        "--cpus-per-replica",
        type=processor_share,
        default=1.0,
        metavar="X",
        help="cores to reserve (default %(default)g)",
    )


def processor_share(text: str) -> float:
    """Parse a number of processors, which may be a fraction or 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1 << 16:
        raise argparse.ArgumentTypeError(f"expected a number from 0, got {text!r}")
    return value
