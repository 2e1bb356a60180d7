"""LoRA and QLoRA: low-rank matrices beside the decoder's linear layers, what is written of them and read back.

The layout on disk is the published one: ``adapter_config.json`` and ``adapter_model.safetensors`` with the matrices
under the decoder's published names, everything else that was trained, and the connector in any case, in
``non_lora_trainables.bin``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from videollama2.errors import ConfigError, MissingDependencyError
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.training.flags import TrainingArguments

_NOT_QUANTISED = ["model.vision_tower", "model.mm_projector", "vision_tower", "mm_projector", "lm_head"]


def add_lora(model: VideoLlama2ForConditionalGeneration, args: TrainingArguments) -> None:
    """Put LoRA matrices beside every linear layer of the decoder; of the decoder nothing else learns.

    Fused experts (Mixtral) are no linear layers and get none: their attention alone is adapted.

    Raises:
        MissingDependencyError: peft is not installed. ConfigError: the decoder has no linear layer.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise MissingDependencyError("--lora_enable needs the package peft: pip install peft") from error
    decoder = model.model.language_model
    leaves = sorted({name.rpartition(".")[2] for name, m in decoder.named_modules() if isinstance(m, nn.Linear)})
    if not leaves:
        raise ConfigError(f"--lora_enable: the {model.config.text_config.model_type} decoder has no linear layer")
    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        bias=args.lora_bias,
        # Fits the names in memory and the published ones, and no layer of the vision encoder.
        target_modules=rf"model\.(language_model\.)?layers\..*\.({'|'.join(leaves)})",
        task_type="CAUSAL_LM",
    )
    model.add_adapter(config)


def quantization_config(args: TrainingArguments) -> Any:
    """For transformers' loaders, None without ``--bits``.

    Raises:
        MissingDependencyError: bitsandbytes is not installed.
    """
    if args.bits == 16:
        return None
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"--bits {args.bits} needs the package bitsandbytes: pip install bitsandbytes"
        ) from error
    from transformers import BitsAndBytesConfig

    if args.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_NOT_QUANTISED)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32,
        bnb_4bit_use_double_quant=args.double_quant,
        bnb_4bit_quant_type=args.quant_type,
        llm_int8_skip_modules=_NOT_QUANTISED,
    )


def fused_experts(model: VideoLlama2ForConditionalGeneration) -> int:
    """Weights of the decoder's experts that are fused to one tensor: these are no linear layers, and not quantised."""
    named = model.model.language_model.named_parameters()
    return sum(parameter.numel() for name, parameter in named if ".experts." in name and parameter.ndim == 3)
