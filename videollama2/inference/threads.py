"""The model's own thread, and how an engine without one survives Ctrl-C."""

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
    """Wakes the model's thread. Takes no lock, so it may be rung anywhere: in ``__del__``, in a signal handler."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[None] = SimpleQueue()

    def ring(self) -> None:
        self._queue.put(None)

    def wait(self) -> None:
        """Sleep until the bell rings; return at once if it rang since :meth:`reset`."""
        self._queue.get()

    def reset(self) -> None:
        """Forget the rings so far."""
        with suppress(Empty):
            while True:
                self._queue.get_nowait()


def start_thread(engine: Engine, bell: Bell) -> threading.Thread:
    """Run ``engine.step`` on a thread for as long as somebody holds the engine and it is not closed."""
    # The thread must not keep an engine alive that nobody holds any more; it is woken when that comes to pass.
    engine_ref = ref(engine, lambda _: bell.ring())
    thread = threading.Thread(target=_run, args=(engine_ref, bell), name="videollama2-engine", daemon=True)
    thread.start()
    return thread


def _run(engine_ref: ref[Engine], bell: Bell) -> None:
    while True:
        bell.reset()  # before looking: what rings from here on is seen by this round or the next
        engine = engine_ref()
        if engine is None:
            return
        try:
            engine.step()
        except BaseException as error:  # a fault of ours: nobody may wait forever for it
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
    """Let Ctrl-C take effect at the end of the block, between two steps. Pressed twice, it takes effect at once.

    A step that is cut in the middle would leave requests in neither queue nor batch.
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
