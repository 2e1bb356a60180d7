"""Defines the base class of connectors, and :class:`Shown`, which describes one medium of a batch to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import nn


class Shown(NamedTuple):
    """One medium of a batch whose features are concatenated frame by frame, in the order of the media.

    Attributes:
        distinct: number of frames whose features are given; 1 for a still image.
        total: number of frames that the connector sees. It equals ``distinct`` for a video; a still image counts as
            this many equal frames.
    """

    distinct: int
    total: int


class Connector(nn.Module):
    """Turns encoder features of clips into visual tokens.

    Attributes:
        takes_class_token: whether features may include the encoder's class token, which then becomes a token like any
            patch. Connectors that need a square grid of patches do not take it.
    """

    takes_class_token: ClassVar[bool] = False

    def forward(self, features_BTND: torch.Tensor, shown: Sequence[Shown] | None = None) -> torch.Tensor:
        """Return ``tokens_BND`` of B clips of T frames, or, with ``shown``, ``tokens_ND`` of all media of a batch.

        Args:
            features_BTND: features of clips; with ``shown``, ``features_FND`` of the distinct frames of all media.
            shown: the media of a batch, stills and clips of any lengths. Their tokens are returned as one tensor
                because ZeRO-3 assumes that a module with several outputs runs several times. Every part of the
                connector runs exactly once.
        """
        raise NotImplementedError

    def forward_still(self, features_BND: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Return the same as ``forward`` for ``num_frames`` equal frames, without computing a time slice twice."""
        raise NotImplementedError

    @classmethod
    def num_tokens(cls, num_frames: int, patches_per_side: int) -> int:
        """Return the number of tokens of one clip, without those of a class token."""
        raise NotImplementedError

    @classmethod
    def grid(cls, num_frames: int, patches_per_side: int) -> tuple[int, int, int]:
        """Return the number of time slices, rows and columns of a clip's tokens, for drawing them over its frames."""
        raise NotImplementedError

    @classmethod
    def frames_of(cls, time_slice: int, num_frames: int) -> range:
        """Return the frames that a time slice is made of; it is empty for a slice of padding alone."""
        raise NotImplementedError
