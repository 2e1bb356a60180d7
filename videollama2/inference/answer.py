"""Defines the engine's output: answers that can be read while they are generated, and their final results."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from threading import Event
from time import monotonic
from typing import Any

from videollama2.errors import PromptError, VideoLlama2Error
from videollama2.inference.sampling import TokenLogprob


@dataclass(frozen=True)
class Timings:
    """The durations of the stages of a request, in seconds.

    Attributes:
        queued: from submission until the model starts on it.
        media: reading its media, plus the passes that encoded them, which it may have shared with other requests.
        first_token: from submission to the first token.
        total: from submission to the end.
    """

    queued: float = 0.0
    media: float = 0.0
    first_token: float = 0.0
    total: float = 0.0


@dataclass(frozen=True)
class Result:
    """A finished answer.

    ``finish_reason``: ``stop`` (end of text or a stop text), ``length`` (max_new_tokens), ``cancelled`` or ``error``.
    ``cached_tokens``: number of prompt tokens whose key-values were cached. ``audio_tokens``: number of prompt tokens
    that stand for sound. ``token_ids`` exclude the end of text.
    ``notes``: remarks about the media for the caller, for example that a video whose sound was requested has none.
    """

    text: str
    finish_reason: str
    prompt_tokens: int = 0
    cached_tokens: int = 0
    audio_tokens: int = 0
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    timings: Timings = Timings()
    error: VideoLlama2Error | None = None
    notes: tuple[str, ...] = ()

    @property
    def completion_tokens(self) -> int:
        return len(self.token_ids)


class Channel:
    """A queue of text deltas from the model's thread to one reader; it ends with a :class:`Result`."""

    def __init__(self) -> None:
        self.cancelled = False
        self.submitted = monotonic()
        self.prompt_tokens = self.audio_tokens = self.completion_tokens = 0
        """Token counts of the request so far: of the prompt and the sounds in it once it is laid out, and of the
        answer."""
        self.logprobs: list[TokenLogprob] = []
        """Log-probabilities of the tokens chosen so far, if the request asks for them. A token's entry is appended
        before the delta that contains its text is sent."""
        self._queue: SimpleQueue[str] = SimpleQueue()
        self._result: Result | None = None
        self._done = Event()
        self._listeners: list[Callable[[], None]] = []

    @property
    def result(self) -> Result | None:
        return self._result

    def send(self, delta: str) -> None:
        if delta:
            self._queue.put(delta)
            self._notify()

    def finish(self, result: Result) -> None:
        timings = replace(result.timings, total=monotonic() - self.submitted)
        self._result = replace(result, timings=timings)
        self._queue.put("")  # wakes the reader; a real delta is never empty
        self._done.set()
        self._notify()

    def next(self, block: bool) -> str | None:
        """Return the next delta, or None if there is none yet or, once there is a result, none will follow."""
        try:
            delta = self._queue.get(block=block)
        except Empty:
            return None
        if not delta:
            self._queue.put("")  # put back, so that every later read finds the end too
        return delta or None

    def wait(self, timeout: float | None) -> bool:
        return self._done.wait(timeout)

    @contextmanager
    def listening(self, callback: Callable[[], None]) -> Iterator[None]:
        """Call ``callback`` once now, and then from the model's thread whenever something is sent."""
        self._listeners.append(callback)
        callback()
        try:
            yield
        finally:
            self._listeners.remove(callback)

    def _notify(self) -> None:
        for callback in tuple(self._listeners):
            callback()


class Answer:
    """The handle of a submitted request: iterate over it for text deltas, or wait for the result.

    An answer that is no longer referenced is cancelled.

    Args:
        drive: advances an engine that has no thread of its own; None if a thread runs the engine.
        wake: notifies the engine of a cancellation.
    """

    def __init__(
        self, channel: Channel, drive: Callable[[], object] | None, wake: Callable[[], None], prompt: str
    ) -> None:
        self._channel, self._drive, self._wake = channel, drive, wake
        self.prompt = prompt
        """The prompt as passed to the model's tokenizer, with tags written out."""

    @property
    def channel(self) -> Channel:
        """The channel that carries the deltas and the result. Holding the channel to watch it (see
        :meth:`Channel.listening`) does not keep the answer alive."""
        return self._channel

    @property
    def done(self) -> bool:
        return self._channel.result is not None

    def cancel(self) -> None:
        """Stop the request within one step. The result keeps the text generated so far."""
        self._channel.cancelled = True
        self._wake()

    def __iter__(self) -> Iterator[str]:
        """Yield text deltas; each consists of whole characters.

        Raises:
            VideoLlama2Error: what made the request fail.
        """
        try:
            while True:
                delta = self._channel.next(block=self._drive is None and not self.done)
                if delta is not None:
                    yield delta
                elif self.done:
                    break
                elif self._drive is not None:
                    self._drive()
        finally:
            if not self.done:
                self.cancel()
        self._finished()

    async def __aiter__(self) -> AsyncGenerator[str, None]:
        """Yield deltas as :meth:`__iter__` does, in an event loop; the engine must have a thread."""
        try:
            with self._changes() as changed:
                while True:
                    delta = self._channel.next(block=False)
                    if delta is not None:
                        yield delta
                        # A fast model always has another delta ready, so yield to the other tasks of the event loop.
                        await asyncio.sleep(0)
                    elif self.done:
                        break
                    else:
                        await changed.wait()
                        changed.clear()
        finally:
            if not self.done:
                self.cancel()
        self._finished()

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the end of the answer and return its result.

        Raises:
            VideoLlama2Error: the error that made the request fail.
            TimeoutError: the answer is not done after ``timeout`` seconds.
        """
        deadline = None if timeout is None else monotonic() + timeout
        while self._drive is not None and not self.done:
            if deadline is not None and monotonic() > deadline:
                break
            self._drive()
        if not self._channel.wait(timeout if self._drive is None else 0):
            raise TimeoutError(f"the answer is not finished after {timeout} s")
        return self._finished()

    async def aresult(self) -> Result:
        """Return what :meth:`result` returns, in an event loop."""
        try:
            with self._changes() as changed:
                while not self.done:
                    await changed.wait()
                    changed.clear()
        finally:
            if not self.done:
                self.cancel()
        return self._finished()

    @contextmanager
    def _changes(self) -> Iterator[asyncio.Event]:
        """Provide an event of the running loop that is set whenever the channel has something new."""
        if self._drive is not None:
            raise PromptError("an engine without a thread (background=False) has no asynchronous answers")
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed, so there is no listener any more
                loop.call_soon_threadsafe(changed.set)

        with self._channel.listening(wake):
            yield changed

    def outcome(self) -> Result | None:
        """Return the result, or None while the request runs. Failed requests have one too, see :attr:`Result.error`."""
        return self._channel.result

    def _finished(self) -> Result:
        """Return the result of a finished answer, or raise the error that made its request fail."""
        result = self._channel.result
        assert result is not None, "the answer is not done"
        if result.error is not None:
            raise result.error
        return result

    def __del__(self) -> None:
        # Nobody can read this answer any more, so computing the rest of it would be wasted.
        if self._channel.result is None:
            self._channel.cancelled = True
            self._wake()


@dataclass(frozen=True)
class ShownAnswer:
    """An answered question with what the model saw, for people who follow a run.

    Attributes:
        name: name of the question, which is the same in every evaluation.
        wanted: the answer that would have been right.
        media: kind and values of each medium; pixels_TCHW of images and videos.
    """

    name: str
    question: str
    wanted: str
    answer: str
    media: Sequence[tuple[str, Any]]

    def texts(self) -> dict[str, str]:
        """Return all but the media by their names."""
        return {"name": self.name, "question": self.question, "wanted": self.wanted, "answer": self.answer}
