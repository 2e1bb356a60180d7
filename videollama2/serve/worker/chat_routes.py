"""``/v1/chat/completions`` and ``/v1/models`` over one engine."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from fastapi import APIRouter, Request, Response

from videollama2.errors import EngineError, VideoLlama2Error
from videollama2.serve.api.logprobs import logprobs_of
from videollama2.serve.api.reply import (
    DONE,
    ERROR_RESPONSES,
    ChatCompletion,
    Choice,
    Model,
    ModelList,
    PromptTokensDetails,
    ReplyMessage,
    Usage,
    event,
)
from videollama2.serve.api.request import ChatRequest
from videollama2.serve.web.errors import ApiError, model_not_found
from videollama2.serve.web.streaming import ClientGoneError, EventStream, while_connected
from videollama2.serve.worker.service import ChatLimits, ChatService

if TYPE_CHECKING:
    from videollama2.inference.answer import Answer, Result

__all__ = ["ChatLimits", "ChatService", "chat_router", "model_reply", "models_reply"]

CLIENT_GONE = 499
"""Status (nginx's) of a request whose client left; nobody gets it, but logs and metrics show it."""

_log = logging.getLogger(__name__)


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
        try:
            return await while_connected(request, _reply(service, body))
        except ClientGoneError:
            return Response(status_code=CLIENT_GONE)

    return router


def models_reply(names: Sequence[str], created: int) -> ModelList:
    """List of models as OpenAI writes it."""
    return ModelList(data=[Model(id=name, created=created) for name in names])


def model_reply(name: str, names: Sequence[str], created: int) -> Model:
    """One model as OpenAI writes it.

    Raises:
        ApiError: 404, there is none of this name.
    """
    if name not in names:
        raise model_not_found(name)
    return Model(id=name, created=created)


def _responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: ERROR_RESPONSES[status] for status in statuses or ERROR_RESPONSES}


async def _reply(service: ChatService, body: ChatRequest) -> Response:
    """The whole answer, or the beginning of a stream: what goes wrong before the first token has its own status."""
    answers = await service.submit_all(body)
    reply = _Reply(service, body, answers)
    if not body.stream:
        return Response(await reply.whole(), media_type="application/json")
    events = reply.events()
    try:
        first = await anext(events)
    except BaseException:
        await events.aclose()
        raise
    return EventStream(first, events)


class _Reply:
    """Answers of one request on their way out."""

    def __init__(self, service: ChatService, body: ChatRequest, answers: Sequence[Answer]) -> None:
        self.service, self.body, self.answers = service, body, answers
        self.id, self.created = f"chatcmpl-{uuid4().hex}", int(time.time())
        self._logprobs_told = [0] * len(answers)
        self._wants_usage = body.stream_options is not None and body.stream_options.include_usage

    async def whole(self) -> bytes:
        """The reply that is no stream."""
        try:
            with self.service.faults():
                results = list(await asyncio.gather(*(answer.aresult() for answer in self.answers)))
        finally:
            self._cancel()
        choices = [
            Choice(
                index=index,
                message=ReplyMessage(content=result.text),
                logprobs=logprobs_of(result.logprobs, self.service.tokenizer),
                finish_reason=self._reason(result),
            )
            for index, result in enumerate(results)
        ]
        completion = ChatCompletion(
            id=self.id, created=self.created, model=self.service.model_name, choices=choices, usage=_usage(results)
        )
        return completion.model_dump_json().encode()

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events. The first comes with the first text; an error before it is raised, later it is sent."""
        begun = False
        try:
            async with aclosing(self._deltas()) as deltas:
                async for index, delta in deltas:
                    if not begun:
                        begun = True
                        yield b"".join(self._chunk(n, {"role": "assistant", "content": ""}) for n in self._indices)
                    if delta is None:
                        reason = self._reason(self.answers[index].outcome())
                        yield self._chunk(index, {}, reason, self._new_logprobs(index))
                    else:
                        yield self._chunk(index, {"content": delta}, None, self._new_logprobs(index))
            if self._wants_usage:
                results = [answer.outcome() for answer in self.answers]
                yield event({**self._head(), "choices": [], "usage": _usage(results).model_dump()})
            yield DONE
        except (ApiError, VideoLlama2Error) as error:
            told = error if isinstance(error, ApiError) else self._told(error)
            if not begun:
                raise told from error
            yield event(told.body())
        finally:
            self._cancel()

    @property
    def _indices(self) -> range:
        return range(len(self.answers))

    def _told(self, error: VideoLlama2Error) -> ApiError:
        try:
            with self.service.faults():
                raise error
        except ApiError as told:
            return told

    async def _deltas(self) -> AsyncIterator[tuple[int, str | None]]:
        """Choice and text as they come; None after a choice's last one."""
        if len(self.answers) == 1:
            async with aclosing(aiter(self.answers[0])) as deltas:
                async for delta in deltas:
                    yield 0, delta
            yield 0, None
            return
        queue: asyncio.Queue[tuple[int, str | BaseException | None]] = asyncio.Queue()
        pumps = [asyncio.ensure_future(_pump(n, answer, queue)) for n, answer in enumerate(self.answers)]
        try:
            left = len(pumps)
            while left:
                index, item = await queue.get()
                if isinstance(item, BaseException):
                    raise item
                left -= item is None
                yield index, item
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.service.model_name,
        }

    def _chunk(self, index: int, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        usage = {"usage": None} if self._wants_usage else {}
        return event({**self._head(), "choices": [choice], **usage})

    def _new_logprobs(self, index: int) -> dict[str, Any] | None:
        """Of the tokens since the last chunk; text may be held back longer than they are (half a character)."""
        if not self.body.logprobs:
            return None
        new = self.answers[index].channel.logprobs[self._logprobs_told[index] :]
        self._logprobs_told[index] += len(new)
        return logprobs_of(new, self.service.tokenizer).model_dump()

    def _reason(self, result: Result) -> Any:
        """``stop`` or ``length``. An answer that was cancelled under a client who still waits was cut by a shutdown."""
        if result.finish_reason not in ("stop", "length"):
            raise self._told(EngineError(f"an answer ended with {result.finish_reason}"))
        return result.finish_reason

    def _cancel(self) -> None:
        for answer in self.answers:
            if not answer.done:
                answer.cancel()


async def _pump(index: int, answer: Answer, queue: asyncio.Queue[Any]) -> None:
    try:
        async for delta in answer:
            queue.put_nowait((index, delta))
        queue.put_nowait((index, None))
    except VideoLlama2Error as error:
        queue.put_nowait((index, error))


def _usage(results: Sequence[Result]) -> Usage:
    """The prompt counts once, however many answers it got."""
    prompt = results[0].prompt_tokens
    completion = sum(result.completion_tokens for result in results)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=results[0].cached_tokens),
    )
