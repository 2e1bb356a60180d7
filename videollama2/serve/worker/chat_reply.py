"""Answers of the engine -> chat completions, whole or as a stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from fastapi import Response

from videollama2.errors import EngineError, VideoLlama2Error
from videollama2.serve.api.logprobs import logprobs_of
from videollama2.serve.api.reply import ChatCompletion, Choice, PromptTokensDetails, ReplyMessage, Usage
from videollama2.serve.api.request import ChatRequest
from videollama2.serve.web.sse import DONE
from videollama2.serve.web.sse import event as sse_event
from videollama2.serve.web.streaming import EventStream
from videollama2.serve.worker.service import ChatService

if TYPE_CHECKING:
    from videollama2.inference.answer import Answer, Result


async def answer_chat(service: ChatService, body: ChatRequest) -> Response:
    """The whole answer, or the beginning of a stream: what goes wrong before the first token has its own status.

    Raises:
        ApiError: what is wrong with the request, or with the moment.
    """
    if body.stream:
        return await EventStream.begin(_events(service, body))
    reply = _ChatReply(service, body, await service.submit_all(body))
    return Response(await reply.whole(), media_type="application/json")


async def _events(service: ChatService, body: ChatRequest) -> AsyncGenerator[bytes, None]:
    reply = _ChatReply(service, body, await service.submit_all(body))
    async with aclosing(reply.events()) as events:
        async for event in events:
            yield event


class _ChatReply:
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

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events; the first comes with the first text.

        Raises:
            ApiError: there is no answer, or no more of it.
        """
        try:
            with self.service.faults():
                async for event in self._all_events():
                    yield event
            yield DONE
        finally:
            self._cancel()

    async def _all_events(self) -> AsyncGenerator[bytes, None]:
        begun = False
        async with aclosing(self._deltas()) as deltas:
            async for index, delta in deltas:
                if not begun:
                    begun = True
                    yield b"".join(self._chunk(n, {"role": "assistant", "content": ""}) for n in self._indices)
                if delta is None:
                    reason = self._reason(self.answers[index].result())
                    yield self._chunk(index, {}, reason, self._new_logprobs(index))
                else:
                    yield self._chunk(index, {"content": delta}, None, self._new_logprobs(index))
        if self._wants_usage:
            results = [answer.result() for answer in self.answers]
            yield sse_event({**self._head(), "choices": [], "usage": _usage(results).model_dump()})

    @property
    def _indices(self) -> range:
        return range(len(self.answers))

    async def _deltas(self) -> AsyncGenerator[tuple[int, str | None], None]:
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
        return sse_event({**self._head(), "choices": [choice], **usage})

    def _new_logprobs(self, index: int) -> dict[str, Any] | None:
        """Of the tokens since the last chunk; text may be held back longer than they are (half a character)."""
        if not self.body.logprobs:
            return None
        new = self.answers[index].channel.logprobs[self._logprobs_told[index] :]
        self._logprobs_told[index] += len(new)
        found = logprobs_of(new, self.service.tokenizer)
        return None if found is None else found.model_dump()

    def _reason(self, result: Result) -> Any:
        """``stop`` or ``length``. An answer that was cancelled under a client who still waits was cut by a shutdown."""
        if result.finish_reason not in ("stop", "length"):
            raise EngineError(f"an answer ended with {result.finish_reason}")
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
