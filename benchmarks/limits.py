"""What the machine could do at most: bytes copied and operations of large products, per second."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def timed(run: Callable[[], Any], repeat: int) -> float:
    """Median seconds."""
    times = []
    for _ in range(repeat):
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def synchronize() -> None:
    """Wait for the GPU, where there is one: its work is only started by the calls that are timed."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def copy_rate(torch: Any, device: Any) -> float:
    """Bytes per second that a large copy moves, read and written."""
    source = torch.empty(256 << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.nbytes / timed(lambda: target.copy_(source), 5)


def product_rate(torch: Any, device: Any, dtype: Any) -> float:
    """Operations per second of one large product of matrices."""
    size = 8192 if device.type == "cuda" else 2048
    left, right = torch.randn(2, size, size, device=device).to(dtype)
    left @ right
    return 2 * size**3 / timed(lambda: left @ right, 5)
