"""Turns the engine's answers into chat completions, complete or as a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from fastapi import Response

from videollama2.serve.api.logprobs import logprobs_of
from videollama2.serve.api.reply import ChatCompletion, Choice, ReplyMessage, ToolCallReply
from videollama2.serve.api.request import ChatRequest
from videollama2.serve.api.tools import CallReader
from videollama2.serve.worker.answers import Answers
from videollama2.serve.worker.replies import Reply, send
from videollama2.serve.worker.service import ChatService

if TYPE_CHECKING:
    from videollama2.inference.answer import Result


async def answer_chat(service: ChatService, body: ChatRequest) -> Response:
    """See :func:`send`."""
    return await send(chat_answers(service, body), lambda answers: ChatReply(service, body, answers), bool(body.stream))


async def chat_answers(service: ChatService, body: ChatRequest) -> Answers:
    """Submit a chat request and return its answers, which are being generated.

    Raises:
        ApiError: the request is refused, or cannot be answered at the moment.
    """
    return Answers(service, await service.submit(body, body.n or 1), body.n or 1)


class ChatReply(Reply):
    """A reply of ``/v1/chat/completions``."""

    id_prefix, chunk_kind = "chatcmpl", "chat.completion.chunk"

    def __init__(self, service: ChatService, body: ChatRequest, answers: Answers) -> None:
        super().__init__(service, body, answers)
        self._use, self._has_logprobs = body.tool_use, bool(body.logprobs)
        self._logprobs_told = [0] * len(answers)

    async def whole(self) -> bytes:
        """See :class:`Reply`."""
        results = await self.answers.results()
        choices = [self._choice(index, result) for index, result in enumerate(results)]
        return ChatCompletion(choices=choices, **self.facts()).model_dump_json().encode()

    def _choice(self, index: int, result: Result) -> Choice:
        text, calls = (result.text, []) if self._use is None else self._use.read(result.text)
        told = [ToolCallReply.model_validate(call.as_dict()) for call in calls]
        return Choice(
            index=index,
            message=ReplyMessage(content=text if text or not told else None, tool_calls=told or None),
            logprobs=logprobs_of(result.logprobs, self.service.tokenizer),
            finish_reason=self._reason(result, bool(calls)),
        )

    async def events(self) -> AsyncGenerator[bytes, None]:
        """See :class:`Reply`."""
        readers = None if self._use is None else [CallReader(self._use) for _ in range(len(self.answers))]
        begun = False
        async with aclosing(self.answers.deltas()) as deltas:
            async for index, item in deltas:
                # A text may give no chunk: the reader holds back what could be the beginning of a call.
                pieces = list(self._chunks_of(index, item, None if readers is None else readers[index]))
                if not begun:
                    begun = True
                    beginning: dict[str, Any] = {"role": "assistant", "content": ""}
                    pieces = [*(self._chunk(n, beginning) for n in range(len(self.answers))), *pieces]
                # In one piece, so that a worker that dies has sent the beginning only if the first token came with it.
                if pieces:
                    yield b"".join(pieces)
        yield self.ending()

    def _chunks_of(self, index: int, item: str | Result, reader: CallReader | None) -> Iterator[bytes]:
        """Yield the chunks for a new text of an answer, or for its result."""
        if isinstance(item, str):
            for delta in [{"content": item}] if reader is None else reader.feed(item):
                yield self._chunk(index, delta, None, self._new_logprobs(index))
            return
        for delta in () if reader is None else reader.end():
            yield self._chunk(index, delta)
        reason = self._reason(item, reader is not None and reader.has_calls)
        yield self._chunk(index, {}, reason, self._new_logprobs(index))

    def _reason(self, result: Result, has_calls: bool) -> Any:
        """Return the finish reason. As in OpenAI's API, it is ``stop`` for a call of a tool that the client named."""
        is_chosen = self._use is not None and not self._use.demanded
        return "tool_calls" if has_calls and is_chosen and result.finish_reason == "stop" else result.finish_reason

    def _chunk(self, index: int, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None) -> bytes:
        return self.chunk({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason})

    def _new_logprobs(self, index: int) -> dict[str, Any] | None:
        """Return log-probabilities of the tokens since the last chunk. Their text may come later (half a character)."""
        if not self._has_logprobs:
            return None
        # The model's thread appends to this list while it is read here; each entry is there before its text, so a slice
        # from the last place loses none.
        new = self.answers[index].channel.logprobs[self._logprobs_told[index] :]
        self._logprobs_told[index] += len(new)
        found = logprobs_of(new, self.service.tokenizer)
        return None if found is None else found.model_dump()
