"""What the machine is, and what it could do at most: bytes moved and operations of products of matrices per second."""

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


def memory_rate(torch: Any, device: Any) -> float:
    """Bytes per second that a large copy moves, read and written, or that a large sum reads: whichever is more.

    A decode step does little but read, and some processors read faster than they copy.
    """
    # Memory that nobody has written to would be one page of zeros, which the caches hold.
    source = torch.ones(64 << 20, device=device)
    target = torch.ones_like(source)
    copied = 2 * source.nbytes / timed(lambda: target.copy_(source), 5)
    return max(copied, source.nbytes / timed(source.sum, 5))


def product_rate(torch: Any, device: Any, dtype: Any) -> float:
    """Operations per second of one large product of matrices."""
    size = 8192 if device.type == "cuda" else 2048
    inputs, weight = torch.randn(2, size, size, device=device).to(dtype)
    return 2 * size**3 / min(timed(product, 5) for product in _products(torch, inputs, weight))


def few_rows_rate(torch: Any, device: Any, dtype: Any, rows: int) -> float:
    """Operations per second of products of so many rows whose weight need not be read from memory.

    It is the better rate of a weight of 1 and one of 4 MiB in float32: either stays in the caches, and the larger one
    has less of the cost of starting a product.
    """

    def rate(size: int, calls: int) -> float:
        inputs = torch.randn(rows, size, device=device).to(dtype)
        weight = torch.randn(size, size, device=device).to(dtype)

        def repeated(product: Callable[[], Any]) -> None:
            for _ in range(calls):
                product()

        seconds = min(timed(lambda p=product: repeated(p), 5) for product in _products(torch, inputs, weight))
        return 2 * rows * size**2 * calls / seconds

    return max(rate(512, 200), rate(1024, 50))


def _products(torch: Any, inputs: Any, weight: Any) -> list[Callable[[], Any]]:
    """Return ways to multiply, warm: torch's own, and in float32 on a CPU oneDNN with its own order of the weight.

    MKL, with which torch multiplies float32, has its fast kernels for Intel's processors alone.
    """
    products = [lambda: torch.nn.functional.linear(inputs, weight)]
    if inputs.device.type == "cpu" and inputs.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, len(inputs))
        products.append(lambda: torch.ops.mkldnn._linear_pointwise(inputs, packed, None, "none", [], ""))
    for product in products:
        product()
    return products
