"""What the machine is, and what it could do at most: bytes copied and operations of products of matrices per second."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def processor_name() -> str:
    """Model of the processor, and which instructions for bfloat16 and 8 bits it has."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    known = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8")
    found = [name for name in known if name in fields.get("flags", "").split()]
    return f"{fields.get('model name', 'unknown processor')} ({', '.join(found) or 'no known features'})"


def clock() -> float:
    """Seconds of the wall; on one thread of a CPU those of the processor, which other work distorts less."""
    import torch

    if torch.cuda.is_available() or torch.get_num_threads() > 1:
        return time.perf_counter()
    return time.process_time()


def timed(run: Callable[[], Any], repeat: int) -> float:
    """Median seconds by :func:`clock`."""
    times = []
    for _ in range(repeat):
        synchronize()
        start = clock()
        run()
        synchronize()
        times.append(clock() - start)
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
    torch.mm(left, right)  # warm-up
    return 2 * size**3 / timed(lambda: left @ right, 5)


def few_rows_rate(torch: Any, device: Any, dtype: Any, rows: int) -> float:
    """Operations per second of products of so many rows whose weight need not be read from memory.

    The weight stays in the caches of one core, and is in the order of oneDNN as well where that can be faster.
    """
    size, calls = 512, 200
    inputs, weight = torch.randn(rows, size, device=device).to(dtype), torch.randn(size, size, device=device).to(dtype)
    products = [lambda: torch.nn.functional.linear(inputs, weight)]
    if device.type == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        products.append(lambda: torch.ops.mkldnn._linear_pointwise(inputs, packed, None, "none", [], ""))

    def repeated(product: Callable[[], Any]) -> None:
        for _ in range(calls):
            product()

    return 2 * rows * size**2 * calls / min(timed(lambda product=product: repeated(product), 5) for product in products)
