"""Caches the key-values of prompt beginnings, so that a second question about a video prefills only the question.

Sequences are divided into blocks of a fixed number of tokens. The key of a block is a digest of the sequence from its
start to the end of the block: its token ids and the content of its media. Any two requests therefore share exactly the
blocks of their common beginning, whichever came first, and each block is stored once. A lookup follows the chain of
keys from the start of the prompt until a block is missing. The least recently used blocks are dropped first.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from hashlib import blake2b

import torch

from videollama2.inference.kv_cache import KeyValueSlots
from videollama2.inference.lru import LruStore

BLOCK = 16
"""Number of tokens per block; a shorter common beginning is not reused."""

DEFAULT_MAX_BYTES = 1 << 29


class PrefixCache:
    """A store of key-value blocks, bounded in bytes. Only the model's thread may use it.

    Args:
        max_bytes: maximum size of all blocks together; 0 stores nothing.
    """

    def __init__(self, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._blocks: LruStore[bytes, list[torch.Tensor]] = LruStore(max_bytes, _nbytes)

    @property
    def max_bytes(self) -> int:
        """The maximum size of all blocks together."""
        return self._blocks.max_size

    @property
    def used_bytes(self) -> int:
        """The current size of all blocks together."""
        return self._blocks.used_size

    def known(self, keys: Sequence[bytes]) -> int:
        """Return the number of positions that :meth:`load` would fill."""
        # A chain is usable up to its first gap, since each key-value depends on all positions before it.
        return BLOCK * next((number for number, key in enumerate(keys) if key not in self._blocks), len(keys))

    def load(self, keys: Sequence[bytes], slots: KeyValueSlots, row: int) -> int:
        """Fill a row with the cached beginning of a sequence; returns the number of positions filled.

        Args:
            keys: those of the blocks that may be filled, see :class:`BlockKeys`.
        """
        loaded: dict[bytes, list[torch.Tensor]] = {}
        for key in keys:
            block = self._blocks.get(key)
            if block is None:
                break
            loaded[key] = block
        if loaded:
            # One write per layer is much faster than one per layer and block.
            slots.write(row, 0, [torch.cat(layers, dim=2) for layers in zip(*loaded.values(), strict=True)])
        self._use(list(loaded))
        return BLOCK * len(loaded)

    def store(self, keys: Sequence[bytes], slots: KeyValueSlots, row: int) -> None:
        """Store the blocks of a row, whose key-values are all computed."""
        if self.max_bytes == 0:
            return
        size = slots.bytes_per_position * BLOCK
        # If the whole sequence does not fit into the cache, only its beginning is stored.
        keys = keys[: self.max_bytes // size if size else None]
        # Blocks of this sequence that are stored already must not be dropped to make room for its new ones.
        self._use(keys)
        for number, key in enumerate(keys):
            if key not in self._blocks:
                # Room is made before the copy, so that the bound holds at every moment.
                self._blocks.make_room(size)
                self._blocks.put(key, slots.read(row, number * BLOCK, (number + 1) * BLOCK))
        self._use(keys)

    def _use(self, chain: Sequence[bytes]) -> None:
        """Mark the blocks of a sequence as used, the first one last.

        The beginning of a sequence is the most valuable part, because later blocks cannot be found without it. Marking
        it last makes it the most recently used, so that the end of a sequence is dropped first.
        """
        for key in reversed(chain):
            self._blocks.touch(key)

    def clear(self) -> None:
        """Remove all blocks; necessary after the model's weights have changed."""
        self._blocks.clear()

    def __len__(self) -> int:
        return len(self._blocks)


class BlockKeys:
    """The keys of the blocks of one sequence, which may grow. Each is computed once."""

    def __init__(self) -> None:
        self._keys: list[bytes] = []
        self._digest = blake2b(digest_size=16)

    def of(self, identity: Sequence[Hashable], end: int) -> list[bytes]:
        """Return one key per complete block of the first ``end`` positions; each key covers all blocks before it too.

        Args:
            identity: what each position holds: a token id, or (content of a medium, index within it). What an earlier
                call was given must be its beginning.
        """
        for start in range(len(self._keys) * BLOCK, end - BLOCK + 1, BLOCK):
            # The digest goes on from block to block, so a key stands for everything from the start of the sequence. Two
            # prompts that hold the same words after different videos have no key in common.
            self._digest.update(repr(identity[start : start + BLOCK]).encode())
            self._keys.append(self._digest.digest())
        return self._keys[: end // BLOCK]


def _nbytes(block: list[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in block)
