"""Runs ``videollama2 serve``: a controller, workers, the API and the web page on one machine, in child processes.

Only the API and the page can be reached from other machines, and only with ``--host``. A worker that dies is restarted.
If another part dies, or a worker keeps dying, the whole installation ends with an error. Ctrl-C or SIGTERM stops it in
order: the page and the API first, so that no new requests arrive, then the workers, which finish running answers.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
from typing import Any

from videollama2.commands import add_debug_flag
from videollama2.errors import ConfigError
from videollama2.flags import add_count_flag, check_without_effect, port
from videollama2.serve.child_processes import ChildProcess, Launcher
from videollama2.serve.launch_checks import check_before_start
from videollama2.serve.part_flags import add_replica_flags
from videollama2.serve.settings import (
    WORKER_TOKEN_VARIABLE,
    add_media_flags,
    add_security_flags,
    forwarded,
    read_media_policy,
    read_security,
)
from videollama2.serve.worker.flags import (
    RAY,
    RAY_MODULE,
    WORKER_MODULES,
    add_replica_engine_flag,
    add_worker_flags,
    check_engines_installed,
    check_own_engine,
    model_name_of,
    model_paths_of,
)

_HELP = "controller, workers, API and web page on this machine"


def add_serve_command(commands: Any) -> None:
    """Add the command ``serve`` to a parser's subcommands; it sets ``run`` and ``debug``."""
    parser = commands.add_parser(
        "serve", help=_HELP, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(run=run)
    where = parser.add_argument_group("addresses and parts")
    where.add_argument(
        "--host", default="127.0.0.1", help="address of the API and the page (default: this machine alone)"
    )
    where.add_argument(
        "--port",
        "--page-port",
        dest="page_port",
        type=port,
        default=7860,
        metavar="PORT",
        help="port of the web page (default %(default)s)",
    )
    where.add_argument("--api-port", type=port, default=8000, metavar="PORT", help="default %(default)s")
    _add_workers(where)
    where.add_argument("--no-page", action="store_true", help="start no web page")
    _add_page_flags(where)
    _add_models(parser)
    _add_replicas(parser)
    _add_security(parser)
    add_media_flags(parser)
    add_debug_flag(parser)


def _add_workers(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--controller-port", type=port, default=10000, metavar="PORT", help="default %(default)s")
    parser.add_argument(
        "--worker-port",
        type=port,
        default=40000,
        metavar="PORT",
        help="port of the first worker; the others use the following ones (default %(default)s)",
    )
    add_count_flag(parser, "--workers", "workers per model", default=1)


def _add_page_flags(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--auth-file", metavar="FILE", help="accounts of the web page, as lines 'user:password'")
    parser.add_argument(
        "--vote-log", metavar="FILE", help="file for votes and flags of the page (default runs/votes.jsonl)"
    )


def _add_models(parser: argparse.ArgumentParser) -> None:
    add_worker_flags(parser, is_several=True, has_ray=True)


def _add_replicas(parser: argparse.ArgumentParser) -> None:
    add_replica_flags(parser)
    add_replica_engine_flag(parser)


def _add_security(parser: argparse.ArgumentParser) -> None:
    add_security_flags(parser, worker_flags=True)


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Raises:
        VideoLlama2Error: a flag is invalid, or a part died.
    """
    read_security(args)  # wrong flags are reported here once, rather than by every part
    read_media_policy(args)
    _check_engine(args)
    stages = _ray_parts(args) if args.engine == RAY else _parts(args)
    check_before_start(args)
    launcher = Launcher(lambda text: print(f"videollama2 serve: {text}", file=sys.stderr, flush=True))
    for number_ in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number_, launcher.on_signal)
    try:
        for parts in stages:
            if not launcher.signals:
                launcher.start(*parts)
        if not launcher.signals:
            _print_addresses(args)
            launcher.watch()
    finally:
        launcher.end()
    return 0


def _check_engine(args: argparse.Namespace) -> None:
    """Check the flags of the engine, and that the package of an engine of another project is installed."""
    if args.engine == RAY:
        check_without_effect(args, _add_workers, "not with --engine ray, which has replicas in place of workers")
    else:
        check_without_effect(args, _add_replicas, "only with --engine ray")
    runs = args.replica_engine if args.engine == RAY else args.engine
    if runs == "own":
        check_own_engine(args)
    check_engines_installed((args.engine, runs))


def _ray_parts(args: argparse.Namespace) -> list[list[ChildProcess]]:
    """Return the parts of an installation on Ray Serve: the API, which is the controller too, and then the page."""
    environment = dict(os.environ)
    arguments = ["-m", RAY_MODULE, "--host", args.host, "--port", str(args.api_port), "--engine", args.replica_engine]
    for add_flags in (_add_models, add_replica_flags, add_media_flags):
        arguments += forwarded(args, add_flags, exclude={"engine"})
    arguments += forwarded(args, _add_security, exclude={"worker_token_file"})  # nothing registers here
    url = f"http://{_own_host(args)}:{args.api_port}"
    page = [] if args.no_page else [_page(args, url, environment)]
    return [[ChildProcess("API", arguments, f"{url}/ready", environment)], page]


def _parts(args: argparse.Namespace) -> list[list[ChildProcess]]:
    """Return the parts in the order of their start; those of one list start at the same time."""
    environment = dict(os.environ)
    if args.worker_token_file is None:
        # With a token, no other worker can register here, not even from this machine.
        environment.setdefault(WORKER_TOKEN_VARIABLE, secrets.token_urlsafe(32))
    # Only the API may be called from pages of other origins.
    shared = forwarded(args, _add_security, exclude={"cors_origin"})
    controller_url = f"http://127.0.0.1:{args.controller_port}"
    controller = ChildProcess(
        "controller",
        ["-m", "videollama2.serve.controller", "--port", str(args.controller_port), *shared],
        f"{controller_url}/ready",
        environment,
    )
    paths = model_paths_of(args)
    names = [model_name_of(path) for path in paths]
    if len(set(names)) < len(names):
        raise ConfigError(f"two models have one name: {', '.join(names)}; use folders of different names")
    workers = [
        _worker(args, path, args.worker_port + index, controller_url, shared, environment)
        for index, path in enumerate(path for path in paths for _ in range(args.workers))
    ]
    page = [] if args.no_page else [_page(args, controller_url, environment)]
    return [[controller], [*workers, _api(args, controller_url, environment)], page]


def _api(args: argparse.Namespace, controller: str, environment: dict[str, str]) -> ChildProcess:
    arguments = ["-m", "videollama2.serve.openai_api", "--controller", controller, "--host", args.host]
    arguments += ["--port", str(args.api_port), *forwarded(args, _add_security)]
    return ChildProcess("API", arguments, f"http://{_own_host(args)}:{args.api_port}/health", environment)


def _page(args: argparse.Namespace, controller: str, environment: dict[str, str]) -> ChildProcess:
    arguments = ["-m", "videollama2.serve.gradio_web_server", "--controller", controller, "--model-list-mode", "reload"]
    arguments += ["--host", args.host, "--port", str(args.page_port), *forwarded(args, _add_page_flags)]
    arguments += forwarded(args, _add_security, exclude={"worker_token_file", "cors_origin", "max_body_mb"})
    return ChildProcess("page", arguments, f"http://{_own_host(args)}:{args.page_port}/", environment)


def _own_host(args: argparse.Namespace) -> str:
    """Return the host by which this process reaches what listens on ``--host``."""
    return _bracketed("127.0.0.1" if args.host in ("0.0.0.0", "::") else args.host)


def _worker(
    args: argparse.Namespace, path: str, at: int, controller: str, shared: list[str], environment: dict[str, str]
) -> ChildProcess:
    arguments = [
        "-m",
        WORKER_MODULES[args.engine],
        "--controller",
        controller,
        "--port",
        str(at),
        "--worker",
        f"http://127.0.0.1:{at}",
        "--model-path",
        path,
        *shared,
        *forwarded(args, add_worker_flags, exclude={"model_path", "model_name"}),
        *forwarded(args, add_media_flags),
    ]
    return ChildProcess(
        f"worker {model_name_of(path)} on port {at}",
        arguments,
        f"http://127.0.0.1:{at}/ready",
        environment,
        may_restart=True,
    )


def _print_addresses(args: argparse.Namespace) -> None:
    host = _bracketed(args.host)
    lines = [f"API         http://{host}:{args.api_port}/v1", "Ctrl-C ends all."]
    if args.engine != RAY:
        lines.insert(1, f"controller  http://127.0.0.1:{args.controller_port}")
    if not args.no_page:
        lines.insert(0, f"page        http://{host}:{args.page_port}")
    print("\n".join(lines), flush=True)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
