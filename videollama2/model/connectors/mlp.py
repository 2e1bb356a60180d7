"""Defines connectors that average over time and project each patch: ``linear``, ``mlpNx_gelu``, ``identity``.

They subclass the corresponding torch module, so that their weights keep the published names (``weight``, ``0.weight``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import nn

from videollama2.config_bounds import quoted
from videollama2.errors import ConfigError
from videollama2.model.connectors.base import Connector, Shown

_MLP_NAME = re.compile(r"mlp(\d+)x_gelu")

MAX_DEPTH = 100
"""Maximum number of layers in ``mlpNx_gelu``; published models have two."""


class _TimeMean(Connector):
    """Averages frames before the projection; a still image is its own average.

    Features are projected individually, so a class token among them becomes a visual token like any patch.
    """

    takes_class_token = True

    def forward(self, features_BTND: torch.Tensor, shown: Sequence[Shown] | None = None) -> torch.Tensor:
        if shown is None:
            return self.project(features_BTND.mean(dim=1))
        media = features_BTND.split([distinct for distinct, _ in shown])
        return self.project(torch.stack([features_TND.mean(dim=0) for features_TND in media])).flatten(0, 1)

    def forward_still(self, features_BND: torch.Tensor, num_frames: int) -> torch.Tensor:
        return self.project(features_BND)

    def project(self, features_BND: torch.Tensor) -> torch.Tensor:
        """Map each feature to the decoder's width."""
        raise NotImplementedError

    @classmethod
    def num_tokens(cls, num_frames: int, patches_per_side: int) -> int:
        return patches_per_side**2

    @classmethod
    def grid(cls, num_frames: int, patches_per_side: int) -> tuple[int, int, int]:
        """See :meth:`Connector.grid`; there is one time slice."""
        return 1, patches_per_side, patches_per_side

    @classmethod
    def frames_of(cls, time_slice: int, num_frames: int) -> range:
        """See :meth:`Connector.frames_of`; the slice is made of all frames."""
        return range(num_frames)


# The torch classes call the argument of forward "input"; here its name tells its shape.
class IdentityConnector(_TimeMean, nn.Identity):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Passes features through without a projection; encoder and decoder must have the same width."""

    def __init__(self, encoder_hidden_size: int, hidden_size: int) -> None:
        if encoder_hidden_size != hidden_size:
            raise ConfigError(
                f"mm_projector_type 'identity' needs equal widths, got encoder {encoder_hidden_size} "
                f"and decoder {hidden_size}"
            )
        super().__init__()

    def project(self, features_BND: torch.Tensor) -> torch.Tensor:
        return features_BND


class LinearConnector(_TimeMean, nn.Linear):  # pyright: ignore[reportIncompatibleMethodOverride]
    """One linear layer per patch."""

    def __init__(self, encoder_hidden_size: int, hidden_size: int) -> None:
        super().__init__(encoder_hidden_size, hidden_size)

    def project(self, features_BND: torch.Tensor) -> torch.Tensor:
        return nn.Linear.forward(self, features_BND)


class MlpConnector(_TimeMean, nn.Sequential):  # pyright: ignore[reportIncompatibleMethodOverride]
    """``depth`` linear layers with exact GELU between them."""

    def __init__(self, encoder_hidden_size: int, hidden_size: int, depth: int) -> None:
        super().__init__(*mlp_layers(encoder_hidden_size, hidden_size, depth))

    def project(self, features_BND: torch.Tensor) -> torch.Tensor:
        return nn.Sequential.forward(self, features_BND)


def mlp_layers(inputs: int, outputs: int, depth: int) -> list[nn.Module]:
    """Return the layers of ``mlpNx_gelu``; their indices in the list are their published names."""
    layers: list[nn.Module] = [nn.Linear(inputs, outputs)]
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(outputs, outputs)]
    return layers


def mlp_depth(name: str, field: str = "mm_projector_type") -> int | None:
    """Return the N of ``mlpNx_gelu``, or None for any other name.

    Raises:
        ConfigError: N is 0, or more than :data:`MAX_DEPTH`.
    """
    match = _MLP_NAME.fullmatch(name)
    if match is None:
        return None
    depth = int(match.group(1)[:9])
    if not 1 <= depth <= MAX_DEPTH:
        raise ConfigError(f"{field} {quoted(name)}: the number of layers must be at least 1 and at most {MAX_DEPTH}")
    return depth
