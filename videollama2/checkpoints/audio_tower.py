"""Load an audio encoder from Microsoft's ``.pt`` file (shape and weights) or an ``audio_tower.bin`` (weights only)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from videollama2.audio_config import AudioConfig
from videollama2.checkpoints.files import UNREADABLE, why_unreadable
from videollama2.errors import CheckpointError, CheckpointNotFoundError, first_line
from videollama2.hub import check_is_no_pointer
from videollama2.model.encoders.beats import BeatsModel
from videollama2.model.weight_names import AUDIO_TOWER_PREFIX


def load_beats(path: str | Path, config: AudioConfig | None = None) -> BeatsModel:
    """Return the encoder stored in a file, in float32 and evaluation mode. Code in a pickle is not executed.

    The format is determined by the content: ``{'cfg': ..., 'model': ...}`` as Microsoft writes it, or a flat
    dictionary of weights as the second published stage writes it, with or without ``model.audio_tower.`` before
    their names.

    Args:
        config: encoder shape for a file that does not describe its own, and the rules for cutting clips; defaults to
            the published values.

    Raises:
        CheckpointNotFoundError: there is no such file.
        CheckpointError: the file holds no audio encoder, or weights that do not fit.
        ConfigError: the file describes an encoder that is not implemented here.
    """
    content = _read(Path(path))
    config = config or AudioConfig()
    if "cfg" in content and "model" in content:
        rules = {name: getattr(config, name) for name in ("sampling_rate", "clip_seconds", "num_windows")}
        rules["window_seconds"] = config.window_seconds
        config, content = AudioConfig(**{**content["cfg"], **rules}), content["model"]
    weights = {name.rpartition(AUDIO_TOWER_PREFIX)[2]: tensor for name, tensor in content.items()}
    model = BeatsModel(config)
    load_audio_weights(model, weights, str(path))
    return model.eval()


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
        raise CheckpointError(f"audio encoder {path}: cannot be read as weights ({why_unreadable(error)})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"audio encoder {path}: holds no weights but a {type(content).__name__}")
    return content
