"""The cache of visual tokens: media that were encoded before are not encoded again."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable

import torch

from videollama2.inference.lru import LruStore

DEFAULT_MAX_BYTES = 1 << 30
"""1 GiB of host memory: some 150 clips of a 7B model (1,000 tokens of 4,096 values of 2 bytes), thousands of others."""


def content_key(kind: str, pixels_TCHW: torch.Tensor) -> tuple[str, tuple[int, ...], str, bytes]:
    """Return the key of preprocessed pixels, which covers their kind, shape, type and every value.

    Clip bounds, frame choice and preprocessing all end in the pixels, so equal keys mean equal visual tokens.
    """
    pixels = pixels_TCHW.detach().cpu().contiguous()
    digest = hashlib.blake2b(pixels.view(torch.uint8).numpy(), digest_size=16).digest()
    return kind, tuple(pixels.shape), str(pixels.dtype), digest


class MediaCache:
    """Maps keys to visual tokens; safe to use from several threads.

    What is kept are copies in host memory, whatever device the tensors come from: a cache on the GPU would take, clip
    by clip, the memory that key-values need, and copying a clip's tokens back takes a small part of the time of
    encoding it. A copy has no graph, is no inference-mode tensor (so a training step may read it) and holds no more
    memory than its own values (a view would keep the whole batch alive that it was encoded in).

    Args:
        max_bytes: of host memory, the sum of the tensors kept. A tensor larger than this is not kept; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._store: LruStore[Hashable, tuple[torch.Tensor, torch.device]] = LruStore(
            max_bytes, lambda entry: entry[0].nbytes
        )

    @property
    def max_bytes(self) -> int:
        """Most host memory that the tensors may take."""
        return self._store.max_size

    @property
    def used_bytes(self) -> int:
        """Host memory that the tensors take now."""
        return self._store.used_size

    @property
    def hits(self) -> int:
        """How often :meth:`get` had the tensor."""
        return self._store.hits

    @property
    def misses(self) -> int:
        """How often :meth:`get` had no tensor."""
        return self._store.misses

    def get(self, key: Hashable) -> torch.Tensor | None:
        """Return the tensor on the device it came from, or None. On a CPU it is the copy kept: do not write into it."""
        entry = self._store.get(key)
        if entry is None:
            return None
        kept, device = entry
        with torch.inference_mode(False):
            return kept.to(device)

    def put(self, key: Hashable, tensor: torch.Tensor) -> None:
        """Keep a copy; the least recently used go when there is no room."""
        if tensor.nbytes > self.max_bytes:
            self._store.drop(key)  # the value it had is out of date
            return
        with torch.inference_mode(False), torch.no_grad():
            kept = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        self._store.put(key, (kept, tensor.device))

    def clear(self) -> None:
        """Forget everything; needed after the model's weights changed."""
        self._store.clear()

    def __len__(self) -> int:
        return len(self._store)
