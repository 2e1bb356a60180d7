"""Reads the answers to one request concurrently, counts them, and cancels them when they are no longer needed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from videollama2.errors import EngineError, VideoLlama2Error
from videollama2.serve.api.reply import PromptTokensDetails, Usage
from videollama2.serve.worker.service import ChatService

if TYPE_CHECKING:
    from videollama2.inference.answer import Answer, Channel, Result


class Answers:
    """The answers to one request.

    Args:
        answers: ``per_prompt`` answers to each prompt, in order.
    """

    def __init__(self, service: ChatService, answers: Sequence[Answer], per_prompt: int) -> None:
        self._service, self._answers, self._per_prompt = service, answers, per_prompt

    def __len__(self) -> int:
        return len(self._answers)

    def __getitem__(self, index: int) -> Answer:
        return self._answers[index]

    async def results(self) -> list[Result]:
        """Return the results of all answers once they are complete.

        Raises:
            ApiError: an answer failed.
        """
        try:
            with self._service.faults():
                # gather raises the first error at once; the other answers are cancelled below.
                results = list(await asyncio.gather(*(answer.aresult() for answer in self._answers)))
                return [_completed(result) for result in results]
        finally:
            self.cancel()

    async def deltas(self) -> AsyncGenerator[tuple[int, str | Result], None]:
        """Yield the index and text of answers as they are generated, and after the last text of an answer its result.

        Raises:
            ApiError: an answer failed.
        """
        try:
            with self._service.faults():
                async with aclosing(self._texts()) as texts:
                    async for index, text in texts:
                        yield index, _completed(self._answers[index].result()) if text is None else text
        finally:
            self.cancel()

    def usage(self) -> Usage:
        """Return the number of tokens so far. A prompt counts once, however many answers it gets."""
        firsts = self._answers[:: self._per_prompt]
        prompt = sum(_counted(answer).prompt_tokens for answer in firsts)
        completion = sum(_counted(answer).completion_tokens for answer in self._answers)
        results = [answer.outcome() for answer in firsts]
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptTokensDetails(
                cached_tokens=sum(result.cached_tokens for result in results if result is not None),
                audio_tokens=sum(_counted(answer).audio_tokens for answer in firsts),
            ),
        )

    def cancel(self) -> None:
        """Cancel all answers that are not complete."""
        for answer in self._answers:
            if not answer.done:
                answer.cancel()

    async def _texts(self) -> AsyncGenerator[tuple[int, str | None], None]:
        """Yield index and text; the text is None after the last one of an answer."""
        # Each answer has a task that moves its texts into one queue, so that they can be yielded in order of arrival.
        queue: asyncio.Queue[tuple[int, str | BaseException | None]] = asyncio.Queue()
        pumps = [asyncio.ensure_future(_pump(n, answer, queue)) for n, answer in enumerate(self._answers)]
        try:
            left = len(pumps)
            while left:
                index, item = await queue.get()
                # The first answer that fails ends the request: the stream has one error for all choices.
                if isinstance(item, BaseException):
                    raise item
                left -= item is None
                yield index, item
        finally:
            # Cancelling a pump closes its iterator, which cancels the answer in the engine and frees its row of the
            # batch.
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)


def _counted(answer: Answer) -> Result | Channel:
    """Return the object that counts the tokens of an answer: its result, or else the channel it is written to."""
    return answer.outcome() or answer.channel


async def _pump(index: int, answer: Answer, queue: asyncio.Queue[Any]) -> None:
    try:
        async for delta in answer:
            queue.put_nowait((index, delta))
        queue.put_nowait((index, None))
    except VideoLlama2Error as error:
        queue.put_nowait((index, error))


def _completed(result: Result) -> Result:
    """Return the result if it is complete. An answer cancelled while its client still waits was ended by a shutdown."""
    if result.finish_reason not in ("stop", "length"):
        raise EngineError(f"an answer ended with {result.finish_reason}")
    return result
