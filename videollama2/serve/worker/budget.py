"""How much memory clients' media may take at one time, all requests together."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class WaitingBudget:
    """Bytes that are held for a while and waited for, first come first served. Of one event loop.

    Whoever holds some must not wait for more.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, count: int) -> AsyncIterator[None]:
        """Have ``count`` bytes; what exceeds the limit counts as all of it, so it can run alone."""
        count = min(count, self.limit)
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
    """Bytes that are taken or refused at once; may be given back from any thread."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        # Reentrant: giving back happens in finalizers, which may run inside take.
        self._lock = threading.RLock()

    def take(self, count: int) -> bool:
        """Whether there was room. Alone, anything has room."""
        with self._lock:
            if self.used and self.used + count > self.limit:
                return False
            self.used += count
            return True

    def give_back(self, count: int) -> None:
        with self._lock:
            self.used -= count
