"""Adds LoRA and QLoRA: low-rank matrices trained beside linear layers of the decoder and of the encoders.

They are saved, read and merged in :mod:`videollama2.checkpoints.lora`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, Protocol

from torch import nn

from videollama2.errors import ConfigError, MissingDependencyError
from videollama2.model.encoders import vision_encoder
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.training.flags.run import LORA_PARTS

_PREFIXES = {
    "language_model": r"model\.(language_model\.)?",
    "vision_tower": r"model\.vision_tower\.(vision_tower\.vision_model\.)?",
    "audio_tower": r"model\.audio_tower\.",
}
"""Part -> regular expression for what stands before the names of its layers, in memory and in published files."""


class LoraFlags(Protocol):
    """The flags that say which matrices there are; see :class:`videollama2.training.flags.run.TrainingArguments`."""

    @property
    def adapted_parts(self) -> frozenset[str]: ...
    @property
    def lora_r(self) -> int: ...
    @property
    def lora_alpha(self) -> int: ...
    @property
    def lora_dropout(self) -> float: ...
    @property
    def lora_bias(self) -> Literal["none", "all", "lora_only"]: ...
    @property
    def lora_target(self) -> str | None: ...
    @property
    def lora_rslora(self) -> bool: ...
    @property
    def lora_dora(self) -> bool: ...


def add_lora(model: VideoLlama2ForConditionalGeneration, args: LoraFlags) -> None:
    """Add LoRA matrices to linear layers of ``--lora_parts``, by default to all of the decoder; freeze all else.

    Layers of an encoder that do not run, such as those above the selected one, get no matrices. Neither do fused
    experts (Mixtral), which are not linear layers: only the attention of such decoders is adapted.

    Raises:
        MissingDependencyError: peft is not installed.
        ConfigError: the model lacks one of the parts, or a part has no linear layer, or none that ``--lora_target``
            matches.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise MissingDependencyError.of("--lora_enable needs the package peft", "peft") from error
    targets: list[str] = []
    idle: list[str] = []
    for part in (part for part in LORA_PARTS if part in args.adapted_parts):
        targets.append(f"{_PREFIXES[part]}({_target(model, part, args.lora_target)})")
        idle += (_PREFIXES[part] + re.escape(name) for name in sorted(_linear(model, part) - _running(model, part)))
    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        bias=args.lora_bias,
        target_modules="|".join(targets),
        exclude_modules="|".join(idle) or None,
        use_rslora=args.lora_rslora,
        use_dora=args.lora_dora,
        task_type="CAUSAL_LM",
    )
    model.add_adapter(config)
    for module in model.model.language_model.modules():
        # On processors with AVX-512, bitsandbytes repacks 4-bit weights during evaluation, and repacked weights
        # propagate no gradient.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def adaptable_layers(model: VideoLlama2ForConditionalGeneration, part: str) -> list[nn.Linear]:
    """Return the linear layers of one of ``LORA_PARTS`` that run, which LoRA adapts by default."""
    module = getattr(model.model, part)
    return [module.get_submodule(name) for name in sorted(_running(model, part))]


def _linear(model: VideoLlama2ForConditionalGeneration, part: str) -> set[str]:
    """Return the names of a part's linear layers, without the part's own name."""
    module = getattr(model.model, part)
    if module is None:
        raise ConfigError(f"--lora_parts {part} names a part that this model does not have")
    return {name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}


def _running(model: VideoLlama2ForConditionalGeneration, part: str) -> set[str]:
    """Return the names of the linear layers of a part that have an effect on its output."""
    linear = _linear(model, part)
    if part == "vision_tower":
        tower = getattr(model.model, part)
        modules = vision_encoder(tower.config.model_type).runs(tower, model.config.mm_vision_select_layer)
        running = {id(layer) for module in modules for layer in module.modules()}
        return {name for name in linear if id(tower.get_submodule(name)) in running}
    if part == "audio_tower":
        return linear - {"predictor"}  # the head that classifies sounds
    return linear


def _target(model: VideoLlama2ForConditionalGeneration, part: str, asked: str | None) -> str:
    """Return a regular expression for the names of a part's adapted layers, which may also match some that never run.

    Args:
        asked: the value of ``--lora_target``.
    """
    running = _running(model, part)
    if asked is None:
        if not running:
            kind = getattr(getattr(model.model, part).config, "model_type", "")
            raise ConfigError(f"--lora_enable: the {kind} {part.replace('_', ' ')} has no linear layer")
        return "|".join(sorted(set(_without_numbers(running))))
    linear = _linear(model, part)
    try:
        matched = {name for name, _ in getattr(model.model, part).named_modules() if re.fullmatch(asked, name)}
    except re.error as error:
        raise ConfigError(f"--lora_target {asked!r} is not a regular expression: {error}") from error
    if not matched & running or matched - linear:
        example = min(matched - linear, default=None)
        found = f"{example}, which is not a linear layer" if example else "no layer"
        known = f"a linear layer is, for example, {min(running)}" if running else "it has no linear layers"
        raise ConfigError(f"--lora_target {asked!r} matches {found} of the {part.replace('_', ' ')}; {known}")
    return asked


def _without_numbers(names: set[str]) -> Iterator[str]:
    """Return regular expressions for the names in which numbers of layers match any number."""
    return (re.sub(r"\\\.\d+", lambda _: r"\.\d+", re.escape(name)) for name in names)


def fused_experts(model: VideoLlama2ForConditionalGeneration) -> int:
    """Return the number of weights in experts fused into one tensor, which is not a linear layer and not quantised."""
    named = model.model.language_model.named_parameters()
    return sum(parameter.numel() for name, parameter in named if ".experts." in name and parameter.ndim == 3)
