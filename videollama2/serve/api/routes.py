"""Defines the routes of OpenAI's API, and those that vLLM adds to it. Workers and the front have the same routes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from videollama2 import __version__
from videollama2.serve.api.completions import CompletionRequest, TokenizeMessages, TokenizePrompt, TokenizeRequest
from videollama2.serve.api.fields import ignored_fields
from videollama2.serve.api.reply import (
    ERROR_RESPONSES,
    EVENT_STREAM,
    ChatCompletion,
    Completion,
    Model,
    ModelList,
    Tokenized,
    Version,
    model_reply,
    models_reply,
)
from videollama2.serve.api.request import ChatRequest
from videollama2.serve.api.responses import ResponsesRequest
from videollama2.serve.web.app import IGNORED_HEADER
from videollama2.serve.web.body import JSONRoute, place_in
from videollama2.serve.web.errors import ApiError
from videollama2.serve.web.streaming import while_connected

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
TOKENIZE = "/tokenize"

AnyRequest = ChatRequest | CompletionRequest | ResponsesRequest | TokenizePrompt | TokenizeMessages

_log = logging.getLogger(__name__)


class ApiHandlers(Protocol):
    """The functions behind the routes. A worker's answer with its engine; the front's pass requests on to workers."""

    async def lengths(self) -> Mapping[str, int | None]:
        """Return each available model with its limit on tokens of prompt and answer."""
        ...

    async def answer(self, path: str, body: AnyRequest, request: Request) -> Response:
        """Return the reply to a valid request, or the beginning of a stream.

        Raises:
            ApiError: the request is refused, or cannot be answered at the moment.
        """
        ...


def openai_router(handlers: ApiHandlers) -> APIRouter:
    """Return a router with the routes, which are answered by ``handlers``."""
    router = APIRouter(tags=["OpenAI"], route_class=JSONRoute)
    _add_facts(router, handlers)
    streaming: dict[str, Any] = {"responses": {**ERROR_RESPONSES, 200: EVENT_STREAM}}

    @router.post(CHAT, response_model=ChatCompletion, **streaming)
    async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation about images, videos and sounds; with ``stream``, as server-sent events."""
        return await _answer(handlers, CHAT, body, request)

    @router.post(COMPLETIONS, response_model=Completion, **streaming)
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        """Continue a text as it is; with ``stream``, as server-sent events."""
        return await _answer(handlers, COMPLETIONS, body, request)

    @router.post(RESPONSES, **streaming)
    async def create_response(body: ResponsesRequest, request: Request) -> Response:
        """Answer a conversation in the format of OpenAI's Responses API. Nothing is stored."""
        return await _answer(handlers, RESPONSES, body, request)

    @router.post(TOKENIZE, response_model=Tokenized, responses=ERROR_RESPONSES)
    async def tokenize(body: TokenizeRequest, request: Request) -> Response:
        """Return the tokens of a text, or of a conversation in text."""
        return await _answer(handlers, TOKENIZE, body, request)

    return router


def _add_facts(router: APIRouter, handlers: ApiHandlers) -> None:
    started = int(time.time())

    def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
        return {status: ERROR_RESPONSES[status] for status in statuses}

    @router.get("/v1/models", response_model=ModelList, responses=errors(401, 502, 503))
    async def list_models() -> ModelList:
        """List the models that are available now."""
        return models_reply(await handlers.lengths(), started)

    @router.get("/v1/models/{model:path}", response_model=Model, responses=errors(401, 404, 502, 503))
    async def get_model(model: str) -> Model:
        """Return one model."""
        return model_reply(model, await handlers.lengths(), started)

    @router.get("/version", response_model=Version, responses=errors(401))
    async def version() -> Version:
        """Return the version of this software."""
        return Version(version=__version__)


async def _answer(handlers: ApiHandlers, path: str, body: AnyRequest, request: Request) -> Response:
    with _placed(body, await request.json()):
        reply = await while_connected(request, handlers.answer(path, body, request))
    ignored = ignored_fields(body)
    if ignored:
        _log.warning("fields without effect here were ignored: %s", ", ".join(ignored))
        reply.raw_headers.append((IGNORED_HEADER.encode(), ", ".join(ignored).encode("ascii")))
    return reply


@contextmanager
def _placed(body: AnyRequest, sent: Any) -> Iterator[None]:
    """Make errors raised in the block refer to fields of the body that the client sent."""
    try:
        yield
    except ApiError as error:
        if error.param is not None:
            error.param = _place(body, error.param, sent) or error.param
        raise
    except ValidationError as error:
        # The body is valid, but has no equivalent chat request.
        raise ApiError(400, str(error.errors()[0]["msg"])) from error


def _place(body: AnyRequest, param: str, sent: Any) -> str:
    if isinstance(body, ResponsesRequest):
        param = body.place_of(param)
    elif isinstance(body, CompletionRequest) and param == "messages":
        param = "prompt"
    return place_in(sent, tuple(int(step) if step.isdecimal() else step for step in param.split(".")))
