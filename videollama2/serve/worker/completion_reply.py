"""Turns the engine's answers into text completions, complete or as a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from fastapi import Response

from videollama2.serve.api.completions import CompletionRequest
from videollama2.serve.api.logprobs import token_text
from videollama2.serve.api.reply import Completion, CompletionChoice, CompletionLogprobs
from videollama2.serve.worker.answers import Answers
from videollama2.serve.worker.replies import Reply, send
from videollama2.serve.worker.service import ChatService
from videollama2.serve.worker.texts import complete

if TYPE_CHECKING:
    from videollama2.inference.answer import Result
    from videollama2.inference.sampling import TokenLogprob


async def answer_completion(service: ChatService, body: CompletionRequest) -> Response:
    """See :func:`send`."""
    return await send(
        _answers(service, body), lambda answers: CompletionReply(service, body, answers), bool(body.stream)
    )


async def _answers(service: ChatService, body: CompletionRequest) -> Answers:
    return Answers(service, await complete(service, body), body.n or 1)


class CompletionReply(Reply):
    """A reply of ``/v1/completions``."""

    id_prefix, chunk_kind = "cmpl", "text_completion"

    def __init__(self, service: ChatService, body: CompletionRequest, answers: Answers) -> None:
        super().__init__(service, body, answers)
        self._echo, self._has_logprobs = bool(body.echo), body.logprobs is not None
        self._told = [0] * len(answers)
        self._offsets = [0] * len(answers)

    async def whole(self) -> bytes:
        """See :class:`Reply`."""
        results = await self.answers.results()
        choices = [
            CompletionChoice(
                index=index,
                text=self._prefix(index) + result.text,
                logprobs=self._logprobs(index, result.logprobs),
                finish_reason=_reason(result),
            )
            for index, result in enumerate(results)
        ]
        return Completion(choices=choices, **self.facts()).model_dump_json().encode()

    async def events(self) -> AsyncGenerator[bytes, None]:
        """See :class:`Reply`."""
        is_begun = [False] * len(self.answers)
        async with aclosing(self.answers.deltas()) as deltas:
            async for index, item in deltas:
                prefix = "" if is_begun[index] else self._prefix(index)
                is_begun[index] = True
                if isinstance(item, str):
                    yield self._chunk(index, prefix + item)
                else:
                    yield self._chunk(index, prefix, _reason(item))
        yield self.ending()

    def _prefix(self, index: int) -> str:
        return self.answers[index].prompt if self._echo else ""

    def _chunk(self, index: int, text: str, reason: str | None = None) -> bytes:
        new = self.answers[index].channel.logprobs[self._told[index] :]
        self._told[index] += len(new)
        found = self._logprobs(index, new if self._has_logprobs else None)
        choice = {
            "index": index,
            "text": text,
            "logprobs": None if found is None else found.model_dump(),
            "finish_reason": reason,
        }
        return self.chunk(choice)

    def _logprobs(self, index: int, chosen: Iterable[TokenLogprob] | None) -> CompletionLogprobs | None:
        if chosen is None:
            return None
        found = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        for item in chosen:
            text = self._text(item.token_id)
            found.tokens.append(text)
            found.token_logprobs.append(max(item.logprob, -9999.0))
            found.top_logprobs.append({self._text(token): max(value, -9999.0) for token, value in item.top})
            found.text_offset.append(self._offsets[index])
            self._offsets[index] += len(text)
        return found

    def _text(self, token_id: int) -> str:
        return token_text(self.service.tokenizer, token_id)[0]


def _reason(result: Result) -> Any:
    return result.finish_reason
