"""The web page and its model in one process: ``python videollama2/serve/gradio_web_server_adhoc.py``.

This is meant for trying out a model. Several visitors share the engine. To serve several models, or on several
machines, use the controller.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:
    # For a script, Python adds its folder to the module path, where our module names would hide other packages.
    sys.path[0] = str(Path(__file__).resolve().parents[2])


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    from videollama2.commands import CommandParser, add_debug_flag
    from videollama2.constants import TINY_MODEL_NAME
    from videollama2.flags import add_model_flags
    from videollama2.serve.page.server import add_page_flags

    parser = CommandParser(description="Web page with a model in one process.")
    model = add_model_flags(
        parser,
        nargs="+",
        default=[TINY_MODEL_NAME],
        help="one or more of: videollama2-tiny (built in, default), a folder, a hub name",
    )
    model.add_argument("--max-batch", type=int, metavar="N", help="answers computed together (default: what fits)")
    model.add_argument(
        "--max-length", type=int, metavar="N", help="tokens of a conversation with its answer (default: what fits)"
    )
    add_page_flags(parser, max_upload_mb=256)
    add_debug_flag(parser)
    return parser


def open_engines(args: argparse.Namespace) -> dict[str, Any]:
    """Load the models; the page shows each under the last part of its name.

    Raises:
        VideoLlama2Error: a model cannot be opened, or two have the same name.
    """
    from transformers.utils import logging

    from videollama2.errors import ConfigError
    from videollama2.flags import model_options
    from videollama2.inference.api import model_init
    from videollama2.inference.engine import Engine

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    engines: dict[str, Any] = {}
    for path in args.model_path:
        name = Path(path).name or str(path)
        if name in engines:
            raise ConfigError(f"two models are called {name!r}: rename one of the folders")
        model, processor, _ = model_init(path, **model_options(args))
        engines[name] = Engine(model, processor, max_batch=args.max_batch, max_length=args.max_length)
    return engines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    args = build_parser().parse_args(arguments)
    from videollama2.commands import run_command

    return run_command(lambda: _run(args), debug=args.debug)


def _run(args: argparse.Namespace) -> None:
    from videollama2.serve.page.server import check_page_flags, open_log, run_page, uploads_folder
    from videollama2.serve.settings import MediaPolicy

    check_page_flags(args)
    log = open_log(args)
    with uploads_folder() as folder:
        from videollama2.serve.page.backends import EngineBackend
        from videollama2.serve.page.layout import PageSettings, build_page

        backend = EngineBackend(open_engines(args), MediaPolicy(max_bytes=args.max_upload_mb << 20))
        try:
            settings = PageSettings(log=log, concurrency=args.concurrency_count, uploads=folder)
            run_page(build_page(backend, settings), folder, args)
        finally:
            backend.close()


if __name__ == "__main__":
    sys.exit(main())
