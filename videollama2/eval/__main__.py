"""``python -m videollama2.eval``, for torchrun: the commands of ``videollama2 eval``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from videollama2.errors import VideoLlama2Error
from videollama2.eval.cli import add_commands


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (2 after one line that says what is wrong)."""
    parser = argparse.ArgumentParser(prog="python -m videollama2.eval", description="Evaluate on benchmarks.")
    add_commands(parser.add_subparsers(dest="eval_command", required=True, metavar="COMMAND"))
    args = parser.parse_args(arguments)
    try:
        return args.run(args)
    except VideoLlama2Error as error:
        if args.debug:
            raise
        print(f"videollama2 eval: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
