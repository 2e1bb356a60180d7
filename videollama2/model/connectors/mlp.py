"""Connectors that average over time and project each patch: ``linear``, ``mlpNx_gelu``, ``identity``.

They subclass the torch module they are, so that their weights keep the published names (``weight``, ``0.weight``).
"""

from __future__ import annotations

import torch
from torch import nn

from videollama2.errors import ConfigError


class _TimeMean:
    """Averages frames before the projection; a still image is its own average.

    Features are taken one by one, so a class token among them becomes a visual token like any patch.
    """

    takes_class_token = True

    def forward(self, features_BTND: torch.Tensor) -> torch.Tensor:
        return super().forward(features_BTND.mean(dim=1))

    def forward_still(self, features_BND: torch.Tensor, num_frames: int) -> torch.Tensor:
        return super().forward(features_BND)

    @staticmethod
    def num_tokens(num_frames: int, patches_per_side: int) -> int:
        return patches_per_side**2


class IdentityConnector(_TimeMean, nn.Identity):
    """No projection: the encoder's width must be the decoder's."""

    def __init__(self, encoder_hidden_size: int, hidden_size: int) -> None:
        if encoder_hidden_size != hidden_size:
            raise ConfigError(
                f"mm_projector_type 'identity' needs equal widths, got encoder {encoder_hidden_size} "
                f"and decoder {hidden_size}"
            )
        super().__init__()


class LinearConnector(_TimeMean, nn.Linear):
    """One linear layer per patch."""

    def __init__(self, encoder_hidden_size: int, hidden_size: int) -> None:
        super().__init__(encoder_hidden_size, hidden_size)


class MlpConnector(_TimeMean, nn.Sequential):
    """``depth`` linear layers with exact GELU between them."""

    def __init__(self, encoder_hidden_size: int, hidden_size: int, depth: int) -> None:
        layers: list[nn.Module] = [nn.Linear(encoder_hidden_size, hidden_size)]
        for _ in range(depth - 1):
            layers += [nn.GELU(), nn.Linear(hidden_size, hidden_size)]
        super().__init__(*layers)
