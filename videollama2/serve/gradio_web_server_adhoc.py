"""Runs the web page and its model in one process: ``python videollama2/serve/gradio_web_server_adhoc.py``.

This is meant for trying out a model. Several visitors share the engine. To serve several models, or on several
machines, use the controller.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from videollama2.serve.page.backends import PageBackend
    from videollama2.serve.settings import MediaPolicy

if __name__ == "__main__" and not __package__:
    # For a script, Python adds its folder to the module path, where our module names would hide other packages.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from videollama2.constants import TINY_MODEL_NAME


def build_parser(default_model: str = TINY_MODEL_NAME) -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    from videollama2.commands import CommandParser, add_debug_flag
    from videollama2.flags import add_model_flags
    from videollama2.serve.page.server import add_page_flags

    parser = CommandParser(description="Web page with a model in one process.")
    model = add_model_flags(
        parser,
        nargs="+",
        default=[default_model],
        help=f"one or more of: videollama2-tiny (built in), a folder, a hub name (default {default_model})",
    )
    model.add_argument("--max-batch", type=int, metavar="N", help="answers computed together (default: as many as fit)")
    model.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="longest conversation with its answer, in tokens (default: what fits)",
    )
    add_page_flags(parser, max_upload_mb=256)
    add_debug_flag(parser)
    return parser


def open_engines(args: argparse.Namespace, must_hear: bool = False) -> dict[str, Any]:
    """Load the models; the page shows each under the last part of its name.

    Args:
        must_hear: whether every model must have an audio encoder.

    Raises:
        VideoLlama2Error: a model cannot be opened, has no audio encoder, or two have the same name.
    """
    from videollama2.errors import ConfigError
    from videollama2.flags import model_options
    from videollama2.inference.api import model_init
    from videollama2.inference.engine import Engine
    from videollama2.quiet import hide_library_bars

    hide_library_bars()
    engines: dict[str, Any] = {}
    for path in args.model_path:
        name = Path(path).name or str(path)
        if name in engines:
            raise ConfigError(f"two models are called {name!r}: rename one of the folders")
        model, processor, _ = model_init(path, **model_options(args))
        if must_hear and not model.config.hears:
            raise ConfigError(f"{path}: has no audio encoder; serve it with gradio_web_server_adhoc.py")
        engines[name] = Engine(model, processor, max_batch=args.max_batch, max_length=args.max_length)
    return engines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    return serve_page(arguments, TINY_MODEL_NAME)


def serve_page(arguments: Sequence[str] | None, default_model: str, must_hear: bool = False) -> int:
    """Run the page with the models of a command line; return the exit code.

    Args:
        must_hear: whether every model must have an audio encoder.
    """
    args = build_parser(default_model).parse_args(arguments)
    from videollama2.commands import run_command

    return run_command(lambda: _run(args, must_hear), debug=args.debug)


def _run(args: argparse.Namespace, must_hear: bool) -> None:
    from videollama2.serve.page.server import run_page

    def backend(policy: MediaPolicy) -> PageBackend:
        from videollama2.serve.page.backends import LocalBackend

        return LocalBackend(open_engines(args, must_hear), policy)

    run_page(backend, args)


if __name__ == "__main__":
    sys.exit(main())
