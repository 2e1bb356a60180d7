"""OpenAI's API over all workers of a controller.

Requests are validated here and answered by a worker that serves the model; one that dies before its first token is
replaced by another. Media are fetched and decoded by the worker, under its operator's rules.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response

from videollama2.serve.api.reply import ERROR_RESPONSES, ChatCompletion, Model, ModelList, model_reply, models_reply
from videollama2.serve.api.request import ChatRequest
from videollama2.serve.cluster.client import ControllerClient
from videollama2.serve.settings import Security
from videollama2.serve.web import sse
from videollama2.serve.web.app import make_app
from videollama2.serve.web.errors import ApiError
from videollama2.serve.web.guard import REQUEST_ID
from videollama2.serve.web.metrics import WebMetrics
from videollama2.serve.web.streaming import EventStream, while_connected, whole_parts

LOOK_S = 5.0
"""How often the controller is looked for, for ``/ready``."""

_log = logging.getLogger(__name__)


class ApiFront:
    """What the routes do.

    Args:
        client: of the controller.
    """

    def __init__(self, client: ControllerClient) -> None:
        self.client = client
        self.missing: str | None = "looking for the controller"
        """What it waits for; None: nothing."""

    @asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """Lifespan of the application."""
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
                await self.client.models()
                self.missing = None
            except ApiError as error:
                self.missing = "the controller cannot be used"
                _log.debug("the controller: %s", error)
            await asyncio.sleep(LOOK_S)

    async def ask(self, body: Mapping[str, Any], content: bytes, request_id: str) -> Response:
        """A worker's reply; of a stream its beginning.

        Args:
            content: the body as it came.

        Raises:
            ApiError: the request is at fault, or no worker can take it.
        """
        if body.get("stream"):
            return await EventStream.begin(self._events(body, content, request_id))
        async with self.client.open_chat(body, request_id, content) as reply:
            return Response(b"".join([chunk async for chunk in reply]), media_type="application/json")

    async def _events(self, body: Mapping[str, Any], content: bytes, request_id: str) -> AsyncGenerator[bytes, None]:
        async with (
            self.client.open_chat(body, request_id, content) as reply,
            aclosing(whole_parts(aiter(reply), sse.SEPARATOR)) as parts,
        ):
            async for part in parts:
                yield part


def make_front_app(front: ApiFront, security: Security) -> FastAPI:
    """The application."""
    metrics = WebMetrics()
    app = make_app("VideoLLaMA 2 API", security, ready=lambda: front.missing, lifespan=front.running, metrics=metrics)
    router, started = APIRouter(tags=["OpenAI"]), int(time.time())

    @router.get(
        "/v1/models",
        response_model=ModelList,
        responses={status: ERROR_RESPONSES[status] for status in (401, 502, 503)},
    )
    async def list_models() -> ModelList:
        """The models that workers serve now."""
        return models_reply(await front.client.models(), started)

    @router.get(
        "/v1/models/{model:path}",
        response_model=Model,
        responses={status: ERROR_RESPONSES[status] for status in (401, 404, 502, 503)},
    )
    async def get_model(model: str) -> Model:
        """One model."""
        return model_reply(model, await front.client.models(), started)

    @router.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses={**ERROR_RESPONSES, 200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    )
    async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation about images and videos; with ``stream``, as server-sent events."""
        # Validated as a whole, passed on as it came.
        sent, content = await request.json(), await request.body()
        return await while_connected(request, front.ask(sent, content, REQUEST_ID.get()))

    app.include_router(router)
    metrics.paths = frozenset(app.openapi()["paths"])
    return app
