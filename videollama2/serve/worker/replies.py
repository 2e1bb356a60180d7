"""Defines the base class of all replies with answers, which are sent complete or as a stream of events."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from fastapi import Response

from videollama2.serve.api.sampling import SamplingFields
from videollama2.serve.web.sse import DONE, event
from videollama2.serve.web.streaming import EventStream
from videollama2.serve.worker.answers import Answers
from videollama2.serve.worker.service import ChatService


class Reply(ABC):
    """A reply to one request.

    Args:
        body: the request.
        answers: the answers to the request.
    """

    id_prefix: str
    chunk_kind: str
    """Value of ``object`` in a chunk."""

    def __init__(self, service: ChatService, body: SamplingFields, answers: Answers) -> None:
        self.service, self.answers = service, answers
        self.id, self.created = f"{self.id_prefix}-{body.request_id or uuid4().hex}", int(time.time())
        options = body.stream_options
        self._has_usage = options is not None and options.include_usage
        self._has_usage_so_far = self._has_usage and options is not None and bool(options.continuous_usage_stats)

    @abstractmethod
    async def whole(self) -> bytes:
        """Return the complete reply as JSON.

        Raises:
            ApiError: an answer failed.
        """

    @abstractmethod
    def events(self) -> AsyncGenerator[bytes, None]:
        """Yield server-sent events, of which the first comes with the first text.

        Raises:
            ApiError: there is no answer, or it broke off.
        """

    def facts(self) -> dict[str, Any]:
        """Return the fields of a complete reply other than its choices."""
        names = {"id": self.id, "created": self.created, "model": self.service.model_name}
        return {**names, "usage": self.answers.usage()}

    def chunk(self, choice: dict[str, Any]) -> bytes:
        """Return an event with one choice."""
        content: dict[str, Any] = {**self._head(), "choices": [choice]}
        if self._has_usage:
            content["usage"] = self.answers.usage().model_dump() if self._has_usage_so_far else None
        return event(content)

    def ending(self) -> bytes:
        """Return the events after the last text."""
        usage = {**self._head(), "choices": [], "usage": self.answers.usage().model_dump()} if self._has_usage else None
        return DONE if usage is None else event(usage) + DONE

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": self.chunk_kind,
            "created": self.created,
            "model": self.service.model_name,
        }


async def send(answers: Awaitable[Answers], make: Callable[[Answers], Reply], is_stream: bool) -> Response:
    """Return the complete reply, or the beginning of a stream. Errors before the first token have their own status.

    Args:
        answers: the answers, which are being submitted.
        make: creates the reply from the answers.

    Raises:
        ApiError: the request is refused, or cannot be answered at the moment.
    """
    if is_stream:
        return await EventStream.begin(_events(answers, make))
    return Response(await make(await answers).whole(), media_type="application/json")


async def _events(answers: Awaitable[Answers], make: Callable[[Answers], Reply]) -> AsyncGenerator[bytes, None]:
    async with aclosing(make(await answers).events()) as events:
        async for one in events:
            yield one
