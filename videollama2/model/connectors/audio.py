"""Audio projectors turn each encoder feature of a sound into one token of the decoder's width.

They are plain torch modules, so that their weights keep the published names (``weight``, ``0.weight``).
"""

from __future__ import annotations

from torch import nn

from videollama2.errors import ConfigError
from videollama2.model.connectors.mlp import mlp_depth, mlp_layers


def build_audio_projector(name: str, encoder_hidden_size: int, hidden_size: int) -> nn.Module:
    """Build ``linear``, ``identity`` or ``mlpNx_gelu``, which map the encoder's ``features_BLD`` to ``tokens_BLD``.

    Raises:
        ConfigError: another name, or ``identity`` between different widths. (The published code then builds nothing.)
    """
    if depth := mlp_depth(name, "mm_projector_a_type"):
        return nn.Sequential(*mlp_layers(encoder_hidden_size, hidden_size, depth))
    if name == "linear":
        return nn.Linear(encoder_hidden_size, hidden_size)
    if name != "identity":
        raise ConfigError(f"unknown mm_projector_a_type {name!r}; known: identity, linear, mlpNx_gelu")
    if encoder_hidden_size != hidden_size:
        raise ConfigError(
            f"mm_projector_a_type 'identity' needs equal widths, got encoder {encoder_hidden_size} "
            f"and decoder {hidden_size}"
        )
    return nn.Identity()
