"""Runs a worker: serves one model with one engine over HTTP, and registers with a controller.

    python -m videollama2.serve.model_worker --controller http://localhost:10000 --port 40000 \\
        --worker http://localhost:40000 --model-path videollama2-tiny

Without a controller (``--no-register``) it serves the OpenAI routes under ``/v1`` on its own.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, closing
from typing import TYPE_CHECKING, Any

from videollama2 import flags
from videollama2.commands import add_debug_flag, run_command
from videollama2.errors import ConfigError
from videollama2.flags import address, seconds
from videollama2.garbage_collection import paused
from videollama2.quiet import hide_library_bars
from videollama2.serve.cluster.protocol import HEART_BEAT_S
from videollama2.serve.part_flags import add_controller_flag, add_listen_flags, part_parser
from videollama2.serve.settings import (
    add_media_flags,
    add_security_flags,
    is_loopback,
    read_media_policy,
    read_security,
)
from videollama2.serve.worker.flags import WORKER_MODULES, add_worker_flags, check_own_engine, model_name_of

if TYPE_CHECKING:
    from videollama2.inference.back_end import BackEnd
    from videollama2.inference.engine import Engine
    from videollama2.serve.worker.app import WorkerService

DEFAULT_PORT = 40000
_WATCH_S = 1.0
_log = logging.getLogger("videollama2.serve.model_worker")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = part_parser("model_worker", __doc__)
    add_listen_flags(parser, DEFAULT_PORT)
    add_controller_flag(parser)
    parser.add_argument(
        "--worker",
        "--worker-address",
        dest="worker",
        type=address,
        metavar="URL",
        help="address at which controller and clients reach this worker (default: this machine and port)",
    )
    parser.add_argument("--no-register", action="store_true", help="serve alone, without a controller")
    parser.add_argument(
        "--heart-beat-interval", type=seconds, default=HEART_BEAT_S, metavar="SECONDS", help="default %(default)g"
    )
    parser.add_argument(
        "--speed",
        type=seconds,
        metavar="X",
        help="weight of this worker for the controller (default: its best measured tokens per second)",
    )
    add_worker_flags(parser)
    add_security_flags(parser, worker_flags=True)
    add_media_flags(parser)
    add_debug_flag(parser)
    return parser


def own_address(args: argparse.Namespace) -> str:
    """Return the address at which others reach this worker if ``--worker`` does not give one.

    Raises:
        ConfigError: the worker listens on all addresses, and no address for others was given.
    """
    if args.worker is not None:
        return args.worker
    if args.host in ("0.0.0.0", "::"):
        if args.no_register or is_loopback(_host_of(args.controller)):
            return f"http://localhost:{args.port}"
        raise ConfigError(f"--worker is needed: where does the controller reach this worker, which is on {args.host}?")
    return f"http://{f'[{args.host}]' if ':' in args.host else args.host}:{args.port}"


def _host_of(url: str) -> str:
    from urllib.parse import urlsplit

    return urlsplit(url).hostname or ""


def measure_speed(engine: BackEnd) -> float:
    """Return the tokens per second of a single answer: the best of three runs, of which the first is a warm-up.

    Other workers may be loading at the same time; later answers of this worker correct the number.

    Raises:
        VideoLlama2Error: the model cannot answer at all.
    """
    from videollama2.serve.worker.app import SPEED_TOKENS, speed_of

    answers = (
        engine.submit("Hello", max_new_tokens=SPEED_TOKENS, min_new_tokens=SPEED_TOKENS).result() for _ in range(3)
    )
    return max(map(speed_of, answers))


OpenEngine = Callable[[argparse.Namespace], AbstractContextManager["BackEnd"]]
"""Opens the engine that a command line asks for; leaving the context closes it."""


def run(args: argparse.Namespace, open_engine: OpenEngine) -> int:
    """Load the model, register, and serve until told to stop.

    Args:
        open_engine: opens the engine that answers.

    Raises:
        VideoLlama2Error: the model cannot be loaded, or the address cannot be bound.
    """
    from videollama2.serve.web.server import bind, serve, warn_if_open

    security, policy = read_security(args), read_media_policy(args)
    name, own = args.model_name or model_name_of(args.model_path), own_address(args)
    warn_if_open(args.host, security)
    with ExitStack() as stack:
        listener = stack.enter_context(bind(args.host, args.port))  # a taken port is reported before weights are loaded
        service = open_service(args, name, policy, security.log_prompts, open_engine, stack)
        service.is_speed_fixed = args.speed is not None
        service.speed = args.speed or service.speed
        from videollama2.serve.worker.app import make_worker_app

        beat = None
        if not args.no_register:
            from videollama2.serve.worker.registration import Registration

            beat = Registration(
                args.controller,
                own,
                service.status,
                security.credential,
                args.heart_beat_interval,
                taken=lambda: service.taken,
            )

        async def drain() -> None:
            service.closing = True
            if beat is not None:
                await beat.stop()

        app = make_worker_app(service, security, args.stream_interval, _lifespan(service, beat))
        code = serve(
            app,
            args.host,
            args.port,
            drain=drain,
            drain_timeout_s=args.drain_timeout,
            bound=listener,
            on_listening=None if beat is None else beat.start,
        )
        return 1 if service.engine.closed else code


@paused()
def open_own_engine(args: argparse.Namespace) -> Engine:
    """Load the model and open the package's own engine with the flags of :func:`add_worker_flags`.

    Raises:
        ConfigError: a flag is for an engine of another project. CheckpointError: the model cannot be loaded.
    """
    from videollama2.inference.api import model_init
    from videollama2.inference.engine import Engine

    if args.engine != "own":
        raise ConfigError(f"this worker has the own engine alone; run python -m {WORKER_MODULES[args.engine]}")
    check_own_engine(args)
    hide_library_bars()
    model, processor, _ = model_init(args.model_path, **flags.model_options(args))
    return Engine(
        model,
        processor,
        max_batch=args.limit_model_concurrency,
        max_length=args.max_length,
        max_queue=args.max_queue,
        cuda_graphs=args.cuda_graphs,
        packed_weights=args.pack_weights,
    )


def open_service(
    args: argparse.Namespace, name: str, policy: Any, log_prompts: bool, open_engine: OpenEngine, stack: ExitStack
) -> WorkerService:
    """Open the engine and what decodes media for it, and let the model answer a few times.

    Args:
        name: what clients call the model.
        policy: rules for media, from :func:`videollama2.serve.settings.read_media_policy`.
        stack: closes both at the end.

    Raises:
        VideoLlama2Error: the model cannot be loaded, or cannot answer.
    """
    from videollama2.serve.untrusted_media.sandbox import Sandbox
    from videollama2.serve.worker.app import WorkerService

    engine = stack.enter_context(open_engine(args))
    sandbox = stack.enter_context(closing(Sandbox.of(policy, engine.processor)))
    service = WorkerService(engine, name, policy, sandbox, log_prompts=log_prompts)
    service.speed = measure_speed(engine)
    _log.info(
        "%s: %d answers at once of %d tokens, %g tokens/s", name, engine.max_batch, engine.max_length, service.speed
    )
    return service


def _lifespan(service: WorkerService, beat: Any) -> Any:
    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        await service.sandbox.start()
        watching = asyncio.ensure_future(_end_with(service.engine))
        try:
            yield
        finally:
            watching.cancel()
            if beat is not None:
                await beat.stop()
            await service.close()

    return lifespan


async def _end_with(engine: BackEnd) -> None:
    """Exit if the engine breaks, because a worker without it is useless: its supervisor should start another one."""
    while not engine.closed:
        await asyncio.sleep(_WATCH_S)
    _log.critical("the engine has stopped; this worker ends")
    os.kill(os.getpid(), signal.SIGTERM)


def main(arguments: Sequence[str] | None = None, open_engine: OpenEngine = open_own_engine) -> int:
    """Run the command line; return the exit code.

    Args:
        open_engine: opens the engine that answers; by default the package's own.
    """
    args = build_parser().parse_args(arguments)
    from videollama2.serve.web.server import configure_logging

    configure_logging(part=f"worker:{args.port}")
    return run_command(lambda: run(args, open_engine), "model_worker", args.debug)


if __name__ == "__main__":
    sys.exit(main())
