"""Visual tokens of media that were encoded before, least recently used first out, bounded by bytes."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from threading import Lock

import torch

DEFAULT_MAX_BYTES = 1 << 30


def content_key(kind: str, pixels_TCHW: torch.Tensor) -> tuple[str, tuple[int, ...], str, bytes]:
    """Key of preprocessed pixels: what they are and every value of them.

    Clip bounds, frame choice and preprocessing all end in the pixels, so equal keys mean equal visual tokens.
    """
    pixels = pixels_TCHW.detach().cpu().contiguous()
    digest = hashlib.blake2b(pixels.view(torch.uint8).numpy(), digest_size=16).digest()
    return kind, tuple(pixels.shape), str(pixels.dtype), digest


class MediaCache:
    """Maps keys to tensors; safe to use from several threads.

    Args:
        max_bytes: sum of the tensors kept. A tensor larger than this is not kept; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self.hits = 0
        self.misses = 0
        self._entries: OrderedDict[object, torch.Tensor] = OrderedDict()
        self._lock = Lock()

    def get(self, key: object) -> torch.Tensor | None:
        with self._lock:
            tensor = self._entries.get(key)
            if tensor is None:
                self.misses += 1
                return None
            self.hits += 1
            self._entries.move_to_end(key)
            return tensor

    def put(self, key: object, tensor: torch.Tensor) -> None:
        with self._lock:
            self._drop(key)
            if tensor.nbytes > self.max_bytes:
                return
            self._entries[key] = tensor
            self.used_bytes += tensor.nbytes
            while self.used_bytes > self.max_bytes:
                self._drop(next(iter(self._entries)))

    def clear(self) -> None:
        """Forget everything; needed after the model's weights changed."""
        with self._lock:
            self._entries.clear()
            self.used_bytes = 0

    def _drop(self, key: object) -> None:
        old = self._entries.pop(key, None)
        if old is not None:
            self.used_bytes -= old.nbytes

    def __len__(self) -> int:
        return len(self._entries)
