"""LoRA and QLoRA: low-rank matrices that are trained beside the decoder's linear layers.

They are saved, read and merged in :mod:`videollama2.checkpoints.lora`.
"""

from __future__ import annotations

import re

from torch import nn
from transformers import PreTrainedModel

from videollama2.errors import ConfigError, MissingDependencyError
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.training.flags import TrainingArguments


def add_lora(model: VideoLlama2ForConditionalGeneration, args: TrainingArguments) -> None:
    """Add LoRA matrices to linear layers of the decoder, by default to all, and freeze the decoder's own weights.

    Fused experts (Mixtral) are not linear layers and get no matrices: only the attention of such decoders is adapted.

    Raises:
        MissingDependencyError: peft is not installed.
        ConfigError: the decoder has no linear layer, or none that ``--lora_target`` matches.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise MissingDependencyError("--lora_enable needs the package peft: pip install peft") from error
    decoder = model.model.language_model
    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        bias=args.lora_bias,
        # This matches the names in memory and the published names, but no layer of the vision encoder.
        target_modules=rf"model\.(language_model\.)?({_target(decoder, args.lora_target)})",
        use_rslora=args.lora_rslora,
        use_dora=args.lora_dora,
        task_type="CAUSAL_LM",
    )
    model.add_adapter(config)
    for module in decoder.modules():
        # On processors with AVX-512, bitsandbytes repacks 4-bit weights during evaluation, and repacked weights
        # propagate no gradient.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _target(decoder: PreTrainedModel, asked: str | None) -> str:
    """Return a regular expression for the whole names of the adapted layers in the decoder."""
    linear = {name for name, module in decoder.named_modules() if isinstance(module, nn.Linear)}
    if asked is None:
        if not linear:
            raise ConfigError(
                f"--lora_enable: the {getattr(decoder.config, 'model_type', '')} decoder has no linear layer"
            )
        return rf"layers\..*\.({'|'.join(sorted({name.rpartition('.')[2] for name in linear}))})"
    try:
        matched = {name for name, _ in decoder.named_modules() if re.fullmatch(asked, name)}
    except re.error as error:
        raise ConfigError(f"--lora_target {asked!r} is no regular expression: {error}") from error
    if not matched or matched - linear:
        example = min(matched - linear, default=None)
        found = f"{example}, which is no linear layer" if example else "no layer"
        raise ConfigError(
            f"--lora_target {asked!r} matches {found}; a linear layer is {min(linear, default='nowhere')}"
        )
    return asked


def fused_experts(model: VideoLlama2ForConditionalGeneration) -> int:
    """Return the number of weights in experts fused into one tensor, which is no linear layer and not quantised."""
    named = model.model.language_model.named_parameters()
    return sum(parameter.numel() for name, parameter in named if ".experts." in name and parameter.ndim == 3)
