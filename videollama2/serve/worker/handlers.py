"""Answers a worker's OpenAI routes with one engine."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from fastapi import Request, Response

from videollama2.serve.api.completions import CompletionRequest
from videollama2.serve.api.reply import Tokenized
from videollama2.serve.api.request import ChatRequest
from videollama2.serve.api.responses import ResponsesRequest
from videollama2.serve.api.routes import AnyRequest
from videollama2.serve.worker.chat_reply import answer_chat
from videollama2.serve.worker.completion_reply import answer_completion
from videollama2.serve.worker.responses_reply import answer_response
from videollama2.serve.worker.service import ChatService
from videollama2.serve.worker.texts import tokenized


class WorkerHandlers:
    """Answers requests with one engine; a :class:`videollama2.serve.api.routes.ApiHandlers`."""

    def __init__(self, service: ChatService) -> None:
        self.service = service

    async def lengths(self) -> Mapping[str, int | None]:
        """Return the one model of the worker with its limit on tokens."""
        return {self.service.model_name: self.service.engine.max_length}

    async def answer(self, path: str, body: AnyRequest, request: Request) -> Response:
        """See :class:`videollama2.serve.api.routes.ApiHandlers`."""
        service = self.service
        if isinstance(body, ChatRequest):
            return await answer_chat(service, body)
        if isinstance(body, CompletionRequest):
            return await answer_completion(service, body)
        if isinstance(body, ResponsesRequest):
            return await answer_response(service, body)
        service.admit(body.model or service.model_name)
        ids = await asyncio.to_thread(tokenized, service, body)
        found = Tokenized(count=len(ids), max_model_len=service.engine.max_length, tokens=ids)
        return Response(found.model_dump_json(), media_type="application/json")
