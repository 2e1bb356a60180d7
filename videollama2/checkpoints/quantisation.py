"""Configures weights of 8 and 4 bits with bitsandbytes, also for checkpoints that request them and for CPUs."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig

from videollama2.checkpoints.files import stored_names
from videollama2.checkpoints.placement import default_device
from videollama2.config_bounds import quoted
from videollama2.errors import ConfigError, MissingDependencyError

# Quantising these modules saves little memory and costs accuracy; the published code quantised the connector and could
# not load it afterwards. transformers matches the entries against the start of a module's name, which lacks "model." in
# a model without its head, so each entry is listed with and without it.
_MEDIA_MODULES = ("vision_tower", "mm_projector", "audio_tower", "mm_projector_a")
NOT_QUANTISED = [*(f"model.{name}" for name in _MEDIA_MODULES), *_MEDIA_MODULES, "lm_head"]

# The 4-bit CPU kernels of bitsandbytes (0.50) need rows whose length is a multiple of _BLOCK: other rows are decoded
# with the wrong scales and are off by 15 to 40 percent. On CPUs with AVX512_BF16 they also fail on such rows, and on
# weights whose number of rows is not a multiple of _ROWS.
_BLOCK, _ROWS = 64, 32

# On such CPUs bitsandbytes looks for a kernel on the hub when it is imported. It also works without the kernel, so the
# warning about it is suppressed.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: not record.getMessage().startswith("Failed to load CPU gemm_4bit_forward")
)

# Parts of the names under which bitsandbytes stores the scales of a quantised weight.
_STORED_QUANTISED = (".quant_state.bitsandbytes__", ".SCB")


def quantization_config(bits: int, dtype: torch.dtype, double_quant: bool = True, quant_type: str = "nf4") -> Any:
    """Return the ``quantization_config`` with which transformers quantises the language model; None for 16 bits.

    Args:
        bits: 4, 8 or 16.
        dtype: dtype in which layers with 4-bit weights compute.
        double_quant, quant_type: options of bitsandbytes for 4 bits.

    Raises:
        MissingDependencyError: bitsandbytes is not installed.
    """
    if bits == 16:
        return None
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError.of(f"{bits} bits need the package bitsandbytes", "bitsandbytes") from error
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
    """Exclude layers whose shape the 4-bit CPU kernels cannot handle from quantisation, with a warning.

    Args:
        quantization: result of :func:`quantization_config`; changed in place. That of another library stays as it is.
        decoder: configuration of the language model.
        device_map: placement of the model, as in transformers.

    Raises:
        ConfigError: no layer would be left to quantise.
    """
    is_theirs = hasattr(quantization, "llm_int8_skip_modules")
    if not is_theirs or not quantization.load_in_4bit or not _uses_cpu(device_map):
        return
    with torch.device("meta"):
        linear = {
            name: m
            for name, m in AutoModel.from_config(decoder, trust_remote_code=False).named_modules()
            if isinstance(m, nn.Linear)
        }
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


def is_cpu_only(device_map: Any) -> bool:
    """Return whether a model with this placement is on the CPU as a whole."""
    devices = device_map.values() if isinstance(device_map, dict) else [device_map]
    return {str(device) for device in devices} == {"cpu"}


def _uses_cpu(device_map: Any) -> bool:
    if isinstance(device_map, dict):
        return any(str(device) in ("cpu", "disk") for device in device_map.values())
    return str(device_map) == "cpu" or default_device() == "cpu"


def asked_quantization(fields: dict[str, Any], source: str, dtype: torch.dtype) -> Any:
    """Convert the ``quantization_config`` of a ``config.json``, if any, into that of :func:`quantization_config`.

    Raises:
        ConfigError: it requests anything but 4 or 8 bits with bitsandbytes.
        MissingDependencyError: bitsandbytes is not installed.
    """
    asked = fields.get("quantization_config")
    if asked is None:
        return None
    place = f"{source}: quantization_config"
    if not isinstance(asked, dict) or asked.get("quant_method", "bitsandbytes") != "bitsandbytes":
        raise ConfigError(f"{place} {quoted(asked)} is not a setting of bitsandbytes, and no other is supported here")
    bits = [n for n in (4, 8) if asked.get(f"load_in_{n}bit") is True]
    if len(bits) != 1:
        raise ConfigError(f"{place} must set one of load_in_4bit and load_in_8bit")
    double_quant, quant_type = asked.get("bnb_4bit_use_double_quant", True), asked.get("bnb_4bit_quant_type", "nf4")
    if quant_type not in ("nf4", "fp4"):
        raise ConfigError(f"{place}: bnb_4bit_quant_type must be 'nf4' or 'fp4', got {quoted(quant_type)}")
    return quantization_config(bits[0], dtype, bool(double_quant), quant_type)


def settle_quantization(config: PreTrainedConfig, path: str, asked: Any, **hub: Any) -> Any:
    """Decide how to load a checkpoint whose configuration has a ``quantization_config``; changes the configuration.

    transformers takes the field as a description of the stored weights. That is correct for a checkpoint that a
    quantised model saved. Some published checkpoints, however, keep the field from their training although their
    weights are stored unquantised; for these it is removed.

    Args:
        asked: quantisation that the caller requests, None to load the weights as they are stored.

    Returns:
        the ``quantization_config`` for ``from_pretrained``.

    Raises:
        ConfigError: the stored weights have another number of bits than requested.
    """
    if getattr(config, "quantization_config", None) is None:
        return asked
    if not any(mark in name for name in stored_names(path, **hub) for mark in _STORED_QUANTISED):
        del config.quantization_config  # pyright: ignore[reportAttributeAccessIssue] - read from config.json
        return asked
    stored = asked_quantization(
        {"quantization_config": config.quantization_config}, f"{path}/config.json", torch.float32
    )
    if asked is not None and asked.load_in_4bit != stored.load_in_4bit:
        bits = 4 if stored.load_in_4bit else 8
        raise ConfigError(f"{path}: its weights are stored in {bits} bits, they cannot be loaded in {12 - bits}")
    return None
