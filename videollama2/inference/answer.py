"""The engine's output: answers that can be read while they grow, and the results they end with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from threading import Event
from time import monotonic

from videollama2.errors import PromptError, VideoLlama2Error
from videollama2.inference.sampling import TokenLogprob


@dataclass(frozen=True)
class Timings:
    """Where the time of a request went, in seconds.

    Attributes:
        queued: from its submission until the model took it up.
        media: reading its media, and the passes that encoded them, which other requests may have shared.
        first_token: from its submission to its first token.
        total: from its submission to its end.
    """

    queued: float = 0.0
    media: float = 0.0
    first_token: float = 0.0
    total: float = 0.0


@dataclass(frozen=True)
class Result:
    """A finished answer.

    ``finish_reason``: ``stop`` (end of text or a stop text), ``length`` (max_new_tokens), ``cancelled`` or ``error``.
    ``cached_tokens``: of the prompt, those whose key-values were known. ``token_ids`` hold no end of text. ``notes``:
    what whoever asked should know about the media, such as a video without sound that was to be heard.
    """

    text: str
    finish_reason: str
    prompt_tokens: int = 0
    cached_tokens: int = 0
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    timings: Timings = Timings()
    error: VideoLlama2Error | None = None
    notes: tuple[str, ...] = ()

    @property
    def completion_tokens(self) -> int:
        return len(self.token_ids)


class Channel:
    """Deltas on their way from the model's thread to one reader; ends with a :class:`Result`."""

    def __init__(self) -> None:
        self.cancelled = False
        self.submitted = monotonic()
        self.prompt_tokens = self.completion_tokens = 0
        """Of the request, as far as known: the prompt's once it is laid out, the answer's so far."""
        self.logprobs: list[TokenLogprob] = []
        """Log-probabilities of the tokens chosen so far, where they were asked for. They are appended before the delta
        that their tokens make is sent."""
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
        self._queue.put("")  # wakes a reader; deltas are never empty
        self._done.set()
        self._notify()

    def next(self, block: bool) -> str | None:
        """Return the next delta, or None: there is none yet or, if there is a result, no more will come."""
        try:
            delta = self._queue.get(block=block)
        except Empty:
            return None
        if not delta:
            self._queue.put("")  # the end is there for every reader
        return delta or None

    def wait(self, timeout: float | None) -> bool:
        return self._done.wait(timeout)

    @contextmanager
    def listening(self, callback: Callable[[], None]) -> Iterator[None]:
        """Call ``callback`` once now, and then from the model's thread whenever something was sent."""
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
    """Handle of a submitted request: iterate over text deltas, or take the result.

    An answer that nobody holds any more is cancelled.

    Args:
        drive: advances an engine without a thread of its own; None where a thread does.
        wake: tells the engine that something was cancelled.
    """

    def __init__(
        self, channel: Channel, drive: Callable[[], object] | None, wake: Callable[[], None], prompt: str
    ) -> None:
        self._channel, self._drive, self._wake = channel, drive, wake
        self.prompt = prompt
        """The prompt as the model's tokenizer saw it, tags written out."""

    @property
    def channel(self) -> Channel:
        """The channel that its deltas and result come through. A watcher that holds the channel (see
        :meth:`Channel.listening`) does not keep the answer alive."""
        return self._channel

    @property
    def done(self) -> bool:
        return self._channel.result is not None

    def cancel(self) -> None:
        """Stop within one step. The result keeps the text so far."""
        self._channel.cancelled = True
        self._wake()

    def __iter__(self) -> Iterator[str]:
        """Yield text deltas, each of whole characters.

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
        """As :meth:`__iter__`, in an event loop; needs an engine with a thread."""
        try:
            with self._changes() as changed:
                while True:
                    delta = self._channel.next(block=False)
                    if delta is not None:
                        yield delta
                        # Where the model is as fast as its reader there is always one more: others want a turn too.
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
        """Wait for the end.

        Raises:
            VideoLlama2Error: what made the request fail. TimeoutError: not done after ``timeout`` seconds.
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
        """As :meth:`result`, in an event loop."""
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
        """An event of the running loop that is set whenever there is something new."""
        if self._drive is not None:
            raise PromptError("an engine without a thread (background=False) has no asynchronous answers")
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(changed.set)

        with self._channel.listening(wake):
            yield changed

    def outcome(self) -> Result | None:
        """Return the result, or None while the request runs. A failed request has one too, see :attr:`Result.error`."""
        return self._channel.result

    def _finished(self) -> Result:
        """The result of an answer that is done; raises what made its request fail."""
        result = self._channel.result
        assert result is not None, "the answer is not done"
        if result.error is not None:
            raise result.error
        return result

    def __del__(self) -> None:
        if self._channel.result is None:
            self._channel.cancelled = True
            self._wake()
