"""Caches media tokens, so that known media are not encoded again."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable

import torch

from videollama2.inference.lru import LruStore

DEFAULT_MAX_BYTES = 1 << 30
"""1 GiB of host memory: 130 clips of a 7B model (1,000 tokens of 4,096 values of 2 bytes), more of a smaller one."""


def content_key(kind: str, pixels_TCHW: torch.Tensor) -> tuple[str, tuple[int, ...], str, bytes]:
    """Return the key of preprocessed pixels, which covers their kind, shape, dtype and all values.

    Clip bounds, frame choice and preprocessing all affect the pixels, so equal keys mean equal visual tokens.
    """
    pixels = pixels_TCHW.detach().cpu().contiguous()
    # Processors have instructions for SHA-256, with which it takes a third of the time of BLAKE2.
    digest = hashlib.sha256(pixels.view(torch.uint8).numpy().data).digest()[:16]
    return kind, tuple(pixels.shape), str(pixels.dtype), digest


class MediaCache:
    """Maps keys to media tokens. Thread-safe.

    Tokens are kept as copies in host memory, whatever device they come from: a cache on the GPU would use up the memory
    that key-values need, and copying a clip's tokens back takes a small part of the time of encoding it. A copy is
    detached from autograd, is not an inference-mode tensor (so a training step may read it) and takes no more memory
    than its own values (a view would keep alive the whole batch in which it was encoded).

    Args:
        max_bytes: maximum size of all tensors in host memory. A larger tensor is not kept; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._store: LruStore[Hashable, tuple[torch.Tensor, torch.device]] = LruStore(
            max_bytes, lambda entry: entry[0].nbytes
        )
        self.generation = 0
        """The number of times that :meth:`clear` was called: tokens of an earlier generation are out of date."""

    @property
    def max_bytes(self) -> int:
        """The maximum size of all tensors together."""
        return self._store.max_size

    @property
    def used_bytes(self) -> int:
        """The current size of all tensors together."""
        return self._store.used_size

    @property
    def hits(self) -> int:
        """The number of times that :meth:`get` found the tensor."""
        return self._store.hits

    @property
    def misses(self) -> int:
        """The number of times that :meth:`get` found no tensor."""
        return self._store.misses

    def get(self, key: Hashable) -> torch.Tensor | None:
        """Return the tensor on its original device, or None. On a CPU it is the cached copy: do not modify it."""
        entry = self._store.get(key)
        if entry is None:
            return None
        kept, device = entry
        with torch.inference_mode(False):
            return kept.to(device)

    def put(self, key: Hashable, tensor: torch.Tensor) -> None:
        """Store a copy, dropping the least recently used tensors if necessary."""
        if tensor.nbytes > self.max_bytes:
            self._store.drop(key)  # an earlier value is out of date
            return
        with torch.inference_mode(False), torch.no_grad():
            kept = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        self._store.put(key, (kept, tensor.device))

    def clear(self) -> None:
        """Remove all tensors; necessary after the model's weights have changed."""
        self.generation += 1
        self._store.clear()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._store

    def __len__(self) -> int:
        return len(self._store)
