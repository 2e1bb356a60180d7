"""Where a model runs and with which numbers: device, dtype, attention, 8 and 4 bits."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig

from videollama2.errors import ConfigError, MissingDependencyError, first_line

# Quantising them saves little and costs accuracy; the published code quantised the connector and could not load it.
# transformers compares these with the start of a module's name, which lacks "model." in a model without its head.
_MEDIA_MODULES = ("vision_tower", "mm_projector", "audio_tower", "mm_projector_a")
NOT_QUANTISED = [*(f"model.{name}" for name in _MEDIA_MODULES), *_MEDIA_MODULES, "lm_head"]

# What the CPU kernels of bitsandbytes (0.50) read right in 4 bits. Rows that are no whole number of blocks are decoded
# with the wrong scales, by 15 to 40 percent; processors with AVX512_BF16 also fail on them, and on other heights.
_BLOCK, _ROWS = 64, 32

# On such processors it looks for a kernel on the hub when it is imported, and works as well without.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: not record.getMessage().startswith("Failed to load CPU gemm_4bit_forward")
)


def default_device() -> str:
    """``cuda``, else ``mps``, else ``cpu``."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def default_dtype(device: str | torch.device) -> torch.dtype:
    """bfloat16 on a GPU that computes in it, else float16; float32 on a CPU."""
    kind = torch.device(device).type
    if kind == "cpu":
        return torch.float32
    if kind == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.float16 if kind == "mps" else torch.bfloat16


def as_dtype(dtype: str | torch.dtype | None, device: str | torch.device) -> torch.dtype:
    if dtype is None:
        return default_dtype(device)
    if isinstance(dtype, torch.dtype):
        return dtype
    value = getattr(torch, dtype, None)
    if not isinstance(value, torch.dtype) or not value.is_floating_point:
        raise ConfigError(f"dtype must be float32, float16 or bfloat16, got {dtype!r}")
    return value


def check_device(name: str) -> str:
    """Raise ConfigError for a device that is not there, before gigabytes of weights are read."""
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


def quantization_config(bits: int, dtype: torch.dtype, double_quant: bool = True, quant_type: str = "nf4") -> Any:
    """What transformers' loaders take to quantise the language model through bitsandbytes; None for 16 bits.

    Args:
        bits: 4, 8 or 16.
        dtype: what 4-bit weights are computed in.
        double_quant, quant_type: of 4 bits, as bitsandbytes has them.

    Raises:
        MissingDependencyError: bitsandbytes is not installed.
    """
    if bits == 16:
        return None
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(f"{bits} bits need the package bitsandbytes: pip install bitsandbytes") from error
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=NOT_QUANTISED)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_quant_type=quant_type,
        llm_int8_skip_modules=NOT_QUANTISED,
    )


def leave_out_misfits(quantization: Any, decoder: PreTrainedConfig, device_map: Any) -> None:
    """Add the layers whose shape the CPU's 4-bit kernels get wrong to those that stay as they are, with a warning.

    Args:
        quantization: of :func:`quantization_config`; changed in place.
        decoder: configuration of the language model.
        device_map: where the model goes, as transformers takes it.

    Raises:
        ConfigError: no layer would be left to quantise.
    """
    if not getattr(quantization, "load_in_4bit", False) or not _uses_cpu(device_map):
        return
    with torch.device("meta"):
        linear = {name: m for name, m in AutoModel.from_config(decoder).named_modules() if isinstance(m, nn.Linear)}
    misfits = {
        name.rpartition(".")[2]
        for name, layer in linear.items()
        if layer.in_features % _BLOCK or layer.out_features % _ROWS
    }
    if not misfits:
        return
    left_out = sum(name.rpartition(".")[2] in misfits for name in linear)
    rule = f"on a CPU, 4 bits need layers of {_BLOCK} n inputs and {_ROWS} m outputs"
    if left_out == len(linear):
        raise ConfigError(f"{rule}; none of the {decoder.model_type} decoder's is")
    warnings.warn(f"{rule}: {left_out} of {len(linear)} layers stay as they are", stacklevel=3)
    quantization.llm_int8_skip_modules = [*quantization.llm_int8_skip_modules, *sorted(misfits)]


def _uses_cpu(device_map: Any) -> bool:
    if isinstance(device_map, dict):
        return any(str(device) in ("cpu", "disk") for device in device_map.values())
    return str(device_map) == "cpu" or default_device() == "cpu"
