"""Vision encoder: pixels -> features of the selected layer, running no layer above it.

The modules are transformers' CLIP and SigLIP vision models, chosen by ``vision_config.model_type``. Their layers are
stepped here instead of asking for all hidden states: nothing above the selected layer is computed or kept.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoModel

from videollama2.config import VideoLlama2Config
from videollama2.errors import ConfigError


def build_vision_tower(config: VideoLlama2Config) -> nn.Module:
    """The encoder described by ``config.vision_config``, with fresh weights."""
    return AutoModel.from_config(config.vision_config)


def num_layers_to_run(select_layer: int, num_hidden_layers: int) -> int:
    """Encoder layers below hidden state ``select_layer`` (0 is the embedding; negative counts from the last)."""
    return select_layer if select_layer >= 0 else num_hidden_layers + 1 + select_layer


def encode_frames(
    tower: nn.Module, pixels_BCHW: torch.Tensor, select_layer: int, select_feature: str = "patch"
) -> torch.Tensor:
    """Features of the selected layer.

    Args:
        tower: CLIP or SigLIP vision model of transformers.
        pixels_BCHW: normalised frames, any floating type; they are cast to the encoder's.
        select_layer: index into the hidden states, as ``mm_vision_select_layer``.
        select_feature: ``patch`` drops CLIP's class token (SigLIP has none), ``cls_patch`` keeps it.

    Returns:
        features_BND; N patches of one frame.

    Raises:
        ConfigError: frames of another size than the encoder's.
    """
    expected = tower.config.image_size
    if tuple(pixels_BCHW.shape[-2:]) != (expected, expected):
        raise ConfigError(
            f"frames are {pixels_BCHW.shape[-2]}x{pixels_BCHW.shape[-1]} pixels, "
            f"the vision encoder takes {expected}x{expected}"
        )
    embeddings = tower.embeddings
    hidden_BND = embeddings(pixels_BCHW.to(embeddings.patch_embedding.weight.dtype))
    has_class_token = hasattr(tower, "pre_layrnorm")
    if has_class_token:
        hidden_BND = tower.pre_layrnorm(hidden_BND)
    for layer in tower.encoder.layers[: num_layers_to_run(select_layer, len(tower.encoder.layers))]:
        hidden_BND = layer(hidden_BND, None)
    return hidden_BND[:, 1:] if has_class_token and select_feature == "patch" else hidden_BND
