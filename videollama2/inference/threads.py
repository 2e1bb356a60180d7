"""Runs the model's thread, and handles Ctrl-C in an engine without a thread."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any
from weakref import ref

if TYPE_CHECKING:
    from videollama2.inference.engine import Engine


class Bell:
    """Wakes the model's thread. It takes no lock, so it may be rung from ``__del__`` or a signal handler."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[None] = SimpleQueue()

    def ring(self) -> None:
        self._queue.put(None)

    def wait(self) -> None:
        """Sleep until the bell rings; returns at once if it has rung since :meth:`reset`."""
        self._queue.get()

    def reset(self) -> None:
        """Discard earlier rings."""
        with suppress(Empty):
            while True:
                self._queue.get_nowait()


def start_thread(engine: Engine, bell: Bell) -> threading.Thread:
    """Run ``engine.step`` on a thread until the engine is closed or no longer referenced."""
    # The thread holds only a weak reference, so it does not keep the engine alive; it is woken when the engine is gone.
    engine_ref = ref(engine, lambda _: bell.ring())
    thread = threading.Thread(target=_run, args=(engine_ref, bell), name="videollama2-engine", daemon=True)
    thread.start()
    return thread


def _run(engine_ref: ref[Engine], bell: Bell) -> None:
    while True:
        bell.reset()  # before checking for work: a later ring is handled by this round or the next
        engine = engine_ref()
        if engine is None:
            return
        try:
            engine.step()
        except BaseException as error:  # a bug of the engine: no caller may wait forever for an answer
            engine.abort(error)
            raise
        if engine.closed:
            return
        idle = engine.idle
        del engine
        if idle:
            bell.wait()


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Defer Ctrl-C to the end of the block, between two steps. Pressed twice, it takes effect at once.

    Interrupting a step in the middle could leave requests in neither queue nor batch.
    """
    on_main = threading.current_thread() is threading.main_thread()
    if not on_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    pressed: list[int] = []

    def remember(number: int, frame: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if pressed:
        raise KeyboardInterrupt
