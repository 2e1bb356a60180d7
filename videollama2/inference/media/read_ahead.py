"""Media of waiting requests are read ahead of the model; what several requests name is read once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

from videollama2.inference.media.reader import ReadMedium
from videollama2.inference.request import MediaPart

Read = Callable[[MediaPart, Hashable], ReadMedium]


@dataclass
class _Reading:
    future: Future[ReadMedium]
    users: int = 0


class ReadAhead:
    """Media that are being read or wait for the encoder, each for as long as somebody needs it.

    Args:
        read: part, key -> medium; see :meth:`MediaReader.read`.
        threads: number of threads that read side by side. With 0, whoever takes a result reads.
        ring: called from a reading thread whenever a medium was read.
    """

    def __init__(self, read: Read, threads: int, ring: Callable[[], object]) -> None:
        self._read, self._ring = read, ring
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="videollama2-media") if threads else None
        self._readings: dict[Hashable, _Reading] = {}
        self._lock = Lock()

    def ask(self, key: Hashable, part: MediaPart) -> Future[ReadMedium]:
        """Return a future of the medium. Whoever asks must call :meth:`release` with the same key afterwards.

        Args:
            key: from :meth:`MediaReader.source_key`; parts with equal keys are read once.
        """
        with self._lock:
            reading = self._readings.get(key)
            if reading is None:
                reading = self._readings[key] = _Reading(self._start(key, part))
            reading.users += 1
            return reading.future

    def release(self, key: Hashable) -> None:
        """Give up what :meth:`ask` promised. A medium that nobody needs and no thread has begun to read is not read."""
        with self._lock:
            reading = self._readings[key]
            reading.users -= 1
            if reading.users:
                return
            del self._readings[key]
        reading.future.cancel()

    def close(self) -> None:
        """Stop the threads; what they are reading now, they read to its end."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _start(self, key: Hashable, part: MediaPart) -> Future[ReadMedium]:
        if self._pool is None:
            return _ReadWhenTaken(self._read, part, key)
        future = self._pool.submit(self._read, part, key)
        future.add_done_callback(lambda _: self._ring())
        return future


class _ReadWhenTaken(Future[ReadMedium]):
    """A future for engines without threads: the medium is read by whoever asks for the result."""

    def __init__(self, read: Read, part: MediaPart, key: Hashable) -> None:
        super().__init__()
        self._read, self._part, self._key = read, part, key

    def done(self) -> bool:
        return True

    def result(self, timeout: float | None = None) -> ReadMedium:
        if not super().done():
            try:
                self.set_result(self._read(self._part, self._key))
            except Exception as error:  # noqa: BLE001 - kept, and raised for everybody who asked
                self.set_exception(error)
        return super().result()
