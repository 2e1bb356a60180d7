"""Command-line parsers of the parts of an installation: what every part's command has, and where the controller is."""

from __future__ import annotations

import argparse

from videollama2.commands import CommandParser
from videollama2.flags import address, port

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
