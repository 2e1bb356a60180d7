"""Connectors stored apart from their model: weight files, and first-stage folders that hold only a connector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from videollama2.checkpoints.files import CONNECTOR_FILES, base_of, read_tensors
from videollama2.checkpoints.full import load_checkpoint
from videollama2.checkpoints.parts import build_from_parts
from videollama2.config import is_videollama2
from videollama2.errors import CheckpointError
from videollama2.hub import OPTIONS_OF_ANY_REPOSITORY, first_file, read_config
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.model.weight_names import connector_weights
from videollama2.processing import VideoLlama2Processor
from videollama2.towers import find_tower

_CONNECTOR_FIELDS = (
    "mm_projector_type",
    "mm_vision_select_layer",
    "mm_vision_select_feature",
    "num_frames",
    "image_aspect_ratio",
    "mm_inference_aspect_ratio",
)


def load_connector(model: VideoLlama2ForConditionalGeneration, path: Path) -> None:
    """Load connector weights from a file, strictly.

    Raises:
        CheckpointError: the file holds no connector weights, or they do not match this connector exactly.
    """
    tensors = read_tensors(path)
    inner = {short: tensors[name] for name, short in connector_weights(tensors).items()}
    if not inner:
        raise CheckpointError(f"{path}: holds no connector weight (named ...mm_projector....)")
    _load_strictly(model.model.mm_projector, inner, path)


def _load_strictly(module: nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    own = module.state_dict()
    wrong = [
        f"{k} {tuple(v.shape)} instead of {tuple(own[k].shape)}"
        for k, v in tensors.items()
        if k in own and own[k].shape != v.shape
    ]
    missing, surplus = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    if missing or surplus or wrong:
        raise CheckpointError(
            f"{path}: the weights do not fit {type(module).__name__}; missing: {missing[:8]}, "
            f"unexpected: {surplus[:8]}, of another shape: {wrong[:8]}"
        )
    module.load_state_dict(tensors)


def load_connector_folder(
    path: str, model_base: str | Path | None, placement: dict[str, Any], hub: dict[str, Any]
) -> tuple[VideoLlama2ForConditionalGeneration, VideoLlama2Processor]:
    """Open a first-stage folder: it holds connector weights and a flat config, and names decoder and encoder."""
    fields = read_config(path, **hub)
    base = base_of(path, model_base, **hub)
    if not base or Path(base).resolve() == Path(path).resolve():
        raise CheckpointError(f"{path} holds a connector only: name its language model with model_base (--model-base)")
    weights = first_file(path, CONNECTOR_FILES, **hub)
    if weights is None:
        raise CheckpointError(f"{path}: holds no connector ({' or '.join(CONNECTOR_FILES)})")
    model, processor = base_with_connector(path, base, fields, placement, hub)
    load_connector(model, weights)
    return model, processor


def base_with_connector(
    path: str, base: str, fields: dict[str, Any], placement: dict[str, Any], hub: dict[str, Any]
) -> tuple[VideoLlama2ForConditionalGeneration, VideoLlama2Processor]:
    hub = {key: hub[key] for key in OPTIONS_OF_ANY_REPOSITORY if key in hub}  # the revision belongs to ``path``
    if is_videollama2(read_config(base, **hub)):
        return load_checkpoint(base, **placement, **hub)
    tower = fields.get("mm_vision_tower")
    if not tower:
        raise CheckpointError(f"{path}: its config.json names no mm_vision_tower")
    settings = {key: fields[key] for key in _CONNECTOR_FIELDS if key in fields}
    settings.setdefault("mm_projector_type", "linear")
    return build_from_parts(base, find_tower(tower, path) or tower, **settings, **placement, **hub)
