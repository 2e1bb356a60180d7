"""Turns RGB frames into the pixels that a vision encoder takes: pad, resize, crop, rescale, normalise.

The arithmetic is that of transformers' Pillow image processors for CLIP and SigLIP, bit for bit, without their
per-image detours: every frame is resized as uint8, and a table of 256 values per channel does the float
arithmetic at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from videollama2.errors import ConfigError, MediaError, MediaLimitError
from videollama2.media.limits import OWN_FILES, MediaLimits

if TYPE_CHECKING:
    import torch

AspectRatio = Literal["pad", "square"] | None
"""None and "square" leave the frame as it is; "pad" makes it square with bars in the mean colour."""

_MAX_SIDE = 8192


@dataclass(frozen=True)
class FrameResize:
    """The first steps of the preprocessing: bars that make a frame square, and resizing.

    They can be done where a frame is decoded, so that only the smaller frame travels and is kept. Doing them again
    changes nothing: Pillow copies a picture that has the size asked for, so the pixels in the end are those of the
    whole frame, bit for bit.

    Attributes:
        edge: length of the shorter edge, or (height, width); None leaves the size as it is.
        resample: Pillow's number of the filter.
        background: RGB colour of the bars; None adds none.
    """

    edge: int | tuple[int, int] | None
    resample: int
    background: tuple[int, int, int] | None = None

    def target(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) after resizing; the longer edge is rounded down, as in transformers."""
        if self.edge is None:
            return height, width
        if isinstance(self.edge, tuple):
            return self.edge
        if width <= height:
            return int(self.edge * height / width), self.edge
        return self.edge, int(self.edge * width / height)

    def __call__(self, frame_HWC: np.ndarray, limits: MediaLimits = OWN_FILES, width: int | None = None) -> np.ndarray:
        """Return the frame padded and resized, and only its middle columns if it is wider than ``width``.

        Raises:
            MediaLimitError: padded or resized, a long and narrow frame would be larger than an image may be.
        """
        side = max(frame_HWC.shape[:2])
        if self.background is not None:
            _check_blown_up(side, side, limits)
            frame_HWC = pad_to_square(frame_HWC, self.background)
        target = self.target(*frame_HWC.shape[:2])
        _check_blown_up(*target, limits)
        if self.edge is None:
            return frame_HWC
        return np.asarray(resize_in_two_passes(Image.fromarray(frame_HWC), *target, self.resample, width))


@dataclass(frozen=True)
class PixelTransform:
    """The steps that every frame goes through before the vision encoder sees it.

    Attributes:
        size: length of the shorter edge after resizing, or (height, width); None does not resize.
        crop_size: (height, width) cut from the middle afterwards, with black where the frame is smaller.
        mean, std: per channel, of values after ``rescale_factor``.
        resample: Pillow's number of the filter (3 is bicubic).
        rescale_factor: multiplies the 8-bit values.
    """

    size: int | tuple[int, int] | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_size: tuple[int, int] | None = None
    resample: int = Image.Resampling.BICUBIC
    rescale_factor: float = 1 / 255

    def __post_init__(self) -> None:
        for name, value in (("size", self.size), ("crop_size", self.crop_size)):
            numbers = value if isinstance(value, tuple) else (1 if value is None else value,)
            if not all(isinstance(number, int) and 0 < number <= _MAX_SIDE for number in numbers):
                raise ConfigError(f"pixels: {name} {value!r} is not made of whole numbers from 1 to {_MAX_SIDE}")
        if not all(isinstance(number, int | float) for number in (*self.mean, *self.std, self.rescale_factor)):
            raise ConfigError(f"pixels: mean {self.mean}, std {self.std} and rescale_factor must be numbers")
        if len(self.mean) != 3 or len(self.std) != 3 or 0 in self.std:
            raise ConfigError(f"pixels: mean {self.mean} and std {self.std} must be three numbers, std not 0")
        if self.resample not in list(Image.Resampling):
            raise ConfigError(f"pixels: resample {self.resample!r} is none of Pillow's filters 0 to 5")

    @classmethod
    def from_preprocessor_config(cls, config: Mapping[str, Any] | str | os.PathLike) -> PixelTransform:
        """Make a transform from the fields of a ``preprocessor_config.json``, its path, or the path of its folder.

        Sizes may be numbers (as in OpenAI's CLIP) or mappings.

        Raises:
            ConfigError: the file is missing or no JSON, or a field is missing or breaks a rule.
        """
        if isinstance(config, Mapping):
            return _from_fields(cls, config, "preprocessor config")
        path = Path(config)
        path = path / "preprocessor_config.json" if path.is_dir() else path
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise ConfigError(f"{path}: is not JSON ({error})") from error
        if not isinstance(fields, dict):
            raise ConfigError(f"{path}: is not a JSON object")
        return _from_fields(cls, fields, str(path))

    @classmethod
    def from_image_processor(cls, image_processor: Any) -> PixelTransform:
        """Make a transform from a transformers image processor of CLIP or SigLIP."""
        return _from_fields(cls, image_processor.to_dict(), type(image_processor).__name__)

    @property
    def output_size(self) -> tuple[int, int] | None:
        """(height, width) of every result; None where it depends on the frame."""
        return self.crop_size or (self.size if isinstance(self.size, tuple) else None)

    @property
    def background(self) -> tuple[int, int, int]:
        """RGB colour of the bars that "pad" adds: the mean, cut to whole numbers as published."""
        red, green, blue = (int(255 * value) for value in self.mean)
        return red, green, blue

    def __call__(
        self,
        frames: np.ndarray | Image.Image | Sequence[np.ndarray | Image.Image],
        aspect_ratio: AspectRatio = None,
    ) -> torch.Tensor:
        """Return ``pixels_TCHW`` float32 of RGB frames: one uint8 array THWC, a list of HWC arrays, or PIL images.

        Raises:
            ConfigError: unknown ``aspect_ratio``.
            MediaError: no frames, or frames that do not come out at one size.
        """
        import torch

        return torch.from_numpy(self._normalise(self._levels(frames, aspect_ratio)))

    def levels(
        self, frames: np.ndarray | Image.Image | Sequence[np.ndarray | Image.Image], aspect_ratio: AspectRatio = None
    ) -> torch.Tensor:
        """Return ``levels_TCHW`` uint8: the result of a call before it is looked up in :attr:`table`.

        It takes a quarter of the memory.

        Raises:
            ConfigError, MediaError: as for a call.
        """
        import torch

        return torch.from_numpy(self._levels(frames, aspect_ratio).transpose(0, 3, 1, 2).copy())

    @property
    def table(self) -> np.ndarray:
        """The pixel value of each channel's 256 levels, float32 (3, 256)."""
        # transformers rescales in float64, rounds to float32, and normalises in float32; so does the table.
        levels = (np.arange(256, dtype=np.float64) * self.rescale_factor).astype(np.float32)
        mean, std = (np.array(values, np.float32)[:, None] for values in (self.mean, self.std))
        return (levels - mean) / std

    def _levels(self, frames: Any, aspect_ratio: AspectRatio) -> np.ndarray:
        resize = self.resize(aspect_ratio)
        width = None if self.crop_size is None else self.crop_size[1]
        # The crop's width goes down to the resize, which then spares the second pass of columns that the crop would
        # drop.
        arrays = [resize(frame_HWC, width=width) for frame_HWC in _arrays(frames)]
        if self.crop_size is not None:
            arrays = [center_crop(frame_HWC, self.crop_size) for frame_HWC in arrays]
        shapes = {frame_HWC.shape for frame_HWC in arrays}
        if len(shapes) > 1:
            raise MediaError(f"frames come out at different sizes: {sorted(shapes)}")
        return np.stack(arrays)

    def resize(self, aspect_ratio: AspectRatio = None) -> FrameResize:
        """Return the first steps, which are done to each frame by itself.

        Raises:
            ConfigError: unknown ``aspect_ratio``.
        """
        if aspect_ratio not in (None, "square", "pad"):
            raise ConfigError(f"aspect ratio {aspect_ratio!r} is not 'pad', 'square' or None")
        return FrameResize(self.size, int(self.resample), self.background if aspect_ratio == "pad" else None)

    def _normalise(self, frames_THWC: np.ndarray) -> np.ndarray:
        frames, height, width, _ = frames_THWC.shape
        table, pixels_TCHW = self.table, np.empty((frames, 3, height, width), np.float32)
        for frame_HWC, pixels_CHW in zip(frames_THWC, pixels_TCHW, strict=True):
            for channel, values in enumerate(table):
                # Levels are 0 to 255, so nothing is clipped; but only with a mode does numpy write to ``out`` directly.
                np.take(values, frame_HWC[..., channel], out=pixels_CHW[channel], mode="clip")
        return pixels_TCHW


def _check_blown_up(height: int, width: int, limits: MediaLimits) -> None:
    if height * width > limits.max_image_pixels:
        raise MediaLimitError("a frame", "the frames are too wide or too high for their other side")


def resize_in_two_passes(
    image: Image.Image, height: int, width: int, resample: int, kept: int | None = None
) -> Image.Image:
    """Resize the width, round to 8 bits, then resize the height: what ``image.resize`` does in Pillow 12 and older.

    With ``kept``, only this many columns in the middle are returned. The others are dropped between the passes: the
    second one computes each column from itself alone.

    The published environment has Pillow 10, so published numbers depend on this order. Pillow 13 resizes the height
    first where that saves work (its pull request 9549), which moves single values by 10 of 255 at sharp edges. Asking
    for one direction at a time keeps the published order whatever Pillow is installed.
    """
    wide = image.resize((width, image.height), resample)
    if kept is not None and kept < width:
        left = (width - kept) // 2
        wide = wide.crop((left, 0, left + kept, wide.height))
    return wide.resize((wide.width, height), resample)


def pad_to_square(frame_HWC: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Return the frame in the middle of a square of this colour; an odd pixel goes to the right or the bottom."""
    height, width = frame_HWC.shape[:2]
    if height == width:
        return frame_HWC
    side = max(height, width)
    square_HWC = np.empty((side, side, 3), np.uint8)
    square_HWC[:] = colour
    top, left = (side - height) // 2, (side - width) // 2
    square_HWC[top : top + height, left : left + width] = frame_HWC
    return square_HWC


def center_crop(frame_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the middle of the frame at this (height, width), with black around a smaller frame.

    Odd pixels fall where transformers puts them.
    """
    for axis, length in enumerate(size):
        have = frame_HWC.shape[axis]
        if have > length:
            first = (have - length) // 2
            inner = slice(first, first + length)
            frame_HWC = frame_HWC[:, inner] if axis else frame_HWC[inner]
        elif have < length:
            before = (length - have + 1) // 2
            padding = [(0, 0)] * 3
            padding[axis] = (before, length - have - before)
            frame_HWC = np.pad(frame_HWC, padding)
    return frame_HWC


def _arrays(frames: Any) -> list[np.ndarray]:
    if isinstance(frames, Image.Image):
        frames = [frames]
    arrays = [np.asarray(item.convert("RGB")) if isinstance(item, Image.Image) else item for item in frames]
    if not arrays:
        raise MediaError("there are no frames to prepare")
    for array in arrays:
        if array.ndim != 3 or array.shape[-1] != 3 or array.dtype != np.uint8:
            raise MediaError(f"a frame of shape {array.shape} and {array.dtype} is not (H,W,3) of uint8")
    return arrays


def _from_fields(cls: type[PixelTransform], fields: Mapping[str, Any], name: str) -> PixelTransform:
    try:
        # A file without this switch crops if it gives a size for it: transformers' defaults differ between processors.
        does_crop = fields.get("do_center_crop", "crop_size" in fields)
        crop_size = _pair(fields["crop_size"]) if does_crop else None
        size = _size(fields["size"], square=not does_crop) if fields.get("do_resize", True) else None
        does_normalise = fields.get("do_normalize", True)
        return cls(
            size=size,
            mean=tuple(fields["image_mean"]) if does_normalise else (0.0, 0.0, 0.0),
            std=tuple(fields["image_std"]) if does_normalise else (1.0, 1.0, 1.0),
            crop_size=crop_size,
            resample=fields.get("resample", Image.Resampling.BICUBIC),
            rescale_factor=fields.get("rescale_factor", 1 / 255) if fields.get("do_rescale", True) else 1.0,
        )
    except KeyError as error:
        raise ConfigError(f"{name}: the field {error} is missing") from error
    except TypeError as error:
        raise ConfigError(f"{name}: image_mean and image_std must be three numbers each") from error
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _pair(value: Any) -> tuple[int, int]:
    """Return (height, width) from a size as transformers writes it; a bare number is a square."""
    if isinstance(value, Mapping) and "height" in value and "width" in value:
        return value["height"], value["width"]
    if isinstance(value, int):
        return value, value
    raise ConfigError(f"size {value!r} is neither a number nor height and width")


def _size(value: Any, square: bool) -> int | tuple[int, int]:
    """Return a size from how transformers writes it; a bare number is a square, or the shorter edge."""
    if isinstance(value, Mapping) and "shortest_edge" in value and "longest_edge" not in value:
        return value["shortest_edge"]
    if isinstance(value, int) and not square:
        return value
    try:
        return _pair(value)
    except ConfigError as error:
        raise ConfigError(f"size {value!r} is neither a number, nor height and width, nor the shortest edge") from error
