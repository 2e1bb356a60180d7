"""Chooses and checks the device, the dtype and the attention implementation of a model."""

from __future__ import annotations

import logging
from functools import cache
from time import perf_counter
from typing import Any

import torch

from videollama2.errors import ConfigError, MissingDependencyError, first_line
from videollama2.model.linear import linear

AUTO = "auto"
"""The name of the fastest dtype of a device, as a value of ``dtype``."""

_BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16")
"""Features of CPUs, as torch names them, that multiply bfloat16; others convert every value to float32."""

_FASTER = 1.2
"""How many times faster than float32 bfloat16 must be to be chosen."""

_ROWS, _WIDTH, _TIMES = 128, 1024, 3
"""The product by which speeds are compared, and how often it is timed: 10 to 50 ms together."""

_log = logging.getLogger(__name__)


def default_device() -> str:
    """Return ``cuda`` if available, else ``mps``, else ``cpu``."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def default_dtype(device: str | torch.device) -> torch.dtype:
    """Return bfloat16 for a GPU that supports it in hardware, float16 for any other, and float32 for a CPU."""
    kind = torch.device(device).type
    if kind == "cpu":
        return torch.float32
    if kind == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.float16 if kind == "mps" else torch.bfloat16


def bfloat16_feature() -> str | None:
    """Return the feature of this CPU that multiplies bfloat16, as torch names it; None without one."""
    features = torch.cpu.get_capabilities()
    return next((name for name in _BFLOAT16 if features.get(name)), None)


@cache
def bfloat16_gain() -> float:
    """Return how many times faster this CPU multiplies large matrices in bfloat16 than in float32.

    It is measured once per process, because the feature does not tell. With AVX512_BF16, AMD's processors are 2 to 3.6
    times faster than in float32. Intel's take 1.6 times as long and need AMX, which hypervisors may hide. oneDNN's
    variable ``ONEDNN_MAX_CPU_ISA`` can forbid either.

    Returns:
        the gain; 0 for a CPU without such a feature, where nothing is measured.
    """
    if bfloat16_feature() is None:
        return 0.0
    seconds: dict[torch.dtype, float] = {}
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            rows, weight = torch.ones(_ROWS, _WIDTH, dtype=dtype), torch.ones(_WIDTH, _WIDTH, dtype=dtype)
            linear(rows, weight)  # chooses and compiles the kernel
            seconds[dtype] = min(_seconds_of_product(rows, weight) for _ in range(_TIMES))
    return seconds[torch.float32] / seconds[torch.bfloat16]


def _seconds_of_product(rows: torch.Tensor, weight: torch.Tensor) -> float:
    start = perf_counter()
    linear(rows, weight)
    return perf_counter() - start


def is_bfloat16_faster() -> bool:
    """Return whether this CPU computes prompts and media faster in bfloat16 than in float32."""
    return bfloat16_gain() >= _FASTER


@cache
def fastest_dtype(device: str | torch.device) -> torch.dtype:
    """Return :func:`default_dtype`, but bfloat16 for a CPU where it is faster; logs once what a CPU gets, and why."""
    if torch.device(device).type != "cpu":
        return default_dtype(device)
    feature = bfloat16_feature()
    if feature is None:
        _log.warning("dtype auto: float32, because this CPU has none of %s", ", ".join(_BFLOAT16))
        return torch.float32
    chosen = torch.bfloat16 if is_bfloat16_faster() else torch.float32
    name, gain = str(chosen).removeprefix("torch."), bfloat16_gain()
    _log.warning("dtype auto: %s, because bfloat16 is %.1f times as fast as float32 here (%s)", name, gain, feature)
    return chosen


def as_dtype(dtype: str | torch.dtype | None, device: str | torch.device) -> torch.dtype:
    """Return the dtype that a caller asks for: one of torch's, its name, ``auto``, or None for the default.

    Raises:
        ConfigError: there is no floating-point dtype of this name.
    """
    if dtype is None:
        return default_dtype(device)
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == AUTO:
        return fastest_dtype(device)
    value: Any = getattr(torch, dtype, None)
    if not isinstance(value, torch.dtype) or not value.is_floating_point:
        raise ConfigError(f"dtype must be float32, float16, bfloat16 or {AUTO}, got {dtype!r}")
    return value


def check_device(name: str) -> str:
    """Return ``name``, or raise ConfigError if the device is not available, before gigabytes of weights are read."""
    try:
        torch.empty(1, device=torch.device(name)).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device {name!r} cannot be used here ({first_line(error)})") from error
    return name


def check_attention(name: str) -> None:
    if name == "flash_attention_2":
        try:
            import flash_attn  # noqa: F401
        except ImportError as error:
            need = "attn_implementation 'flash_attention_2' needs the package flash-attn"
            raise MissingDependencyError.of(need, "flash-attn --no-build-isolation") from error
