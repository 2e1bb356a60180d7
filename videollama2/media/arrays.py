"""Converts arrays and tensors that a caller holds in memory to RGB frames of 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np

from videollama2.errors import MediaError

_CHANNELS = (1, 2, 3, 4)  # grey, grey + alpha, RGB, RGB + alpha


def is_array(source: object) -> bool:
    """Return whether ``source`` is a numpy array or a torch tensor; torch itself is not imported for the answer."""
    return isinstance(source, np.ndarray) or (hasattr(source, "detach") and hasattr(source, "numpy"))


def as_numpy(source: Any) -> np.ndarray:
    """Return the array, or the tensor's values in host memory."""
    return source if isinstance(source, np.ndarray) else source.detach().cpu().numpy()


def rgb_frames(source: Any, name: str) -> np.ndarray:
    """Return a clip as ``frames_THWC`` uint8 RGB, which shares the caller's memory where nothing changes.

    Takes (T,H,W,C), (T,C,H,W), (T,H,W) grey and one frame (H,W,C), with 1 to 4 channels; alpha is dropped, as
    Pillow's ``convert("RGB")`` does. The last axis counts as the channels where both readings are possible.

    Raises:
        MediaError: another shape, no frames, no pixels, or values other than uint8, uint16 and bool.
    """
    array = as_numpy(source)
    if array.ndim == 3 and array.shape[-1] in (3, 4):
        array = array[None]
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim == 4 and array.shape[-1] not in _CHANNELS and array.shape[1] in _CHANNELS:
        array = np.moveaxis(array, 1, -1)
    if array.ndim != 4 or array.shape[-1] not in _CHANNELS:
        raise MediaError(f"{name}: shape {tuple(array.shape)} is not frames x height x width x channels")
    if array.shape[0] == 0:
        raise MediaError(f"{name}: the array has no frames")
    if 0 in array.shape:
        raise MediaError(f"{name}: shape {tuple(array.shape)} has frames without pixels")
    return _three_channels(_eight_bits(array, name))


def rgb_image(source: Any, name: str) -> np.ndarray:
    """Return one image, (H,W), (H,W,C) or (C,H,W), as (H,W,3) uint8 RGB.

    Raises:
        MediaError: as for :func:`rgb_frames`.
    """
    array = as_numpy(source)
    if array.ndim == 3 and array.shape[-1] not in _CHANNELS and array.shape[0] in _CHANNELS:
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in _CHANNELS:
        raise MediaError(f"{name}: shape {tuple(array.shape)} is not height x width x 1 to 4 channels")
    return rgb_frames(array[None], name)[0]


def _eight_bits(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return (array >> 8).astype(np.uint8)
    raise MediaError(f"{name}: values are {array.dtype}, but pixels must be uint8 (0 to 255), uint16 or bool")


def _three_channels(array: np.ndarray) -> np.ndarray:
    channels = array.shape[-1]
    if channels <= 2:
        return np.repeat(array[..., :1], 3, axis=-1)
    return array[..., :3]
