"""Limits the memory that clients' media occupy at one time, over all requests."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class WaitingBudget:
    """A number of bytes that tasks hold for a while. Tasks wait in order of arrival, all in the same event loop.

    A task that holds some bytes must not wait for more, which could lead to a deadlock.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, count: int) -> AsyncIterator[None]:
        """Hold ``count`` bytes. A count above the limit is reduced to the limit, so that such a task runs alone."""
        count = min(count, self.limit)
        # While tasks are waiting, a new one queues up behind them, even if its own count would fit. _serve accounts for
        # a task's bytes before it wakes the task, so one that is cancelled in between has to give them back.
        if self._queue or self.used + count > self.limit:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._queue.append((count, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._give_back(count)
                else:
                    self._queue.remove((count, turn))
                    self._serve()
                raise
        else:
            self.used += count
        try:
            yield
        finally:
            self._give_back(count)

    def _give_back(self, count: int) -> None:
        self.used -= count
        self._serve()

    def _serve(self) -> None:
        while self._queue and self.used + self._queue[0][0] <= self.limit:
            count, turn = self._queue.popleft()
            if not turn.done():
                self.used += count
                turn.set_result(None)


class Budget:
    """A number of bytes that are granted or refused at once. They may be given back from any thread."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        # The lock is reentrant, because bytes are given back in finalizers, which may run inside take().
        self._lock = threading.RLock()

    def take(self, count: int) -> bool:
        """Take bytes; return whether they were available. The first taker is granted any number."""
        with self._lock:
            if self.used and self.used + count > self.limit:
                return False
            self.used += count
            return True

    def give_back(self, count: int) -> None:
        with self._lock:
            self.used -= count
