"""Connectors: encoder features of a clip -> visual tokens in the decoder's width.

One table by name; ``mlpNx_gelu`` stands for any depth N. A connector maps ``features_BTND`` (B clips, T frames,
N patches, D encoder width) to ``tokens_BND``. Four things every connector offers:

* ``forward(features_BTND)``;
* ``forward(features_FND, shown)``: all media of a batch at once, stills and clips of any lengths; F are the frames
  that differ, see :class:`~videollama2.model.connectors.shown.Shown`. Tokens of all media follow each other, (N, D).
  They are one tensor because ZeRO-3 takes a module of several outputs for one that runs several times. Every part of
  the connector runs exactly once;
* ``forward_still(features_BND, num_frames)``: equal to ``forward`` of that many equal frames, without computing
  any time slice twice;
* ``num_tokens(num_frames, patches_per_side)``: the closed form of its output length.

Where the encoder's class token is kept (``cls_patch``), it is one feature more per frame. Connectors that take features
one by one make a token of it; those that need a square grid refuse it.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from videollama2.config_bounds import quoted
from videollama2.errors import ConfigError
from videollama2.model.connectors.mlp import IdentityConnector, LinearConnector, MlpConnector, mlp_depth
from videollama2.model.connectors.stc import (
    SpatialConvConnector,
    SpatialPoolConnector,
    StcConnector,
    StcConnectorV35,
    StpConnector,
)

CONNECTORS: dict[str, Callable[..., nn.Module]] = {
    "identity": IdentityConnector,
    "linear": LinearConnector,
    "stc_connector": StcConnector,
    "stc_connector_v35": StcConnectorV35,
    "stp_connector": StpConnector,
    "spatial_conv": SpatialConvConnector,
    "spatial_pool": SpatialPoolConnector,
}


def build_connector(name: str, encoder_hidden_size: int, hidden_size: int) -> nn.Module:
    """Build the connector called ``name``.

    Raises:
        ConfigError: the name is not in :data:`CONNECTORS` and not of the form ``mlpNx_gelu`` with N >= 1.
    """
    if depth := mlp_depth(name):
        return MlpConnector(encoder_hidden_size, hidden_size, depth)
    if name not in CONNECTORS:
        raise ConfigError(f"unknown mm_projector_type {quoted(name)}; known: {', '.join(CONNECTORS)}, mlpNx_gelu")
    return CONNECTORS[name](encoder_hidden_size, hidden_size)


def _connector_class(name: str) -> type[nn.Module]:
    cls = MlpConnector if mlp_depth(name) else CONNECTORS.get(name)
    if cls is None:
        raise ConfigError(f"unknown mm_projector_type {quoted(name)}; known: {', '.join(CONNECTORS)}, mlpNx_gelu")
    return cls


def check_class_token(name: str, class_token: bool) -> None:
    """Raise ConfigError where a class token is kept for a connector that needs a square grid."""
    if class_token and not getattr(_connector_class(name), "takes_class_token", False):
        raise ConfigError(
            f"mm_vision_select_feature 'cls_patch' keeps the class token, but {name} needs a square patch grid: "
            f"use 'patch', or one of linear, identity, mlpNx_gelu"
        )


def num_visual_tokens(name: str, num_frames: int, patches_per_side: int, class_token: bool = False) -> int:
    """Visual tokens of one clip of ``num_frames`` frames through connector ``name``.

    Args:
        class_token: whether the connector is given the encoder's class token too.

    Raises:
        ConfigError: unknown connector, a class token it cannot take, or a clip so short or a grid so small that no
            token is left.
    """
    check_class_token(name, class_token)
    count = _connector_class(name).num_tokens(num_frames, patches_per_side) + int(class_token)
    if count < 1:
        raise ConfigError(
            f"{name} makes no visual token from {num_frames} frame(s) of {patches_per_side}x{patches_per_side} patches"
        )
    return count
