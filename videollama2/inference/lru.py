"""Keeps the most recently used values in a store of bounded size. All caches of the package are built on it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from threading import Lock
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LruStore(Generic[Key, Value]):
    """Maps keys to values, and drops the least recently used ones to stay within its bound. Thread-safe.

    Args:
        max_size: bound on the sum of the values' sizes. A value larger than this is not kept; 0 keeps nothing.
        size_of: returns the size of a value, usually in bytes; 1 by default, so that ``max_size`` bounds their number.
    """

    def __init__(self, max_size: int, size_of: Callable[[Value], int] = lambda value: 1) -> None:
        self.max_size = max_size
        self.used_size = 0
        self.hits = 0
        self.misses = 0
        self._size_of = size_of
        self._entries: OrderedDict[Key, Value] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Key) -> Value | None:
        """Return the value and mark it as used, or return None. The access is counted in ``hits`` or ``misses``."""
        with self._lock:
            if key not in self._entries:
                self.misses += 1
                return None
            self.hits += 1
            self._entries.move_to_end(key)
            return self._entries[key]

    def put(self, key: Key, value: Value) -> None:
        """Store a value, replacing an earlier one of this key."""
        size = self._size_of(value)
        with self._lock:
            self._drop(key)
            if size > self.max_size:
                return
            self._shrink(self.max_size - size)
            self._entries[key] = value
            self.used_size += size

    def make_room(self, size: int) -> None:
        """Drop values until one of this size fits. Call it before making the value, so that memory stays bounded."""
        with self._lock:
            self._shrink(self.max_size - size)

    def touch(self, key: Key) -> None:
        """Mark the value, if there is one, as used now, without counting a hit or a miss."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)

    def drop(self, key: Key) -> None:
        """Remove the value of this key, if there is one."""
        with self._lock:
            self._drop(key)

    def clear(self) -> None:
        """Remove all values."""
        with self._lock:
            self._entries.clear()
            self.used_size = 0

    def values(self) -> Iterator[Value]:
        """Iterate over a snapshot of the values, least recently used first."""
        with self._lock:
            return iter(list(self._entries.values()))

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def _shrink(self, size: int) -> None:
        while self._entries and self.used_size > size:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: Key) -> None:
        if key in self._entries:
            self.used_size -= self._size_of(self._entries.pop(key))
