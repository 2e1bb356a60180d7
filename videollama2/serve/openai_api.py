"""Runs OpenAI's API over all workers of a controller.

    python -m videollama2.serve.openai_api --controller http://localhost:10000 --port 8000

The routes are described in :mod:`videollama2.serve.cluster.front`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from videollama2.commands import add_debug_flag, run_command
from videollama2.serve.cluster.client import ControllerClient
from videollama2.serve.cluster.front import ApiFront, make_front_app
from videollama2.serve.part_flags import add_controller_flag, add_listen_flags, part_parser
from videollama2.serve.settings import add_security_flags, read_security
from videollama2.serve.web.server import configure_logging, serve, warn_if_open

DEFAULT_PORT = 8000


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = part_parser("openai_api", __doc__)
    add_listen_flags(parser, DEFAULT_PORT)
    add_controller_flag(parser)
    add_security_flags(parser, worker_flags=True)
    add_debug_flag(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    args = build_parser().parse_args(arguments)
    configure_logging(part="api")
    return run_command(lambda: _run(args), "openai_api", args.debug)


def _run(args: argparse.Namespace) -> int:
    security = read_security(args)
    warn_if_open(args.host, security)
    front = ApiFront(ControllerClient(args.controller, security.credential))
    return serve(make_front_app(front, security), args.host, args.port)


if __name__ == "__main__":
    sys.exit(main())
