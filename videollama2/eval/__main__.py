"""Runs the commands of ``videollama2 eval`` as ``python -m videollama2.eval``, a form that torchrun can start."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from videollama2.commands import CommandParser, run_command
from videollama2.eval.cli import add_commands


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code, which is 2 after a one-line error message."""
    parser = CommandParser(prog="python -m videollama2.eval", description="Evaluate on benchmarks.")
    add_commands(parser.add_subparsers(dest="eval_command", required=True, metavar="COMMAND"))
    args = parser.parse_args(arguments)
    return run_command(lambda: args.run(args), "videollama2 eval", args.debug)


if __name__ == "__main__":
    sys.exit(main())
