"""Loads connectors stored apart from their model: weight files, and first-stage folders without the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from videollama2.audio_config import AudioConfig
from videollama2.checkpoints.audio_tower import add_hearing, load_audio_weights, load_beats, read_audio_weights
from videollama2.checkpoints.files import (
    AUDIO_CONNECTOR_FILES,
    AUDIO_TOWER_FILE,
    CONNECTOR_FILES,
    PART_FILES,
    base_of,
    read_tensors,
)
from videollama2.checkpoints.full import load_checkpoint
from videollama2.checkpoints.parts import build_from_parts
from videollama2.config import is_videollama2
from videollama2.errors import CheckpointError
from videollama2.hub import OPTIONS_OF_ANY_REPOSITORY, find_file, first_file, read_config
from videollama2.model.encoders.beats import BeatsModel
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.model.weight_names import AUDIO_CONNECTOR_PREFIX, CONNECTOR_PREFIX, connector_weights
from videollama2.part_configs import as_audio_config
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
    _load_part(model.model.mm_projector, CONNECTOR_PREFIX, path)


def load_audio_connector(model: VideoLlama2ForConditionalGeneration, path: Path) -> None:
    """Load the weights of the audio projector from a file, strictly.

    Raises:
        CheckpointError: see :func:`load_connector`.
    """
    _load_part(model.model.mm_projector_a, AUDIO_CONNECTOR_PREFIX, path)


def _load_part(module: nn.Module | None, prefix: str, path: Path) -> None:
    name = prefix.removeprefix("model.").removesuffix(".")
    if module is None:
        raise CheckpointError(f"{path}: this model has no {name}")
    tensors = read_tensors(path)
    inner = {short: tensors[long] for long, short in connector_weights(tensors, prefix).items()}
    if not inner:
        raise CheckpointError(f"{path}: holds no connector weight (named ...{name}....)")
    _load_strictly(module, inner, path)


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
    """Open the folder of a stage that trains connectors: it holds their weights and a flat config.

    The config names the base model, and for a bare language model its encoders. A folder of an audio stage also
    holds the audio encoder if that has learned; else the config names it.
    """
    fields = read_config(path, **hub)
    base = base_of(path, model_base, **hub)
    if not base or Path(base).resolve() == Path(path).resolve():
        raise CheckpointError(f"{path} holds a connector only: name its language model with model_base (--model-base)")
    weights, audio_weights = (first_file(path, names, **hub) for names in (CONNECTOR_FILES, AUDIO_CONNECTOR_FILES))
    if weights is None and audio_weights is None:
        raise CheckpointError(f"{path}: holds no connector ({' or '.join(PART_FILES)})")
    model, processor = base_with_connector(path, base, fields, placement, hub)
    if weights is not None:
        load_connector(model, weights)
    if audio_weights is not None:
        load_audio_connector(model, audio_weights)
    return model, processor


def base_with_connector(
    path: str,
    base: str,
    fields: dict[str, Any],
    placement: dict[str, Any],
    hub: dict[str, Any],
    tower_follows: bool = False,
) -> tuple[VideoLlama2ForConditionalGeneration, VideoLlama2Processor]:
    """Open the base of a folder with trained parts, with the modules for these parts.

    Args:
        fields: the folder's flat config.
        tower_follows: whether the caller loads the weights of the audio encoder.
    """
    config = as_audio_config(fields.get("audio_config"))
    trained = None if config is None else find_file(path, AUDIO_TOWER_FILE, **hub)

    def ears() -> tuple[BeatsModel, str | None, str] | None:
        if config is None:
            return None
        tower = BeatsModel(config) if tower_follows else _ears_of(path, fields, trained, config)
        return tower, fields.get("mm_audio_tower"), fields["mm_projector_a_type"]

    model, processor = _base(path, base, fields, placement, hub, ears)
    if model.model.audio_tower is None:
        if (given := ears()) is not None:
            add_hearing(model, *given)
    elif trained is not None:
        load_audio_weights(model.model.audio_tower, read_audio_weights(trained), str(trained))
    return model, processor


def _ears_of(path: str, fields: dict[str, Any], trained: Path | None, config: AudioConfig) -> BeatsModel:
    """Return the audio encoder of a folder with trained parts: the one in it, else the one that its config names."""
    named = fields.get("mm_audio_tower") or ""
    tower = trained or next((file for file in (Path(path) / named, Path(named)) if named and file.is_file()), None)
    if tower is None:
        raise CheckpointError(f"{path}: its audio encoder is neither {AUDIO_TOWER_FILE} in it nor {named!r}")
    return load_beats(tower, config)


def _base(
    path: str,
    base: str,
    fields: dict[str, Any],
    placement: dict[str, Any],
    hub: dict[str, Any],
    ears: Callable[[], tuple[BeatsModel, str | None, str] | None],
) -> tuple[VideoLlama2ForConditionalGeneration, VideoLlama2Processor]:
    """Open the base: a whole model, or a bare language model with the encoders that the config names.

    Args:
        ears: function that returns the audio encoder of the folder, needed where there is no vision encoder.
    """
    hub = {key: hub[key] for key in OPTIONS_OF_ANY_REPOSITORY if key in hub}  # the revision belongs to ``path``
    if is_videollama2(read_config(base, **hub)):
        return load_checkpoint(base, **placement, **hub)
    tower = fields.get("mm_vision_tower")
    if not tower:
        if (given := ears()) is None:
            raise CheckpointError(f"{path}: its config.json names no mm_vision_tower, and it has no audio encoder")
        return build_from_parts(base, None, ears=given, **placement, **hub)
    settings = {key: fields[key] for key in _CONNECTOR_FIELDS if key in fields}
    settings.setdefault("mm_projector_type", "linear")
    return build_from_parts(base, find_tower(tower, path) or tower, **settings, **placement, **hub)
