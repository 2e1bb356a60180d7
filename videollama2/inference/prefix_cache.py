"""Key-values of prompt beginnings, so that a second question about a video prefills only the question.

Sequences are cut into blocks of a fixed number of tokens. A block is known by everything up to its end: the tokens
and, where media stand, their content. So any two requests share exactly the blocks they have in common, whichever
came first, and each is kept once. Least recently used blocks go first.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from hashlib import blake2b

import torch

from videollama2.inference.lru import LruStore
from videollama2.inference.slots import KeyValueSlots

BLOCK = 32
"""Tokens per block: a shorter common beginning is not reused."""

DEFAULT_MAX_BYTES = 1 << 29


class PrefixCache:
    """Blocks of key-values, bounded by bytes. Used by the model's thread alone.

    Args:
        max_bytes: 0 keeps nothing.
    """

    def __init__(self, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._blocks: LruStore[bytes, list[torch.Tensor]] = LruStore(max_bytes, _nbytes)

    @property
    def max_bytes(self) -> int:
        """The bound."""
        return self._blocks.max_size

    @property
    def used_bytes(self) -> int:
        """Memory that the blocks take now."""
        return self._blocks.used_size

    def known(self, identity: Sequence[Hashable]) -> int:
        """Positions that :meth:`load` would fill."""
        keys = _keys(identity[:-1])
        return BLOCK * next((number for number, key in enumerate(keys) if key not in self._blocks), len(keys))

    def load(self, identity: Sequence[Hashable], slots: KeyValueSlots, row: int) -> int:
        """Fill a row with the known beginning of a sequence; returns how many positions.

        Args:
            identity: per position, what stands there: a token id, or (content of a medium, index within it).

        At least one position is left to compute: a request needs the logits of its last token.
        """
        loaded: list[bytes] = []
        for key in _keys(identity[:-1]):
            block = self._blocks.get(key)
            if block is None:
                break
            slots.write(row, BLOCK * len(loaded), block)
            loaded.append(key)
        self._use(loaded)
        return BLOCK * len(loaded)

    def store(self, identity: Sequence[Hashable], slots: KeyValueSlots, row: int) -> None:
        """Keep the blocks of a row whose key-values are all computed."""
        if self.max_bytes == 0:
            return
        size = slots.bytes_per_position * BLOCK
        # What cannot all be kept is kept from its beginning.
        keys = _keys(identity)[: self.max_bytes // size if size else None]
        # Blocks of this chain that are there already must not be the ones that make room for the new ones.
        self._use(keys)
        for number, key in enumerate(keys):
            if key not in self._blocks:
                # Before the copy is made, so that the bound holds at every moment.
                self._blocks.make_room(size)
                self._blocks.put(key, slots.read(row, number * BLOCK, (number + 1) * BLOCK))
        self._use(keys)

    def _use(self, chain: Sequence[bytes]) -> None:
        """Count the blocks of a chain as used, the first one last.

        The beginning of a chain is worth most: without it, the rest cannot be found. So of one chain, the end goes
        first when room is needed.
        """
        for key in reversed(chain):
            self._blocks.touch(key)

    def clear(self) -> None:
        """Forget everything; needed after the model's weights changed."""
        self._blocks.clear()

    def __len__(self) -> int:
        return len(self._blocks)


def _keys(identity: Sequence[Hashable]) -> list[bytes]:
    """One key per whole block; each covers all blocks before it."""
    keys = []
    digest = blake2b(digest_size=16)
    for start in range(0, len(identity) - BLOCK + 1, BLOCK):
        digest.update(repr(identity[start : start + BLOCK]).encode())
        keys.append(digest.digest())
    return keys


def _nbytes(block: list[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in block)
