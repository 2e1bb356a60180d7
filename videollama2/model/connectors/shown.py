"""How many of a medium's frames there are to compute, and how many the connector is shown."""

from __future__ import annotations

from typing import NamedTuple


class Shown(NamedTuple):
    """A medium among the features of a batch, where its frames follow those of the medium before it.

    Attributes:
        distinct: frames whose features are given; 1 for a still image.
        total: frames that the connector sees: as many, or that many times the one.
    """

    distinct: int
    total: int
