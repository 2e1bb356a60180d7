"""Controls ask a question again about a clip that lost something, to see what a model's answers rest on.

Without the sound, questions about it must fall to chance; without the pictures, those about what is seen; with frames
or parts of the sound in another order, those about the order of events. All other answers must stay as they are.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from videollama2.media.kinds import AUDIO, VIDEO

if TYPE_CHECKING:
    import torch

SHUFFLED_FRAMES, MUTED, BLANK_FRAMES, SHUFFLED_WINDOWS = "shuffled", "muted", "blank", "windows"

CONTROL_OPTIONS = {
    "shuffle_frames": SHUFFLED_FRAMES,
    "muted": MUTED,
    "blank_frames": BLANK_FRAMES,
    "shuffle_windows": SHUFFLED_WINDOWS,
}
"""The option of a benchmark that asks for each control."""

WINDOWS = 8
"""Number of equal parts into which a sound is cut before they are shuffled."""


def altered(values: Any, control: str, seed: str) -> Any:
    """Return a medium as a control shows it.

    Args:
        values: pixels (T, C, H, W) of a video, or a dict of them and its ``fbank_1TF``; an image or a sound (which no
            control changes) may not be given.
        control: ``shuffled``: frames in another order; ``muted``: silence; ``blank``: every pixel is the mean of the
            preprocessing; ``windows``: the :data:`WINDOWS` parts of the sound in another order.
        seed: decides on the order.
    """
    changed, change = _CHANGES[control]
    if not isinstance(values, dict):
        return change(values, seed) if changed == VIDEO else values
    return {**values, changed: change(values[changed], seed)}


def shuffled_order(frames: int, seed: str) -> list[int]:
    """Return a permutation of ``0 .. frames - 1`` drawn from ``seed``; from two frames on it is not the identity."""
    rng = random.Random(seed)
    order = list(range(frames))
    while frames > 1 and order == sorted(order):
        rng.shuffle(order)
    return order


def _shuffle_frames(pixels_TCHW: torch.Tensor, seed: str) -> torch.Tensor:
    return pixels_TCHW[shuffled_order(len(pixels_TCHW), seed)]


def _mute(fbank_1TF: torch.Tensor, seed: str) -> torch.Tensor:
    import torch

    from videollama2.media.filter_bank import LOG_FLOOR

    return torch.full_like(fbank_1TF, math.log(LOG_FLOOR))


def _blank(pixels_TCHW: torch.Tensor, seed: str) -> torch.Tensor:
    return pixels_TCHW * 0


def _shuffle_windows(fbank_1TF: torch.Tensor, seed: str) -> torch.Tensor:
    import torch

    parts = fbank_1TF.tensor_split(WINDOWS, dim=1)
    return torch.cat([parts[index] for index in shuffled_order(WINDOWS, seed)], dim=1)


_CHANGES: dict[str, tuple[str, Callable[[Any, str], Any]]] = {
    SHUFFLED_FRAMES: (VIDEO, _shuffle_frames),
    MUTED: (AUDIO, _mute),
    BLANK_FRAMES: (VIDEO, _blank),
    SHUFFLED_WINDOWS: (AUDIO, _shuffle_windows),
}
CONTROLS = tuple(_CHANGES)
"""The names of all controls."""
