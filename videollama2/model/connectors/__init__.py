"""Connectors turn the encoder features of a clip into visual tokens of the decoder's width.

:data:`CONNECTORS` lists them by name; ``mlpNx_gelu`` exists for every depth N. A connector maps ``features_BTND``
(B clips, T frames, N patches, D encoder width) to ``tokens_BND``; its methods are those of
:class:`~videollama2.model.connectors.base.Connector`.

If the encoder's class token is kept (``cls_patch``), each frame has one more feature. Connectors that process features
individually turn it into a token; those that need a square grid refuse it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from videollama2.config_bounds import quoted
from videollama2.errors import ConfigError
from videollama2.model.connectors.base import Connector
from videollama2.model.connectors.mlp import IdentityConnector, LinearConnector, MlpConnector, mlp_depth
from videollama2.model.connectors.stc import (
    SpatialConvConnector,
    SpatialPoolConnector,
    StcConnector,
    StcConnectorV35,
    StpConnector,
)

if TYPE_CHECKING:
    from videollama2.config import VideoLlama2Config

CONNECTORS: dict[str, type[Connector]] = {
    "identity": IdentityConnector,
    "linear": LinearConnector,
    "stc_connector": StcConnector,
    "stc_connector_v35": StcConnectorV35,
    "stp_connector": StpConnector,
    "spatial_conv": SpatialConvConnector,
    "spatial_pool": SpatialPoolConnector,
}


def build_connector(name: str, encoder_hidden_size: int, hidden_size: int) -> Connector:
    """Build the connector called ``name``.

    Raises:
        ConfigError: the name is not in :data:`CONNECTORS` and not of the form ``mlpNx_gelu`` with N >= 1.
    """
    if depth := mlp_depth(name):
        return MlpConnector(encoder_hidden_size, hidden_size, depth)
    if name not in CONNECTORS:
        raise ConfigError(f"unknown mm_projector_type {quoted(name)}; known: {', '.join(CONNECTORS)}, mlpNx_gelu")
    return CONNECTORS[name](encoder_hidden_size, hidden_size)


def _connector_class(name: str) -> type[Connector]:
    cls = MlpConnector if mlp_depth(name) else CONNECTORS.get(name)
    if cls is None:
        raise ConfigError(f"unknown mm_projector_type {quoted(name)}; known: {', '.join(CONNECTORS)}, mlpNx_gelu")
    return cls


def check_class_token(name: str, class_token: bool) -> None:
    """Raise ConfigError if a class token is kept but the connector needs a square grid."""
    if class_token and not _connector_class(name).takes_class_token:
        raise ConfigError(
            f"mm_vision_select_feature 'cls_patch' keeps the class token, but {name} needs a square patch grid: "
            f"use 'patch', or one of linear, identity, mlpNx_gelu"
        )


def token_grid(name: str, num_frames: int, patches_per_side: int) -> tuple[int, int, int]:
    """Return the number of time slices, rows and columns of the tokens of connector ``name``, without a class token.

    Raises:
        ConfigError: unknown connector, or one that does not define :meth:`Connector.grid`.
    """
    cls = _connector_class(name)
    if cls.grid.__func__ is Connector.grid.__func__:
        raise ConfigError(f"connector {name} does not tell how its tokens lie in time and space")
    return cls.grid(num_frames, patches_per_side)


def frames_of_slice(name: str, time_slice: int, num_frames: int) -> range:
    """Return the frames that a time slice of the tokens is made of; later parts of a connector widen this a little."""
    return _connector_class(name).frames_of(time_slice, num_frames)


def tokens_of_clip(config: VideoLlama2Config, num_frames: int) -> int:
    """Return the number of visual tokens that a model of this configuration makes of a clip of ``num_frames`` frames.

    Raises:
        ConfigError: see :func:`num_visual_tokens`.
    """
    return num_visual_tokens(config.mm_projector_type, num_frames, config.patches_per_side, config.keeps_class_token)


def num_visual_tokens(name: str, num_frames: int, patches_per_side: int, class_token: bool = False) -> int:
    """Return the number of visual tokens that connector ``name`` makes of a clip of ``num_frames`` frames.

    Args:
        class_token: whether the encoder's class token is among the features.

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
