"""Passes requests of OpenAI's API on to the workers that a controller knows.

Requests are validated here and forwarded to a worker that serves the model. If a worker dies before its first token,
another one is tried. The worker fetches and decodes media, under the rules of its operator.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response

from videollama2.serve.api.routes import AnyRequest, openai_router
from videollama2.serve.cluster.client import ChatStream
from videollama2.serve.long_text import dumped
from videollama2.serve.settings import Security
from videollama2.serve.web import sse
from videollama2.serve.web.app import make_app
from videollama2.serve.web.errors import ApiError
from videollama2.serve.web.guard import REQUEST_ID
from videollama2.serve.web.metrics import WebMetrics
from videollama2.serve.web.streaming import EventStream, whole_parts

LOOK_S = 5.0
"""Seconds between checks for the workers, on which ``/ready`` depends."""

_log = logging.getLogger(__name__)


class Workers(Protocol):
    """The workers that answer, for example :class:`videollama2.serve.cluster.client.ControllerClient`."""

    async def lengths(self) -> Mapping[str, int | None]:
        """Return each available model with its limit on tokens of prompt and answer.

        Raises:
            ApiError: no part of the cluster knows it at the moment.
        """
        ...

    def open_chat(
        self, body: Mapping[str, Any], request_id: str, content: bytes, path: str
    ) -> AbstractAsyncContextManager[ChatStream]:
        """Send a request; the reply is open inside the ``async with`` block.

        Args:
            body, content: the request, parsed and as JSON.
            path: route of the API.

        Raises:
            ApiError: the request is invalid, or no worker can take it.
        """
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...


class ApiFront:
    """The functions behind the routes.

    Args:
        client: client of the workers.
    """

    def __init__(self, client: Workers) -> None:
        self.client = client
        self.missing: str | None = "looking for the workers"
        """What the server is waiting for; None if it is ready."""

    @asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """Check for the workers while the application runs; this is its lifespan."""
        looking = asyncio.ensure_future(self._look())
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
            await self.client.aclose()

    async def _look(self) -> None:
        while True:
            try:
                await self.client.lengths()
                self.missing = None
            except ApiError as error:
                self.missing = "the workers cannot be used"
                _log.debug("the workers: %s", error)
            await asyncio.sleep(LOOK_S)

    async def lengths(self) -> Mapping[str, int | None]:
        """See :class:`videollama2.serve.api.routes.ApiHandlers`."""
        return await self.client.lengths()

    async def answer(self, path: str, body: AnyRequest, request: Request) -> Response:
        """Return a worker's reply, or the beginning of a stream. The validated body is forwarded as the client sent it.

        Raises:
            ApiError: the request is invalid, or no worker can take it.
        """
        sent, content, request_id = await request.json(), await request.body(), REQUEST_ID.get()
        if sent.get("model") is None:
            sent = {**sent, "model": await self._only_model()}
            content = await asyncio.to_thread(dumped, sent)
        if sent.get("stream"):
            return await EventStream.begin(self._events(path, sent, content, request_id))
        async with self.client.open_chat(sent, request_id, content, path) as reply:
            return Response(b"".join([chunk async for chunk in reply]), media_type="application/json")

    async def _only_model(self) -> str:
        names = list(await self.client.lengths())
        if len(names) != 1:
            raise ApiError(
                400, "model is needed: this installation has several", code="missing_required_parameter", param="model"
            )
        return names[0]

    async def _events(
        self, path: str, body: Mapping[str, Any], content: bytes, request_id: str
    ) -> AsyncGenerator[bytes, None]:
        async with (
            self.client.open_chat(body, request_id, content, path) as reply,
            aclosing(whole_parts(aiter(reply), sse.SEPARATOR)) as parts,
        ):
            async for part in parts:
                yield part


def make_front_app(front: ApiFront, security: Security, metrics: WebMetrics | None = None) -> FastAPI:
    """Return the web application of the front.

    Args:
        metrics: counts its requests, and is served at ``/metrics``; None creates one.
    """
    metrics = metrics or WebMetrics()
    app = make_app("VideoLLaMA 2 API", security, ready=lambda: front.missing, lifespan=front.running, metrics=metrics)
    app.include_router(openai_router(front))
    metrics.paths = frozenset(app.openapi()["paths"])
    return app
