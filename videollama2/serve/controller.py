"""The controller: knows the workers, tells clients where they are, and passes ``\\0``-streams on.

    python -m videollama2.serve.controller --host 0.0.0.0 --port 10000

Routes are POST, as published: ``/register_worker``, ``/receive_heart_beat``, ``/unregister_worker``,
``/refresh_all_workers`` (with the worker token), ``/list_models``, ``/get_worker_address``, ``/worker_get_status``,
``/worker_generate_stream``. ``GET /metrics`` is for Prometheus.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any

import httpx
from fastapi import FastAPI, Request, Response
from pydantic import ValidationError
from starlette.responses import JSONResponse

from videollama2.commands import CommandParser, add_debug_flag, run_command
from videollama2.flags import port, seconds
from videollama2.serve.cluster.admission import WorkerAddresses
from videollama2.serve.cluster.failover import (
    ClosingIterator,
    Patience,
    Reply,
    WorkerLostError,
    ask_any,
    bearer,
    make_client,
)
from videollama2.serve.cluster.gauges import WorkerGauges
from videollama2.serve.cluster.protocol import (
    EXPIRY_S,
    GenerateStream,
    HeartBeat,
    ModelAsked,
    RegisterWorker,
    Splitter,
    WorkerGone,
    WorkerStatus,
    error_frame,
)
from videollama2.serve.cluster.registry import METHODS, Registry, Worker, affinity_of
from videollama2.serve.settings import Security, add_security_flags, read_security
from videollama2.serve.web.app import configure_logging, make_app, serve, warn_if_open
from videollama2.serve.web.errors import ApiError, worker_failed
from videollama2.serve.web.guard import REQUEST_ID
from videollama2.serve.web.metrics import WebMetrics
from videollama2.serve.web.streaming import ClientGoneError, EventStream, while_connected

DEFAULT_PORT = 10000
WORKER_PATHS = ("/register_worker", "/receive_heart_beat", "/unregister_worker", "/refresh_all_workers")
STATUS_TIMEOUT_S = 5.0
STREAM_PATH = "/worker_generate_stream"

_FORWARDED = {"forwarded", "x-forwarded-for", "x-real-ip", "via"}

_log = logging.getLogger("videollama2.serve.controller")


class Controller:
    """What the routes do.

    Args:
        registry: of the workers.
        security: keys, and which addresses workers may have.
        patience: with workers.
    """

    def __init__(self, registry: Registry, security: Security, patience: Patience | None = None) -> None:
        self.registry, self.security = registry, security
        self.patience = patience or Patience()
        self.addresses = WorkerAddresses(security)
        self._headers = bearer(security.credential)
        self._refreshing: asyncio.Task[None] | None = None
        self._client: httpx.AsyncClient | None = None

    @asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """Lifespan of the application."""
        self._client = make_client()
        watching = asyncio.ensure_future(self._watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await self._client.aclose()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.registry.expiry_s / 4)
            for name in self.registry.expire():
                _log.warning("worker %s has been silent for %g s and is gone", name, self.registry.expiry_s)

    # -------------------------------------------------------------------------------------------------------- workers

    async def register(self, body: RegisterWorker) -> None:
        """Take a worker up.

        Raises:
            ApiError: its address is not allowed, or it says nothing of itself.
        """
        address = await self.addresses.admit(body.worker_name)
        status = body.worker_status or await self._status(address)
        if status is None:
            raise ApiError(400, "the worker does not tell its status", code="invalid_worker", param="worker_name")
        self.registry.register(body.worker_name, status, address, body.check_heart_beat, body.multimodal)
        _log.info("worker %s: %s, speed %g", body.worker_name, ", ".join(status.model_names), status.speed)

    async def refresh(self) -> None:
        """Ask all workers for their status; those that are gone are forgotten. Askers at one time share one round."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.ensure_future(self._refresh())
        await asyncio.shield(self._refreshing)

    async def _refresh(self) -> None:
        await asyncio.gather(*(self._refresh_one(worker) for worker in self.registry.workers))

    async def _refresh_one(self, worker: Worker) -> None:
        try:
            status = await self._status(worker.address)
        except httpx.TimeoutException:
            self.registry.failed(worker)  # slow is not gone
            return
        if status is None:
            self.registry.remove(worker.name)
        else:
            worker.models, worker.speed = tuple(status.model_names), status.speed
            worker.queue = status.queue_length

    async def _status(self, address: str) -> WorkerStatus | None:
        """What a worker says of itself; None: nothing that makes sense.

        Raises:
            httpx.TimeoutException: it does not answer in time.
        """
        try:
            response = await self._client.post(
                address + "/worker_get_status", json={}, headers=self._headers, timeout=STATUS_TIMEOUT_S
            )
            return WorkerStatus.model_validate_json(response.content) if response.status_code == 200 else None
        except httpx.TimeoutException:
            raise
        except (httpx.HTTPError, httpx.InvalidURL, ValidationError) as error:
            _log.info("%s tells no status: %s", address, type(error).__name__)
            return None

    def total(self) -> dict[str, Any]:
        """All workers as if they were one."""
        workers = self.registry.workers
        return {
            "model_names": self.registry.models(),
            "speed": sum(worker.speed for worker in workers),
            "queue_length": sum(worker.queue for worker in workers),
        }

    # --------------------------------------------------------------------------------------------------------- stream

    async def open_stream(self, model: str, content: bytes, affinity: str | None = None) -> AsyncIterator[bytes]:
        """Frames of an answer, from the first worker that begins one.

        Args:
            content: the request.
            affinity: of :func:`videollama2.serve.cluster.registry.affinity_of`.

        Raises:
            ApiError: none does.
        """
        chosen: dict[str, Worker] = {}

        async def choose(tried: tuple[str, ...]) -> tuple[str, str]:
            worker = self.registry.choose(model, tried, affinity)
            chosen[worker.name] = worker
            return worker.name, worker.address

        def lost(name: str) -> None:
            self.registry.failed(chosen[name])
            self.registry.finished(chosen.pop(name))

        headers = {**self._headers, "x-request-id": REQUEST_ID.get()}
        try:
            name, reply = await ask_any(self._client, choose, STREAM_PATH, content, headers, self.patience, lost)
        except BaseException:
            for worker in chosen.values():
                self.registry.finished(worker)
            raise
        return ClosingIterator(self._frames(chosen[name], reply), partial(self._close, chosen[name], reply))

    async def _close(self, worker: Worker, reply: Reply) -> None:
        self.registry.finished(worker)
        await reply.aclose()

    async def _frames(self, worker: Worker, reply: Reply) -> AsyncIterator[bytes]:
        """Whole frames alone are passed on: an error that follows must not run into half of one."""
        splitter = Splitter(b"\0")
        try:
            async with aclosing(aiter(reply)) as chunks:
                async for chunk in chunks:
                    whole = [part + b"\0" for part in splitter.feed(chunk)]
                    if whole:
                        yield b"".join(whole)
        except (WorkerLostError, ApiError) as error:
            _log.warning("a stream broke off: %s", error)
            self.registry.failed(worker)
            yield error_frame(worker_failed())


class FrameStream(EventStream):
    """A ``\\0``-stream on its way."""

    media_type = "application/octet-stream"


def frame_error(error: ApiError) -> Response:
    """An error of the ``\\0`` protocol, which with its status suits other clients as well."""
    return Response(error_frame(error), error.status, error.headers(), FrameStream.media_type)


def make_controller_app(controller: Controller) -> FastAPI:
    """The application."""
    metrics = WebMetrics(WorkerGauges(lambda: controller.registry.workers))
    app = make_app(
        "VideoLLaMA 2 controller",
        controller.security,
        worker_paths=WORKER_PATHS,
        lifespan=controller.running,
        metrics=metrics,
    )
    _add_worker_routes(app, controller)
    _add_client_routes(app, controller)
    metrics.paths = frozenset(app.openapi()["paths"])
    return app


def _add_worker_routes(app: FastAPI, controller: Controller) -> None:
    async def check(request: Request) -> None:
        # Behind a proxy, everybody comes from its address; workers have no business there.
        if controller.security.worker_token is None and not _FORWARDED.isdisjoint(request.headers):
            raise ApiError(403, "workers do not register through a proxy without a worker token", code="forbidden")
        await controller.addresses.check_caller(request.client.host if request.client else None)

    @app.post("/register_worker")
    async def register_worker(body: RegisterWorker, request: Request) -> dict[str, Any]:
        await check(request)
        await controller.register(body)
        return {"registered": True}

    @app.post("/receive_heart_beat")
    async def receive_heart_beat(body: HeartBeat, request: Request) -> dict[str, bool]:
        await check(request)
        return {"exist": controller.registry.beat(body.worker_name, body.queue_length, body.speed)}

    @app.post("/unregister_worker")
    async def unregister_worker(body: WorkerGone, request: Request) -> dict[str, bool]:
        await check(request)
        known = controller.registry.remove(body.worker_name)
        if known:
            _log.info("worker %s leaves", body.worker_name)
        return {"exist": known}

    @app.post("/refresh_all_workers")
    async def refresh_all_workers() -> dict[str, Any]:
        await controller.refresh()
        return {"models": controller.registry.models()}


def _add_client_routes(app: FastAPI, controller: Controller) -> None:
    registry = controller.registry

    @app.post("/list_models")
    async def list_models() -> dict[str, list[str]]:
        return {"models": registry.models()}

    @app.post("/list_multimodal_models")
    async def list_multimodal_models() -> dict[str, list[str]]:
        return {"models": registry.models(multimodal=True)}

    @app.post("/list_language_models")
    async def list_language_models() -> dict[str, list[str]]:
        return {"models": registry.models(multimodal=False)}

    @app.post("/get_worker_address")
    async def get_worker_address(body: ModelAsked) -> Response:
        try:
            return JSONResponse({"address": registry.choose(body.model, body.exclude, body.affinity).address})
        except ApiError as error:
            # Published clients look for an empty address.
            return JSONResponse({**error.body(), "address": ""}, error.status, error.headers())

    @app.post("/worker_get_status")
    async def worker_get_status() -> dict[str, Any]:
        return controller.total()

    @app.get("/test_connection")
    async def test_connection() -> str:
        return "success"

    @app.post(STREAM_PATH)
    async def worker_generate_stream(body: GenerateStream, request: Request) -> Response:
        try:
            work = begin(body.model, await request.body(), affinity_of(body.images))
            return await while_connected(request, work)
        except ApiError as error:
            return frame_error(error)
        except ClientGoneError:
            return Response(status_code=499)

    async def begin(model: str, content: bytes, affinity: str | None) -> Response:
        frames = await controller.open_stream(model, content, affinity)
        return FrameStream(b"", frames)


# ------------------------------------------------------------------------------------------------------- command line


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        prog="python -m videollama2.serve.controller",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=port, default=DEFAULT_PORT, help="default %(default)s")
    parser.add_argument(
        "--dispatch-method",
        default=METHODS[0],
        choices=METHODS,
        help="which worker takes a request: the least queue for its speed (default), or by lot, in proportion to speed",
    )
    parser.add_argument(
        "--expiry",
        type=seconds,
        default=EXPIRY_S,
        metavar="SECONDS",
        help="silence after which a worker is gone (default %(default)g)",
    )
    parser.add_argument(
        "--worker-silence",
        type=seconds,
        default=Patience().silence,
        metavar="SECONDS",
        help="without a byte of an answer, after which a worker is asked whether it lives (default %(default)g)",
    )
    add_security_flags(parser, worker_flags=True, registry=True)
    add_debug_flag(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
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
