"""Reads the media of waiting requests ahead of the model. A medium that several requests share is read only once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

from videollama2.inference.media.reader import ReadMedium
from videollama2.inference.openmp import compute_alone
from videollama2.inference.request import MediaPart

ReadFunction = Callable[[MediaPart, Hashable], ReadMedium]


@dataclass
class _Reading:
    future: Future[ReadMedium]
    users: int = 0


class ReadAhead:
    """The media that are being read or wait for the encoder. Each is kept as long as a request needs it.

    Args:
        read: function that reads a part with a key, see :meth:`MediaReader.read`.
        threads: number of threads that read in parallel. With 0, taking a result reads the medium.
        ring: called from a reading thread whenever a medium has been read.
    """

    def __init__(self, read: ReadFunction, threads: int, ring: Callable[[], object]) -> None:
        self._read, self._ring = read, ring
        name = "videollama2-media"
        self._pool = ThreadPoolExecutor(threads, name, initializer=compute_alone) if threads else None
        self._readings: dict[Hashable, _Reading] = {}
        self._lock = Lock()

    def ask(self, key: Hashable, part: MediaPart) -> Future[ReadMedium]:
        """Return a future of the medium. The caller must call :meth:`release` with the same key afterwards.

        Args:
            key: result of :meth:`MediaReader.source_key`; parts with equal keys are read once.
        """
        with self._lock:
            reading = self._readings.get(key)
            if reading is None:
                reading = self._readings[key] = _Reading(self._start(key, part))
            reading.users += 1
            return reading.future

    def ask_again(self, key: Hashable, part: MediaPart, outdated: Future[ReadMedium]) -> Future[ReadMedium]:
        """Return a future in place of one from :meth:`ask` whose tokens are out of date, for the same users."""
        with self._lock:
            reading = self._readings[key]
            if reading.future is outdated:  # another of its users may have been here already
                reading.future = self._start(key, part)
            return reading.future

    def release(self, key: Hashable) -> None:
        """Release a medium requested by :meth:`ask`. Without further requests, a pending read is dropped."""
        with self._lock:
            reading = self._readings[key]
            reading.users -= 1
            if reading.users:
                return
            del self._readings[key]
        reading.future.cancel()

    def close(self) -> None:
        """Stop the threads; they finish reading their current media."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _start(self, key: Hashable, part: MediaPart) -> Future[ReadMedium]:
        if self._pool is None:
            return _ReadWhenTaken(self._read, part, key)
        future = self._pool.submit(self._read, part, key)
        future.add_done_callback(lambda _: self._ring())
        return future


class _ReadWhenTaken(Future[ReadMedium]):
    """A future for engines without threads: asking for the result reads the medium."""

    def __init__(self, read: ReadFunction, part: MediaPart, key: Hashable) -> None:
        super().__init__()
        self._read, self._part, self._key = read, part, key

    def done(self) -> bool:
        return True

    def result(self, timeout: float | None = None) -> ReadMedium:
        if not super().done():
            try:
                self.set_result(self._read(self._part, self._key))
            except Exception as error:  # noqa: BLE001 - kept, and raised for every caller
                self.set_exception(error)
        return super().result()
