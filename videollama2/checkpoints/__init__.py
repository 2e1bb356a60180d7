"""Loads weights into a model and its processor: full checkpoints, connectors, LoRA folders, 8 and 4 bits.

The kind of a folder is determined by the files in it, never by its name. Loading is strict: weights that are missing,
unexpected or of the wrong shape raise an error that lists their names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import videollama2.auto  # noqa: F401 - registers the model types that AutoConfig meets below
from videollama2.checkpoints.connector import load_connector, load_connector_folder
from videollama2.checkpoints.cpu_integers import CpuIntegerConfig
from videollama2.checkpoints.files import checkpoint_kind, read_tensors, resolve_name, stored_dtype
from videollama2.checkpoints.full import load_checkpoint, load_encoders
from videollama2.checkpoints.lora import load_lora_folder, merge_lora
from videollama2.checkpoints.parts import build_from_parts
from videollama2.checkpoints.placement import (
    as_dtype,
    check_attention,
    check_device,
    default_device,
    default_dtype,
)
from videollama2.checkpoints.quantisation import asked_quantization, is_cpu_only, quantization_config
from videollama2.errors import ConfigError
from videollama2.hub import OPTIONS, read_config
from videollama2.hub_connection import hub_options
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.processing import VideoLlama2Processor

__all__ = [
    "build_from_parts",
    "checkpoint_kind",
    "default_device",
    "default_dtype",
    "load_checkpoint",
    "load_connector",
    "load_encoders",
    "load_pretrained_model",
    "merge_lora",
    "read_tensors",
    "resolve_name",
    "stored_dtype",
]


def load_pretrained_model(
    model_path: str | Path,
    model_base: str | Path | None = None,
    model_name: str | None = None,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: Any = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str = "sdpa",
    use_flash_attn: bool = False,
    **hub: Any,
) -> tuple[Any, VideoLlama2ForConditionalGeneration, VideoLlama2Processor, int]:
    """Open a checkpoint of any kind. The name and the arguments are those of the published function.

    Args:
        model_path: folder, hub name or ``videollama2-tiny``; a full model, a connector or a LoRA folder.
        model_base: base language model of a connector or LoRA folder; defaults to the one its config names.
        model_name: ignored, accepted for compatibility; the kind of checkpoint is determined by its files.
        load_8bit: 8-bit weights: with bitsandbytes, those of the language model; on a CPU, those of the vision
            encoder too, with integer arithmetic (:mod:`videollama2.model.int8`).
        load_4bit: 4-bit weights of the language model, with bitsandbytes; on a CPU, those of the decoder's layers, with
            a kernel of torch (:mod:`videollama2.model.int4`), and 8 bits elsewhere. A ``quantization_config`` in the
            ``config.json`` of a full model always chooses bitsandbytes.
        device_map: placement over several devices, as in transformers; by default everything is on ``device``.
        device: defaults to cuda if available, else mps, else cpu.
        dtype: defaults to bfloat16 on a GPU that supports it, else float16; float32 on a CPU. ``auto`` is the same,
            but bfloat16 on a CPU where that is faster (AMX, AMD's AVX512_BF16), which is measured; it rounds.
        attn_implementation: ``sdpa``, ``eager`` or ``flash_attention_2``.
        hub: ``revision``, ``token``, ``cache_dir``, ``local_files_only``.

    Returns:
        tokenizer, model in evaluation mode, processor, context length in tokens.

    Raises:
        CheckpointError: weights are missing or do not fit; the message names them.
        ConfigError: the arguments contradict each other.
    """
    unknown = set(hub) - set(OPTIONS)
    if unknown:
        raise ConfigError(f"load_pretrained_model has no option {', '.join(sorted(unknown))}")
    device = check_device(str(device or default_device()))
    dtype = as_dtype(dtype, device)
    attn_implementation = "flash_attention_2" if use_flash_attn else attn_implementation
    check_attention(attn_implementation)
    path = resolve_name(model_path)
    hub = hub_options(path, **hub)
    if load_8bit and load_4bit:
        raise ConfigError("load_8bit and load_4bit exclude each other")
    kind = checkpoint_kind(path, **hub)
    placement: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": attn_implementation,
        "device_map": device_map if device_map is not None else {"": device},
    }
    placement |= _quantization(8 if load_8bit else 4 if load_4bit else 16, path, kind, placement, hub)
    model, processor = _load(kind, path, model_base, placement, hub)
    context = getattr(model.config.text_config, "max_position_embeddings", None) or 2048
    return processor.tokenizer, model.eval(), processor, context


def _load(
    kind: str, path: str, base: str | Path | None, placement: dict[str, Any], hub: dict[str, Any]
) -> tuple[VideoLlama2ForConditionalGeneration, VideoLlama2Processor]:
    """Open a folder of one kind."""
    if kind == "full":
        return load_checkpoint(path, **placement, **hub)
    load = load_connector_folder if kind == "connector" else load_lora_folder
    return load(path, base, placement, hub)


def _quantization(bits: int, path: str, kind: str, placement: dict[str, Any], hub: dict[str, Any]) -> dict[str, Any]:
    """Return the loader option for the quantisation that the caller, or else the checkpoint itself, requests."""
    quantization: Any
    if bits < 16 and is_cpu_only(placement["device_map"]):
        quantization = CpuIntegerConfig(bits)
    else:
        quantization = quantization_config(bits, placement["dtype"])
    if quantization is None and kind == "full":
        quantization = asked_quantization(read_config(path, **hub), f"{path}/config.json", placement["dtype"])
    return {} if quantization is None else {"quantization_config": quantization}
