"""Runs the model on Ray Serve, on the cluster that ``RAY_ADDRESS`` names or on this machine alone.

    python -m videollama2.engines.ray.server --model-path FOLDER --max-replicas 4

Ctrl-C or SIGTERM removes the application, once running answers have ended.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from videollama2.commands import add_debug_flag, run_command
from videollama2.engines.ray.settings import add_application_flags, named
from videollama2.errors import EngineError, MissingDependencyError, first_line
from videollama2.serve.part_flags import add_listen_flags, part_parser
from videollama2.serve.settings import is_loopback, read_security
from videollama2.serve.worker.flags import model_paths_of

APPLICATION = "videollama2"
DEFAULT_PORT = 8000


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = part_parser("ray", __doc__)
    parser.prog = "python -m videollama2.engines.ray.server"
    add_listen_flags(parser, DEFAULT_PORT)
    add_application_flags(parser, is_several=True)
    add_debug_flag(parser)
    return parser


def models_of(args: argparse.Namespace) -> list[argparse.Namespace]:
    """Return the flags of each model of a command line.

    Raises:
        ConfigError: two models have the same name.
    """
    paths = model_paths_of(args)
    return named([argparse.Namespace(**{**vars(args), "model_path": path}) for path in paths])


def run(args: argparse.Namespace) -> int:
    """Deploy the application, and remove it when told to stop.

    Raises:
        MissingDependencyError: Ray is not installed. ConfigError: a flag is invalid.
        EngineError: Ray cannot start, or the application does not start; the log says why.
    """
    try:
        from videollama2.engines.ray.core import joined
    except ModuleNotFoundError as error:
        raise MissingDependencyError.of("Ray Serve is not installed", "[ray]") from error
    from videollama2.serve.web.server import warn_if_open

    warn_if_open(args.host, read_security(args))
    with joined():
        _serve(args)
    return 0


def _serve(args: argparse.Namespace) -> None:
    """See :func:`run`."""
    from videollama2.engines.ray.core import ray, serve
    from videollama2.engines.ray.deployments import application
    from videollama2.serve.web.server import ended_by_signals

    try:
        where = "HeadOnly" if is_loopback(args.host) else "EveryNode"
        serve.start(proxy_location=where, http_options={"host": args.host, "port": args.port})
        serve.run(application(models_of(args)), name=APPLICATION, route_prefix="/")
    except (RuntimeError, ConnectionError, TimeoutError, ray.exceptions.RayError) as error:
        raise EngineError(f"Ray Serve: {first_line(error)}") from error
    # Only now, since Ray has set handlers of its own, which end the process at once.
    with ended_by_signals() as ended:
        ended.wait()
        serve.delete(APPLICATION)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    args = build_parser().parse_args(arguments)
    from videollama2.serve.web.server import configure_logging

    configure_logging(part="ray")
    return run_command(lambda: run(args), "ray", args.debug)


if __name__ == "__main__":
    sys.exit(main())
