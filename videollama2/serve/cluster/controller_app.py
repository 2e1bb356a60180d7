"""Makes a web application of the controller: workers report to it, and clients ask it for workers.

As in the published controller, the routes are POST: ``/register_worker``, ``/receive_heart_beat``,
``/unregister_worker``, ``/refresh_all_workers`` (these need the worker token), ``/list_models``,
``/get_worker_address``, ``/worker_get_status`` and ``/worker_generate_stream``. ``GET /metrics`` serves Prometheus.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import cached_property
from typing import Any

import httpx
from fastapi import FastAPI, Request, Response
from pydantic import ValidationError
from starlette.responses import JSONResponse

from videollama2.serve.cluster.admission import WorkerAddresses, worker_address
from videollama2.serve.cluster.affinity import affinity_of
from videollama2.serve.cluster.failover import ask_any
from videollama2.serve.cluster.gauges import WorkerGauges
from videollama2.serve.cluster.protocol import HeartBeat, ModelAsked, RegisterWorker, WorkerGone, WorkerStatus
from videollama2.serve.cluster.registry import Registry, Worker
from videollama2.serve.cluster.worker_call import Patience, WorkerLostError, bearer, make_client
from videollama2.serve.legacy import SEPARATOR, STREAM_PATH, FrameStream, GenerateRequest, error_reply
from videollama2.serve.settings import Security
from videollama2.serve.web.app import make_app
from videollama2.serve.web.errors import ApiError, worker_failed
from videollama2.serve.web.guard import REQUEST_ID
from videollama2.serve.web.metrics import WebMetrics
from videollama2.serve.web.streaming import while_connected, whole_parts

WORKER_PATHS = ("/register_worker", "/receive_heart_beat", "/unregister_worker", "/refresh_all_workers")
STATUS_TIMEOUT_S = 5.0

_FORWARDED = {"forwarded", "x-forwarded-for", "x-real-ip", "via"}

_log = logging.getLogger("videollama2.serve.controller")


class Controller:
    """The functions behind the routes.

    Args:
        registry: registry of the workers.
        security: keys, and the addresses that workers may have.
        patience: timeouts for the workers.
    """

    def __init__(self, registry: Registry, security: Security, patience: Patience | None = None) -> None:
        self.registry, self.security = registry, security
        self.patience = patience or Patience()
        self.addresses = WorkerAddresses(security)
        self._headers = bearer(security.credential)
        self._refreshing: asyncio.Task[None] | None = None

    @cached_property
    def http(self) -> httpx.AsyncClient:
        """The HTTP client for requests to workers. It is created on first use, in the event loop."""
        return make_client()

    @asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """Watch the workers while the application runs; this is its lifespan."""
        watching = asyncio.ensure_future(self._watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await self.http.aclose()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.registry.expiry_s / 4)
            # Workers that send no heartbeats are asked, four times within the silence after which they would be
            # forgotten.
            silent = [worker for worker in self.registry.workers if not worker.is_checked]
            await asyncio.gather(*(self._refresh_one(worker, may_forget=False) for worker in silent))
            for name in self.registry.expire():
                _log.warning("worker %s has been silent for %g s and is gone", name, self.registry.expiry_s)

    # -------------------------------------------------------------------------------------------------------- workers

    async def register(self, body: RegisterWorker) -> None:
        """Register a worker.

        Raises:
            ApiError: its address is not allowed, or it does not report its status.
        """
        worker = worker_address(body.worker_name)
        address = await self.addresses.admit(worker)
        status = body.worker_status or await self._status(address)
        if status is None:
            raise ApiError(400, "the worker does not tell its status", code="invalid_worker", param="worker_name")
        self.registry.register(worker.origin, status, address, body.check_heart_beat, body.multimodal)
        _log.info("worker %s: %s, speed %g", worker.origin, ", ".join(status.model_names), status.speed)

    async def refresh(self) -> None:
        """Ask all workers for their status, and forget those that do not reply. Concurrent callers share one round."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.ensure_future(self._refresh())
        # A caller that leaves must not cancel the round of the others.
        await asyncio.shield(self._refreshing)

    async def _refresh(self) -> None:
        await asyncio.gather(*(self._refresh_one(worker) for worker in self.registry.workers))

    async def _refresh_one(self, worker: Worker, may_forget: bool = True) -> None:
        """Ask a worker for its status.

        Args:
            may_forget: whether to forget a worker at once if it reports no status, rather than after ``expiry_s``.
        """
        try:
            status = await self._status(worker.address)
        except httpx.TimeoutException:
            self.registry.failed(worker)  # a slow worker is kept
            return
        if status is not None:
            self.registry.told(worker, status)
        elif may_forget:
            self.registry.remove(worker.name)

    async def _status(self, address: str) -> WorkerStatus | None:
        """Return the status that a worker reports, or None if there is no valid one.

        Raises:
            httpx.TimeoutException: the worker does not reply in time.
        """
        try:
            response = await self.http.post(
                address + "/worker_get_status", json={}, headers=self._headers, timeout=STATUS_TIMEOUT_S
            )
            return WorkerStatus.model_validate_json(response.content) if response.status_code == 200 else None
        except httpx.TimeoutException:
            raise
        except (httpx.HTTPError, httpx.InvalidURL, ValidationError) as error:
            _log.info("%s tells no status: %s", address, type(error).__name__)
            return None

    def total(self) -> dict[str, Any]:
        """Return the status of all workers combined, as if they were one."""
        workers = self.registry.workers
        return {
            "model_names": self.registry.models(),
            "speed": sum(worker.speed for worker in workers),
            "queue_length": sum(worker.queue for worker in workers),
        }

    # --------------------------------------------------------------------------------------------------------- stream

    async def frames(self, model: str, content: bytes, affinity: str | None = None) -> AsyncGenerator[bytes, None]:
        """Yield the frames of an answer, each complete, from the first worker that begins to answer.

        Args:
            content: the request as JSON.
            affinity: key from :func:`videollama2.serve.cluster.affinity.affinity_of`.

        Raises:
            ApiError: no worker begins to answer, or the one that did broke off.
        """
        chosen: dict[str, Worker] = {}

        async def choose(tried: tuple[str, ...]) -> tuple[str, str]:
            worker = self.registry.choose(model, tried, affinity)
            chosen[worker.name] = worker
            return worker.name, worker.address

        def lost(name: str) -> None:
            self.registry.failed(chosen[name])
            # Taken out of ``chosen``, so that the end of the stream does not count this worker's request as finished
            # again.
            self.registry.finished(chosen.pop(name))

        headers = {**self._headers, "x-request-id": REQUEST_ID.get()}
        try:
            name, reply = await ask_any(self.http, choose, STREAM_PATH, content, headers, self.patience, lost)
            try:
                async with aclosing(whole_parts(aiter(reply), SEPARATOR)) as parts:
                    async for part in parts:
                        yield part
            except (WorkerLostError, ApiError) as error:
                _log.warning("a stream broke off: %s", error)
                self.registry.failed(chosen[name])
                raise worker_failed() from error
            finally:
                await reply.aclose()
        finally:
            for worker in chosen.values():
                self.registry.finished(worker)


def make_controller_app(controller: Controller) -> FastAPI:
    """Return the web application of a controller."""
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
        # Behind a proxy, all callers have the proxy's address. Workers do not register through a proxy.
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
        return {
            "exist": controller.registry.beat(worker_address(body.worker_name).origin, body.queue_length, body.speed)
        }

    @app.post("/unregister_worker")
    async def unregister_worker(body: WorkerGone, request: Request) -> dict[str, bool]:
        await check(request)
        name = worker_address(body.worker_name).origin
        known = controller.registry.remove(name)
        if known:
            _log.info("worker %s leaves", name)
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

    @app.post("/list_max_model_lens")
    async def list_max_model_lens() -> dict[str, dict[str, int]]:
        return {"max_model_lens": registry.max_model_lens()}

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
            # Published clients expect an empty address if there is none.
            return JSONResponse({**error.body(), "address": ""}, error.status, error.headers())

    @app.post("/worker_get_status")
    async def worker_get_status() -> dict[str, Any]:
        return controller.total()

    @app.get("/test_connection")
    async def test_connection() -> str:
        return "success"

    @app.post(STREAM_PATH)
    async def worker_generate_stream(body: GenerateRequest, request: Request) -> Response:
        frames = controller.frames(body.model, await request.body(), affinity_of(body.images))
        try:
            return await while_connected(request, FrameStream.begin(frames))
        except ApiError as error:
            return error_reply(error)
