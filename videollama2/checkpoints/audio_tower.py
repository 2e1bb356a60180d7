"""Loads an audio encoder from Microsoft's ``.pt`` file (shape and weights) or an ``audio_tower.bin`` (weights only).

:func:`add_hearing` gives such an encoder, and a new projector, to a model that does not hear yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from videollama2.audio_config import AudioConfig
from videollama2.checkpoints.files import UNREADABLE, why_no_weights
from videollama2.errors import CheckpointError, CheckpointNotFoundError, first_line
from videollama2.hub import check_is_no_pointer, read_json
from videollama2.model.connectors.audio import build_audio_projector
from videollama2.model.encoders.beats import BeatsModel
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.model.weight_names import AUDIO_TOWER_PREFIX
from videollama2.part_configs import as_audio_config

_RULES = ("sampling_rate", "clip_seconds", "num_windows", "window_seconds", "layer_wise_gradient_decay_ratio")


def load_beats(path: str | Path, config: AudioConfig | None = None) -> BeatsModel:
    """Return the encoder stored in a file, in float32 and evaluation mode. Code in a pickle is not executed.

    The format is determined by the content: ``{'cfg': ..., 'model': ...}`` as Microsoft writes it, or a flat
    dictionary of weights as the second published stage writes it, with or without ``model.audio_tower.`` before
    their names.

    Args:
        config: rules for cutting clips, and the encoder's shape for a file that does not describe its own. By default,
            these are those of the file's ``cfg``; for weights alone those of the ``config.json`` beside the file,
            which the second stage writes; else the published ones.

    Raises:
        CheckpointNotFoundError: there is no such file.
        CheckpointError: the file holds no audio encoder, or weights that do not fit.
        ConfigError: the file describes an encoder that is not implemented here.
    """
    content = _read(Path(path))
    if "cfg" in content and "model" in content:
        rules = {} if config is None else {name: getattr(config, name) for name in _RULES}
        config, content = as_audio_config({**content["cfg"], **rules}), content["model"]
    model = BeatsModel(config or _config_beside(Path(path)))
    load_audio_weights(model, _short_names(content), str(path))
    return model.eval()


def read_audio_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the weights in an ``audio_tower.bin``, with the encoder's own names.

    Raises:
        CheckpointError: the file cannot be read.
    """
    return _short_names(_read(path))


def _short_names(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name.rpartition(AUDIO_TOWER_PREFIX)[2]: tensor for name, tensor in content.items()}


def _config_beside(path: Path) -> AudioConfig:
    file = path.with_name("config.json")
    fields = read_json(file).get("audio_config") if file.is_file() else None
    return as_audio_config(fields) or AudioConfig()


def add_hearing(
    model: VideoLlama2ForConditionalGeneration, tower: BeatsModel, name: str | None, projector_type: str
) -> None:
    """Give an audio encoder and a new projector to a model without them, in its dtype and on its device.

    Beside a decoder without weights, on the ``meta`` device, the encoder keeps its own.
    The projector keeps torch's default initialisation, with which the published first stage starts.

    Args:
        name: recorded as ``mm_audio_tower``.
        projector_type: see :func:`videollama2.model.connectors.audio.build_audio_projector`.

    Raises:
        ConfigError: there is no such projector, or it does not fit the widths.
    """
    config, inner = model.config, model.model
    projector = build_audio_projector(projector_type, tower.config.encoder_embed_dim, config.hidden_size)
    weight = model.get_input_embeddings().weight
    tower.config.dtype = weight.dtype
    config.audio_config, config.mm_audio_tower, config.mm_projector_a_type = tower.config, name, projector_type
    # transformers wraps this method in a way that type checkers do not see through.
    inner.audio_tower = tower.to(tower.device if weight.is_meta else weight.device, weight.dtype)  # pyright: ignore[reportArgumentType]
    inner.mm_projector_a = projector.to(weight.device, weight.dtype)


def load_audio_weights(model: BeatsModel, weights: Mapping[str, torch.Tensor], source: str) -> None:
    """Load weights that carry the encoder's own parameter names.

    All layers share one table of position biases; ``weights`` may hold a copy per layer or only the first.

    Raises:
        CheckpointError: names or shapes of weights do not fit.
    """
    tied = model.get_expanded_tied_weights_keys()
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{source}: the weights do not fit this audio encoder ({first_line(error)})") from error
    missing = [name for name in missing if tied.get(name) not in weights]
    if missing or unexpected:
        raise CheckpointError(
            f"{source}: the weights do not fit this audio encoder; missing: {', '.join(missing[:8]) or 'none'}; "
            f"unexpected: {', '.join(unexpected[:8]) or 'none'}"
        )


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointNotFoundError(f"audio encoder {path}: there is no such file")
    check_is_no_pointer(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise CheckpointError(f"audio encoder {path}: cannot be read as weights ({why_no_weights(error)})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"audio encoder {path}: holds no weights but a {type(content).__name__}")
    return content
