"""Writes LoRA folders, reads them back to continue training, and merges them into their base model.

The layout on disk is the published one: ``adapter_config.json`` and ``adapter_model.safetensors`` with the matrices
under the decoder's published names. All other trained weights, and the connector in any case, are stored in
``non_lora_trainables.bin``.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import save_file
from torch import nn

from videollama2.checkpoints.connector import base_with_connector
from videollama2.checkpoints.files import (
    ADAPTER_CONFIG,
    ADAPTER_FILE,
    ADAPTER_FILES,
    OTHERS_FILE,
    OTHERS_FILES,
    base_of,
    read_tensors,
)
from videollama2.config import is_videollama2
from videollama2.errors import CheckpointError, ConfigError
from videollama2.hub import find_file, first_file, read_config, read_json
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.model.weight_names import (
    AUDIO_CONNECTOR_PREFIX,
    AUDIO_TOWER_PREFIX,
    CONNECTOR_PREFIX,
    connector_weights,
    from_adapter_file,
    to_adapter_file,
    to_memory,
)
from videollama2.processing import VideoLlama2Processor

if TYPE_CHECKING:
    from peft import PeftConfig

_PARTS = {"A": "A", "B": "B", "magnitude_vector": "lengths"}
"""What a tensor of LoRA is, by the end of its name."""


def load_lora_folder(
    path: str, model_base: str | Path | None, placement: dict[str, Any], hub: dict[str, Any]
) -> tuple[VideoLlama2ForConditionalGeneration, VideoLlama2Processor]:
    """Merge LoRA weights into their base model, then load the other trained weights, such as the connector."""
    if "quantization_config" in placement:
        raise ConfigError(
            f"{path}: a LoRA folder is merged into its base while loading, which quantised weights do not allow; "
            f"load it without load_8bit / load_4bit, save it, and quantise the merged folder"
        )
    adapter_config = find_file(path, ADAPTER_CONFIG, **hub)
    if adapter_config is None:
        raise CheckpointError(f"{path}: holds no {ADAPTER_CONFIG}, so it is not a LoRA folder")
    adapter = read_json(adapter_config)
    base = base_of(path, model_base, **hub)
    if not base:
        raise CheckpointError(f"{path}: its {ADAPTER_CONFIG} names no base model; give model_base (--model-base)")
    fields = read_config(path, **hub) if find_file(path, "config.json", **hub) else {}
    others = first_file(path, OTHERS_FILES, **hub)
    trained = {} if others is None else read_tensors(others)
    has_tower = _holds_audio_tower(trained)
    model, processor = base_with_connector(path, base, fields, placement, hub, tower_follows=has_tower)
    weights = first_file(path, ADAPTER_FILES, **hub)
    if weights is None:
        raise CheckpointError(f"{path}: has an {ADAPTER_CONFIG} but no {' or '.join(ADAPTER_FILES)}")
    tensors = read_tensors(weights)
    merge_lora(model, tensors, adapter, weights)
    if others is not None:
        _load_named(model, trained, others)
    # A base that is a whole model has a trained connector already. A bare language model gets a new one, whose weights
    # must all come from this folder.
    if not is_videollama2(read_config(base, **hub)):
        _check_connector_is_there(model, [*tensors, *trained], path)
    if has_tower:
        _check_tower_is_there(model, trained, path)
    return model, processor


def _holds_audio_tower(names: Collection[str]) -> bool:
    """Whether the audio encoder's own weights have learned, and not just biases beside LoRA matrices."""
    return any(to_memory(name).startswith(AUDIO_TOWER_PREFIX) and not name.endswith("bias") for name in names)


def _check_tower_is_there(model: VideoLlama2ForConditionalGeneration, trained: Collection[str], path: str) -> None:
    """Check that a LoRA folder whose audio encoder has learned holds the whole encoder."""
    tower = model.model.audio_tower
    assert tower is not None  # only such models are checked
    found = {to_memory(name).removeprefix(AUDIO_TOWER_PREFIX) for name in trained}
    tied = tower.get_expanded_tied_weights_keys()
    missing = sorted(name for name in tower.state_dict() if tied.get(name, name) not in found)
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} weights of the audio encoder are missing ({OTHERS_FILE}): {', '.join(missing[:8])}"
        )


def _check_connector_is_there(model: VideoLlama2ForConditionalGeneration, names: list[str], path: str) -> None:
    """Check that the LoRA folder of a bare language model holds the whole connector.

    Any connector weight that it lacks would keep its random initialisation.
    """
    found = set(connector_weights(names).values())
    connector = model.model.mm_projector
    assert connector is not None  # a model built from a bare language model has one
    missing = sorted(set(connector.state_dict()) - found)
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} connector weights are missing ({OTHERS_FILE}): {', '.join(missing[:8])}"
        )


def merge_lora(model: nn.Module, tensors: dict[str, torch.Tensor], adapter: dict[str, Any], path: Path) -> None:
    """Add ``scale * B @ A`` to every adapted weight, in float32; for DoRA, then give its rows the lengths learned.

    Args:
        tensors: contents of the adapter's weight file ``path``.
        adapter: contents of the ``adapter_config.json`` beside it.

    Raises:
        CheckpointError: the adapter is neither LoRA nor DoRA (Liu et al. 2024, arXiv 2402.09353), adapts a weight that
            the model does not have, or lacks one of the tensors for a weight.
    """
    scale = _scale(adapter, path.with_name(ADAPTER_CONFIG))
    parameters = dict(model.named_parameters())
    pairs, rest = _pairs(tensors, path)
    expected = {"A", "B", "lengths"} if adapter.get("use_dora") else {"A", "B"}
    for name, pair in pairs.items():
        if name not in parameters or set(pair) != expected:
            raise CheckpointError(f"{path}: LoRA weight {name} has no place in the model, or is half of a pair")
        weight = parameters[name]
        # In float32: the difference that was learnt is small beside the weight, and a sum in 16 bits would lose most of
        # it.
        delta = pair["B"].float() @ pair["A"].float() * scale
        delta = delta.T if adapter.get("fan_in_fan_out") else delta
        if delta.shape != weight.shape:
            raise CheckpointError(f"{path}: LoRA weight {name} is {tuple(delta.shape)}, not {tuple(weight.shape)}")
        with torch.no_grad():
            merged = weight.float() + delta.to(weight.device)
            if "lengths" in pair:
                # DoRA learns direction and length apart, so each row (an output) is stretched to the length that was
                # learnt.
                merged *= (pair["lengths"].to(merged) / merged.norm(dim=1)).unsqueeze(1)
            weight.copy_(merged.to(weight.dtype))
    _load_named(model, rest, path)


def _scale(adapter: dict[str, Any], path: Path) -> float:
    """Return the factor by which ``B @ A`` is scaled; it is the same for all weights."""
    if adapter.get("peft_type", "LORA") != "LORA":
        raise CheckpointError(f"{path}: only LoRA adapters can be merged, this is {adapter['peft_type']}")
    for pattern in ("alpha_pattern", "rank_pattern"):
        if adapter.get(pattern):
            raise CheckpointError(
                f"{path}: sets {pattern}, and adapters with a scale per weight cannot be merged here; "
                f"merge it with peft (merge_and_unload) and load the merged folder"
            )
    rank, alpha = adapter.get("r"), adapter.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise CheckpointError(f"{path}: needs r >= 1 and lora_alpha, got {rank!r} and {alpha!r}")
    return alpha / (rank**0.5 if adapter.get("use_rslora") else rank)


def _pairs(
    tensors: dict[str, torch.Tensor], path: Path
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """Split tensors into those of LoRA and all others.

    Returns:
        for each adapted parameter its matrices ``A`` and ``B`` and, for DoRA, the ``lengths`` of its rows; and all
        other tensors.
    """
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    rest: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        stem, marker, tail = name.partition(".lora_")
        if not marker:
            rest[name] = tensor
            continue
        part = _PARTS.get(tail.replace(".default", "").removesuffix(".weight"))
        if part is None:
            raise CheckpointError(f"{path}: {name} is not a plain LoRA matrix")
        pairs.setdefault(to_memory(f"{stem}.weight"), {})[part] = tensor
    return pairs, rest


def _load_named(model: nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Copy tensors into the model's parameters; their names may be the published ones or those of a LoRA file."""
    own = model.state_dict()
    renamed = {to_memory(name): tensor for name, tensor in tensors.items()}
    unknown = sorted(name for name, tensor in renamed.items() if name not in own or own[name].shape != tensor.shape)
    if unknown:
        raise CheckpointError(f"{path}: {len(unknown)} weights have no place in the model: {', '.join(unknown[:8])}")
    model.load_state_dict(renamed, strict=False)


def has_lora(model: nn.Module) -> bool:
    return bool(getattr(model, "peft_config", None))


def save_adapter(
    model: VideoLlama2ForConditionalGeneration,
    folder: Path,
    base: str,
    state: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write the adapter and all other trained weights.

    Args:
        base: folder or hub name of the adapter's base model.
        state: weights by parameter name, if the caller has gathered them itself (ZeRO-3); defaults to the model's own.
    """
    state = model.state_dict() if state is None else state
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    matrices, others = {}, {}
    for name, tensor in state.items():
        if ".lora_" in name:
            matrices[to_adapter_file(name)] = tensor.detach().cpu().contiguous()
        # The connector is written even if it was frozen, since the base may be a bare language model that has none.
        elif name in trained or name.startswith((CONNECTOR_PREFIX, AUDIO_CONNECTOR_PREFIX)):
            others[to_adapter_file(name)] = tensor.detach().cpu()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(matrices, folder / ADAPTER_FILE, metadata={"format": "pt"})
    torch.save(others, folder / OTHERS_FILE)
    (config,) = cast("dict[str, PeftConfig]", model.peft_config).values()
    fields = {**config.to_dict(), "inference_mode": True, "base_model_name_or_path": base}
    text = json.dumps(fields, indent=2, sort_keys=True, default=_plain)
    (folder / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")


def load_adapter(model: VideoLlama2ForConditionalGeneration, folder: Path) -> None:
    """Read what :func:`save_adapter` wrote into a model with the same LoRA layers.

    Raises:
        CheckpointError: names or shapes do not fit, or matrices are missing.
    """
    tensors = {**read_tensors(folder / ADAPTER_FILE), **read_tensors(folder / OTHERS_FILE)}
    own = model.state_dict()
    found = {from_adapter_file(name, own): tensor for name, tensor in tensors.items()}
    wrong = sorted(name for name, tensor in found.items() if name not in own or own[name].shape != tensor.shape)
    # Of other weights, only those that learn are written, so only matrices can be missing.
    missing = sorted(name for name in own if ".lora_" in name and name not in found)
    if wrong or missing:
        raise CheckpointError(
            f"{folder}: the adapter does not fit this model and its --lora flags; missing: {missing[:4]}, "
            f"unexpected or of another shape: {wrong[:4]}"
        )
    model.load_state_dict(found, strict=False)


def _plain(value: Any) -> Any:
    """Convert the sets and enumerations of a peft configuration into values that JSON can represent."""
    return sorted(value) if isinstance(value, set) else getattr(value, "value", str(value))
