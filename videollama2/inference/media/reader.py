"""Reads the media of requests, ahead of the model: what several requests name is read once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any

from videollama2.inference.media.encoder import Medium
from videollama2.inference.request import MediaPart

Read = Callable[[str, Any, dict[str, Any], Hashable], Medium]


@dataclass
class _Reading:
    future: Future[Medium]
    users: int = 0


class MediaReading:
    """Media being read or waiting for the encoder, each for as long as somebody asked for it.

    Args:
        read: kind, source, options, key -> medium; see :meth:`MediaEncoder.read`.
        threads: that read side by side; 0: whoever takes a result reads.
        ring: called from a reading thread whenever a medium is there.
    """

    def __init__(self, read: Read, threads: int, ring: Callable[[], object]) -> None:
        self._read, self._ring = read, ring
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="videollama2-media") if threads else None
        self._readings: dict[Hashable, _Reading] = {}
        self._lock = Lock()

    def ask(self, key: Hashable, part: MediaPart) -> Future[Medium]:
        """The medium, read by now or later. Give it back with :meth:`release`, with the same key.

        Args:
            key: of :meth:`MediaEncoder.source_key`; equal for what is read once.
        """
        with self._lock:
            reading = self._readings.get(key)
            if reading is None:
                reading = self._readings[key] = _Reading(self._start(key, part))
            reading.users += 1
            return reading.future

    def release(self, key: Hashable) -> None:
        """The asker needs it no more. What nobody needs and nobody has begun to read is not read."""
        with self._lock:
            reading = self._readings[key]
            reading.users -= 1
            if reading.users:
                return
            del self._readings[key]
        reading.future.cancel()

    def close(self) -> None:
        """Stop the threads; what they are reading now is read to its end."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _start(self, key: Hashable, part: MediaPart) -> Future[Medium]:
        arguments = part.kind, part.source, part.options, key
        if self._pool is None:
            return _ReadWhenTaken(self._read, *arguments)
        future = self._pool.submit(self._read, *arguments)
        future.add_done_callback(lambda _: self._ring())
        return future


class _ReadWhenTaken(Future):
    """The future of an engine without threads."""

    def __init__(self, read: Callable[..., Medium], *arguments: Any) -> None:
        super().__init__()
        self._read, self._arguments = read, arguments

    def done(self) -> bool:
        return True

    def result(self, timeout: float | None = None) -> Medium:
        if not super().done():
            try:
                self.set_result(self._read(*self._arguments))
            except Exception as error:  # noqa: BLE001 - kept, and raised for everybody who asked
                self.set_exception(error)
        return super().result()
