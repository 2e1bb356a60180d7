"""Encoders turn pixels or sound into features. Each encoder is one file here and one entry in a table below.

The configuration looks encoders up in these tables, so no module of this folder imports the configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from videollama2.errors import ConfigError
from videollama2.model.encoders.clip import CLIP
from videollama2.model.encoders.siglip import SIGLIP
from videollama2.model.encoders.vision import VisionEncoder

VISION_ENCODERS: dict[str, VisionEncoder] = {"clip_vision_model": CLIP, "siglip_vision_model": SIGLIP}
"""``model_type`` of ``vision_config`` -> encoder."""

KNOWN_TOWERS = {name: tower for encoder in VISION_ENCODERS.values() for name, tower in encoder.known.items()}
"""Hub name of a published encoder -> its configuration and preprocessing."""


def vision_encoder(model_type: Any) -> VisionEncoder:
    """Return the encoder for a ``vision_config.model_type``.

    Raises:
        ConfigError: there is none of that name.
    """
    if model_type not in VISION_ENCODERS:
        raise ConfigError(
            f"vision encoder model_type {model_type!r} is not supported; known: {', '.join(VISION_ENCODERS)}"
        )
    return VISION_ENCODERS[model_type]


def known_vision_config(name: str | None) -> dict[str, Any] | None:
    """Return the ``vision_config`` of a published encoder, with its ``model_type``; None if the name is unknown."""
    for model_type, encoder in VISION_ENCODERS.items():
        if name is not None and name in encoder.known:
            return {"model_type": model_type, **encoder.known[name].vision_config}
    return None


def vision_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the vision fields of a ``config.json``, which may also describe a text encoder."""
    for model_type, encoder in VISION_ENCODERS.items():
        if config.get("model_type") == encoder.pair_type:
            return {**config.get("vision_config", {}), "model_type": model_type}
    return dict(config)


def encode_frames(
    tower: PreTrainedModel, pixels_BCHW: torch.Tensor, select_layer: int, select_feature: str = "patch"
) -> torch.Tensor:
    """Encode frames into features of the selected layer, without running the layers above it.

    Args:
        tower: a module of one of :data:`VISION_ENCODERS`.
        pixels_BCHW: normalised frames, any floating type; they are cast to the encoder's.
        select_layer: index into the hidden states, as ``mm_vision_select_layer``.
        select_feature: ``patch`` drops CLIP's class token (SigLIP has none), ``cls_patch`` keeps it.

    Returns:
        features_BND; N patches of one frame.

    Raises:
        ConfigError: the frames do not have the size that the encoder expects.
    """
    return vision_encoder(tower.config.model_type).encode(tower, pixels_BCHW, select_layer, select_feature)
