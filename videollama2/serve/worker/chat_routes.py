"""``/v1/chat/completions`` and ``/v1/models`` over one engine."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request, Response

from videollama2.serve.api.reply import ERROR_RESPONSES, ChatCompletion, Model, ModelList, model_reply, models_reply
from videollama2.serve.api.request import ChatRequest
from videollama2.serve.web.streaming import while_connected
from videollama2.serve.worker.chat_reply import answer_chat
from videollama2.serve.worker.service import ChatService


def chat_router(service: ChatService) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["OpenAI"])
    started = int(time.time())

    @router.get("/v1/models", response_model=ModelList, responses=_responses(401))
    async def list_models() -> ModelList:
        """The one model this worker answers with."""
        return models_reply([service.model_name], started)

    @router.get("/v1/models/{model:path}", response_model=Model, responses=_responses(401, 404))
    async def get_model(model: str) -> Model:
        """One model."""
        return model_reply(model, [service.model_name], started)

    @router.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses={**_responses(), 200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    )
    async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation about images and videos; with ``stream``, as server-sent events."""
        return await while_connected(request, answer_chat(service, body))

    return router


def _responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: ERROR_RESPONSES[status] for status in statuses or ERROR_RESPONSES}
