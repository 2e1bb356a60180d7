"""OpenAI's API over all workers of a controller.

    python -m videollama2.serve.openai_api --controller http://localhost:10000 --port 8000

Requests are validated here and answered by a worker that serves the model; one that dies before its first token is
replaced by another. Media are fetched and decoded by the worker, under its operator's rules.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response

from videollama2.commands import CommandParser, add_debug_flag, run_command
from videollama2.flags import address, port
from videollama2.serve.api.reply import ERROR_RESPONSES, ChatCompletion, Model, ModelList, event
from videollama2.serve.api.request import ChatRequest
from videollama2.serve.cluster.client import ChatStream, ControllerClient
from videollama2.serve.cluster.failover import ClosingIterator
from videollama2.serve.cluster.protocol import Splitter
from videollama2.serve.settings import Security, add_security_flags, read_security
from videollama2.serve.web.app import configure_logging, make_app, serve, warn_if_open
from videollama2.serve.web.errors import ApiError
from videollama2.serve.web.guard import REQUEST_ID
from videollama2.serve.web.metrics import WebMetrics
from videollama2.serve.web.streaming import ClientGoneError, EventStream, while_connected
from videollama2.serve.worker.chat_routes import CLIENT_GONE, model_reply, models_reply

DEFAULT_PORT = 8000
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
        async with AsyncExitStack() as stack:
            reply = await stack.enter_async_context(self.client.open_chat(body, request_id, content))
            if not body.get("stream"):
                return Response(b"".join([chunk async for chunk in reply]), media_type="application/json")
            return EventStream(b"", ClosingIterator(_whole_events(reply), stack.pop_all().aclose))


async def _whole_events(reply: ChatStream) -> AsyncIterator[bytes]:
    """Events as they come, never a part of one: an error that follows must not run into it."""
    splitter = Splitter(b"\n\n")
    try:
        async with aclosing(aiter(reply)) as chunks:
            async for chunk in chunks:
                whole = b"".join(part + b"\n\n" for part in splitter.feed(chunk))
                if whole:
                    yield whole
    except ApiError as error:
        _log.warning("a stream broke off: %s", error)
        yield event(error.body())


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
        try:
            return await while_connected(request, front.ask(sent, content, REQUEST_ID.get()))
        except ClientGoneError:
            return Response(status_code=CLIENT_GONE)

    app.include_router(router)
    metrics.paths = frozenset(app.openapi()["paths"])
    return app


# ------------------------------------------------------------------------------------------------------- command line


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        prog="python -m videollama2.serve.openai_api",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=port, default=DEFAULT_PORT, help="default %(default)s")
    parser.add_argument(
        "--controller",
        "--controller-address",
        dest="controller",
        type=address,
        metavar="URL",
        default="http://localhost:10000",
        help="default %(default)s",
    )
    add_security_flags(parser, worker_flags=True)
    add_debug_flag(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = build_parser().parse_args(arguments)
    configure_logging(part="api")
    return run_command(lambda: _run(args), "openai_api", args.debug)


def _run(args: argparse.Namespace) -> int:
    security = read_security(args)
    warn_if_open(args.host, security)
    front = ApiFront(ControllerClient(args.controller, security.credential))
    return serve(make_front_app(front, security), args.host, args.port)


if __name__ == "__main__":
    sys.exit(main())
