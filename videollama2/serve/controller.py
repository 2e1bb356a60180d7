"""Runs the controller, which tracks the workers, tells clients where they are, and forwards ``\\0``-streams.

    python -m videollama2.serve.controller --host 0.0.0.0 --port 10000

Its routes are described in :mod:`videollama2.serve.cluster.controller_app`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from videollama2.commands import add_debug_flag, run_command
from videollama2.flags import add_seconds_flag
from videollama2.serve.cluster.controller_app import Controller, make_controller_app
from videollama2.serve.cluster.protocol import EXPIRY_S
from videollama2.serve.cluster.registry import METHODS, Registry
from videollama2.serve.cluster.worker_call import Patience
from videollama2.serve.part_flags import add_listen_flags, part_parser
from videollama2.serve.settings import add_security_flags, read_security
from videollama2.serve.web.server import configure_logging, serve, warn_if_open

DEFAULT_PORT = 10000


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = part_parser("controller", __doc__)
    add_listen_flags(parser, DEFAULT_PORT)
    parser.add_argument(
        "--dispatch-method",
        default=METHODS[0],
        choices=METHODS,
        help="how a worker is chosen: the shortest queue for its speed (default), or at random in proportion to speed",
    )
    add_seconds_flag(parser, "--expiry", "silence after which a worker counts as gone", default=EXPIRY_S)
    add_seconds_flag(
        parser,
        "--worker-silence",
        "time without a byte of an answer after which a worker is asked whether it is alive",
        default=Patience().silence,
    )
    add_security_flags(parser, worker_flags=True, registry=True)
    add_debug_flag(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    args = build_parser().parse_args(arguments)
    configure_logging(part="controller")
    return run_command(lambda: _run(args), "controller", args.debug)


def _run(args: argparse.Namespace) -> int:
    security = read_security(args)
    warn_if_open(args.host, security)
    controller = Controller(
        Registry(args.dispatch_method, args.expiry), security, Patience(silence=args.worker_silence)
    )
    return serve(make_controller_app(controller), args.host, args.port)


if __name__ == "__main__":
    sys.exit(main())
