"""Choose and check the device, the dtype and the attention implementation of a model."""

from __future__ import annotations

import logging
import os
from functools import cache
from typing import Any

import torch

from videollama2.errors import ConfigError, MissingDependencyError, first_line

AUTO = "auto"
"""The name of the fastest dtype of a device, as a value of ``dtype``."""

_FAST_BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16")
"""Features of CPUs, as torch names them, with which bfloat16 is faster than float32; others convert every value."""

_LIMIT = "ONEDNN_MAX_CPU_ISA"
_SLOW_LIMITS = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
"""Values of oneDNN's environment variable that keep it from these features: bfloat16 then takes five to ten times as
long as float32."""

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
    """Return the feature of this CPU that makes bfloat16 fast, as torch names it; None without one to use."""
    if os.environ.get(_LIMIT, "").upper() in _SLOW_LIMITS:
        return None
    features = torch.cpu.get_capabilities()
    return next((name for name in _FAST_BFLOAT16 if features.get(name)), None)


@cache
def fastest_dtype(device: str | torch.device) -> torch.dtype:
    """Return :func:`default_dtype`, but bfloat16 for a CPU that computes in it; logs once what a CPU gets, and why."""
    if torch.device(device).type != "cpu":
        return default_dtype(device)
    feature = bfloat16_feature()
    if feature is None:
        lacks = f"this CPU has none of {', '.join(_FAST_BFLOAT16)}, or {_LIMIT} forbids their use"
        _log.warning("dtype auto: float32, because %s", lacks)
        return torch.float32
    _log.warning("dtype auto: bfloat16, because this CPU has %s", feature)
    return torch.bfloat16


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
            raise MissingDependencyError(
                "attn_implementation 'flash_attention_2' needs the package flash-attn: "
                "pip install flash-attn --no-build-isolation"
            ) from error
