"""Runs the web page in front of a controller: ``python -m videollama2.serve.gradio_web_server --controller URL``.

This process loads neither a model nor torch. The key for the controller is read from ``--api-key-file`` or
``VIDEOLLAMA2_API_KEY``; visitors never see it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from videollama2.serve.page.backends import PageBackend
    from videollama2.serve.settings import MediaPolicy


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    from videollama2.commands import CommandParser, add_debug_flag
    from videollama2.serve.page.server import add_page_flags
    from videollama2.serve.part_flags import add_controller_flag

    parser = CommandParser(description="Web page in front of a controller.")
    models = parser.add_argument_group("models")
    add_controller_flag(models)
    models.add_argument(
        "--model-list-mode",
        choices=("once", "reload"),
        default="once",
        help="ask the controller for its models once, or at every visit (default %(default)s)",
    )
    models.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="key for the controller and its workers (also: VIDEOLLAMA2_API_KEY)",
    )
    models.add_argument(
        "--worker-token-file",
        type=Path,
        metavar="FILE",
        help="token, in place of a key (also: VIDEOLLAMA2_WORKER_TOKEN)",
    )
    # Base64 makes media a third larger; a worker accepts bodies of up to 128 MB by default (--max-body-mb).
    add_page_flags(parser, max_upload_mb=90)
    add_debug_flag(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    args = build_parser().parse_args(arguments)
    from videollama2.commands import run_command

    return run_command(lambda: _run(args), debug=args.debug)


def _run(args: argparse.Namespace) -> None:
    from videollama2.serve.page.server import run_page
    from videollama2.serve.settings import read_security

    def backend(policy: MediaPolicy) -> PageBackend:
        from videollama2.serve.cluster.client import ControllerClient
        from videollama2.serve.page.backends import ControllerBackend

        client = ControllerClient(args.controller, key)
        return ControllerBackend(client, policy, credential=key, refresh=args.model_list_mode == "reload")

    key = read_security(argparse.Namespace(**vars(args), cors_origin=None, max_body_mb=1)).credential
    run_page(backend, args)


if __name__ == "__main__":
    sys.exit(main())
