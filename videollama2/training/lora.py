"""LoRA and QLoRA: low-rank matrices beside the decoder's linear layers, what is written of them and read back.

The layout on disk is the published one: ``adapter_config.json`` and ``adapter_model.safetensors`` with the matrices
under the decoder's published names, everything else that was trained, and the connector in any case, in
``non_lora_trainables.bin``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from videollama2.errors import CheckpointError, ConfigError, MissingDependencyError
from videollama2.loading.files import ADAPTER_CONFIG, read_tensors
from videollama2.model.checkpoints import PUBLISHED_TOWER_PREFIX
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.training.flags import TrainingArguments

ADAPTER_FILE = "adapter_model.safetensors"
OTHERS_FILE = "non_lora_trainables.bin"

_PREFIX = "base_model.model."
_DECODER = "model.language_model."
_TOWER = "model.vision_tower."
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


def has_lora(model: nn.Module) -> bool:
    return bool(getattr(model, "peft_config", None))


def save_adapter(
    model: VideoLlama2ForConditionalGeneration,
    folder: Path,
    base: str,
    state: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write the adapter and everything else that was trained.

    Args:
        base: what the adapter belongs to.
        state: weights by name in memory where they are gathered elsewhere (ZeRO-3); default the model's own.
    """
    state = model.state_dict() if state is None else state
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    matrices, others = {}, {}
    for name, tensor in state.items():
        if ".lora_" in name:
            matrices[_to_disk(name)] = tensor.detach().cpu().contiguous()
        elif name in trained or name.startswith("model.mm_projector."):
            others[_to_disk(name)] = tensor.detach().cpu()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(matrices, folder / ADAPTER_FILE, metadata={"format": "pt"})
    torch.save(others, folder / OTHERS_FILE)
    (config,) = model.peft_config.values()
    fields = {**config.to_dict(), "inference_mode": True, "base_model_name_or_path": base}
    text = json.dumps(fields, indent=2, sort_keys=True, default=_plain)
    (folder / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")


def load_adapter(model: VideoLlama2ForConditionalGeneration, folder: Path) -> None:
    """Read what :func:`save_adapter` wrote into a model with the same LoRA layers.

    Raises:
        CheckpointError: names or shapes that do not fit, or matrices that are missing.
    """
    tensors = {**read_tensors(folder / ADAPTER_FILE), **read_tensors(folder / OTHERS_FILE)}
    own = model.state_dict()
    found = {_to_memory(name, own): tensor for name, tensor in tensors.items()}
    wrong = sorted(name for name, tensor in found.items() if name not in own or own[name].shape != tensor.shape)
    missing = sorted(name for name in own if ".lora_" in name and name not in found)
    if wrong or missing:
        raise CheckpointError(
            f"{folder}: the adapter does not fit this model and its --lora flags; missing: {missing[:4]}, "
            f"unexpected or of another shape: {wrong[:4]}"
        )
    model.load_state_dict(found, strict=False)


def _to_disk(name: str) -> str:
    name = name.replace(".default.", ".").replace(".base_layer.", ".")
    if name.startswith(_DECODER):
        name = "model." + name.removeprefix(_DECODER)
    elif name.startswith(_TOWER):
        name = PUBLISHED_TOWER_PREFIX + name.removeprefix(_TOWER)
    return _PREFIX + name


def _to_memory(name: str, own: dict[str, torch.Tensor]) -> str:
    name = name.removeprefix(_PREFIX)
    if name.startswith(PUBLISHED_TOWER_PREFIX):
        name = _TOWER + name.removeprefix(PUBLISHED_TOWER_PREFIX)
    elif not name.startswith(("model.mm_projector.", "lm_head.")):
        name = _DECODER + name.removeprefix("model.")
    name = re.sub(r"\.(lora_[AB])\.", r".\1.default.", name)
    inside = re.sub(r"\.(weight|bias)$", r".base_layer.\1", name)
    return inside if inside in own else name


def _plain(value: Any) -> Any:
    """peft keeps sets and enumerations in its configuration."""
    return sorted(value) if isinstance(value, set) else getattr(value, "value", str(value))
