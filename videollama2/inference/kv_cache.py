"""Holds the engine's key-value memory, with one slot of fixed length per running sequence.

Slots are rows of one tensor per layer, so sequences of any lengths decode together without padding or copying: each row
writes at its own position, and a mask hides the positions after it. When a sequence ends, the last row takes its place.
Shapes: B rows of a call, H key-value heads, L positions, D head dimension, Q new positions, K attended positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache


@dataclass(frozen=True)
class _Window:
    """The part of the slots that the next forward pass uses: rows from ``first`` on, each written from its start.

    If ``scattered``, a tensor gives the positions that the rows write to, and ``starts`` are only upper bounds.
    """

    first: int
    starts: tuple[int, ...]
    queries: int
    scattered: bool = False

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + len(self.starts))

    @property
    def seen(self) -> int:
        return max(self.starts)

    @property
    def length(self) -> int:
        return self.seen + self.queries


class KeyValueSlots(Cache):
    """A transformers cache with fixed memory for ``max_batch`` x ``max_length`` positions.

    Each layer's memory is allocated when it processes its first token, on that layer's device and in its dtype. Any
    decoder that calls ``Cache.update`` is therefore supported, even if it is spread over several devices. Call
    :meth:`select` before each forward pass.
    """

    def __init__(self, max_batch: int, max_length: int) -> None:
        super().__init__(layers=[])
        self.max_batch, self.max_length = max_batch, max_length
        self._storage: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._window = _Window(0, (0,), 0)
        self._index: tuple[torch.Tensor, torch.Tensor] | None = None

    # ------------------------------------------------------------------------------------- what a forward pass sees

    def select(self, first: int, starts: list[int], queries: int) -> None:
        """Select the rows and positions of the next forward pass.

        Args:
            first: the first row.
            starts: number of filled positions per row; the new ones follow them.
            queries: number of new positions per row.
        """
        self._window = _Window(first, tuple(starts), queries)
        self._index = None

    def select_scattered(self, positions_B1: torch.Tensor, length: int) -> None:
        """Select rows 0 to B - 1 for a decode step that reads its positions from a tensor when it runs.

        Args:
            positions_B1: position of each row's new token.
            length: number of attended positions; must exceed every position, except those of rows without a request.
        """
        rows = positions_B1.shape[0]
        self._window = _Window(0, (length - 1,) * rows, 1, scattered=True)
        self._index = torch.arange(rows, device=positions_B1.device).unsqueeze(1), positions_B1

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new keys and values (B, H, Q, D); returns views (B, H, K, D) of all attended positions."""
        while len(self._storage) <= layer_idx:
            self._storage.append((self._allocate(key_states), self._allocate(value_states)))
        window = self._window
        result = []
        for stored_BHLD, new_BHQD in zip(self._storage[layer_idx], (key_states, value_states), strict=True):
            # The view shares its memory with the store, so what is written to it stays there for the next pass.
            view_BHLD = stored_BHLD[window.rows]
            # Rows that all write at the same positions need only a slice; otherwise each row has its own positions.
            if not window.scattered and len(set(window.starts)) == 1:
                view_BHLD[:, :, window.seen : window.length] = new_BHQD
            else:
                rows_B1, positions_BQ = self._positions(new_BHQD.device)
                view_BHLD[rows_B1, :, positions_BQ] = new_BHQD.transpose(1, 2)  # (B, Q) pairs come first
            result.append(view_BHLD[:, :, : window.length])
        return result[0], result[1]

    def mask(self, device: torch.device, window_size: int | None = None) -> torch.Tensor:
        """Return which positions each new token may attend to, (B, 1, Q, K): its own and those before it.

        With ``window_size``, only the last so many of them.
        """
        _, positions_BQ = self._positions(device)
        keys_K = torch.arange(self._window.length, device=device)
        # One comparison hides two things: the future of each new token, and what a former request left behind in the
        # positions that this row has not filled yet.
        mask = keys_K <= positions_BQ.unsqueeze(-1)
        if window_size is not None:
            mask &= keys_K > positions_BQ.unsqueeze(-1) - window_size
        return mask.unsqueeze(1)

    def position_ids(self, device: torch.device) -> torch.Tensor:
        """Return the positions of the new tokens, (B, Q)."""
        return self._positions(device)[1]

    def _positions(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        # All layers of a pass write to the same positions, so these are computed once, and moved where the layers of a
        # model lie on several devices.
        if self._index is not None and self._index[0].device != device:
            rows_B1, positions_BQ = self._index
            self._index = rows_B1.to(device), positions_BQ.to(device)
        if self._index is None:
            starts = torch.tensor(self._window.starts, device=device)
            rows = torch.arange(len(self._window.starts), device=device)
            self._index = rows.unsqueeze(1), starts.unsqueeze(1) + torch.arange(self._window.queries, device=device)
        return self._index

    def _allocate(self, like_BHQD: torch.Tensor) -> torch.Tensor:
        _, heads, _, width = like_BHQD.shape
        # The memory is zeroed: a masked position still contributes 0 * value, which would be NaN for a NaN value.
        return like_BHQD.new_zeros(self.max_batch, heads, self.max_length, width)

    # --------------------------------------------------------------------------------------------- rows by themselves

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` positions of one row to another."""
        for pair in self._storage:
            for stored in pair:
                stored[target, :, :length] = stored[source, :, :length]

    def read(self, row: int, start: int, end: int) -> list[torch.Tensor]:
        """Copy positions ``start`` to ``end`` of a row; returns keys and values (2, H, end - start, D) per layer."""
        return [torch.stack([stored[row, :, start:end] for stored in pair]) for pair in self._storage]

    def write(self, row: int, start: int, entries: list[torch.Tensor]) -> None:
        """Write the result of :meth:`read` to a row from ``start`` on, also before the memory has been allocated."""
        # A cache that engines share may hold blocks before this engine has run its first pass.
        for keys_HLD, values_HLD in entries[len(self._storage) :]:
            self._storage.append((self._allocate(keys_HLD[None]), self._allocate(values_HLD[None])))
        for pair, entry in zip(self._storage, entries, strict=True):
            for stored, part in zip(pair, entry, strict=True):
                stored[row, :, start : start + part.shape[1]] = part

    @property
    def nbytes(self) -> int:
        """The allocated memory in bytes; constant after the first token."""
        return sum(stored.nbytes for pair in self._storage for stored in pair)

    @property
    def bytes_per_position(self) -> int:
        """The bytes of key-values per position of a row, over all layers."""
        return self.nbytes // (self.max_batch * self.max_length)

    # ----------------------------------------------------------------------------- transformers' questions to a cache

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._window.seen

    def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> tuple[int, int]:
        return self._window.length, 0

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        return self.max_length

    def __len__(self) -> int:
        return len(self._storage)

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_initialized(self) -> bool:
        return bool(self._storage)

    @property
    def is_sliding(self) -> list[bool]:
        """False for all layers: every position is stored, and sliding windows are applied by the mask."""
        return [False] * max(len(self._storage), 1)
