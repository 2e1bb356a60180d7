"""The number of distinct frames of a medium, and the number of frames that the connector sees."""

from __future__ import annotations

from typing import NamedTuple


class Shown(NamedTuple):
    """One medium of a batch whose features are concatenated frame by frame, in the order of the media.

    Attributes:
        distinct: number of frames whose features are given; 1 for a still image.
        total: number of frames that the connector sees. It equals ``distinct`` for a video; a still image counts as
            this many equal frames.
    """

    distinct: int
    total: int
