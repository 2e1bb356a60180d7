"""Loads still images of any source as RGB."""

from __future__ import annotations

import struct
import zlib
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from videollama2.errors import MediaError
from videollama2.media.arrays import is_array, rgb_image
from videollama2.media.kinds import AUDIO, IMAGE, VIDEO, identify
from videollama2.media.limits import OWN_FILES, MediaLimits
from videollama2.media.sources import describe_source, opened

# What Pillow's decoders raise on damaged files; there is no common base class.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    RuntimeError,
)

_ORIENTATION_TAG = 0x0112
# EXIF orientation -> what makes the picture upright. Source: EXIF 2.3, tag 274.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PREMULTIPLIED = {"RGBa": "RGBA", "La": "LA", "PA": "RGBA"}


def load_image(source: Any, limits: MediaLimits = OWN_FILES) -> Image.Image:
    """Return one image as RGB, upright according to its EXIF tag; of an animation the first frame.

    Args:
        source: path, bytes, binary file, PIL image, numpy array or torch tensor ((H,W), (H,W,C) or (C,H,W)).
        limits: which formats are opened, and how large the image may be.

    Alpha is dropped as ``convert("RGB")`` does (published). Grey of more than 8 bits is scaled to 8 bits.

    Raises:
        MediaNotFoundError: the path does not exist.
        MediaError: the file is empty, damaged, not an image, or too large.
    """
    name = describe_source(source)
    if is_array(source):
        return Image.fromarray(np.ascontiguousarray(rgb_image(source, name)))
    if isinstance(source, Image.Image):
        return upright_rgb(source, name, limits)
    with opened(source, name, IMAGE) as file, open_image(file, name, limits) as image:
        return upright_rgb(image, name, limits)


def check_image(source: Any, limits: MediaLimits = OWN_FILES) -> None:
    """Read an image's header, without decoding its pixels.

    Raises:
        MediaError: it is not an image, or one that is too large.
    """
    name = describe_source(source)
    with opened(source, name, IMAGE) as file, open_image(file, name, limits) as image:
        limits.check_image(image.width, image.height, name)


def open_image(file: BinaryIO, name: str, limits: MediaLimits) -> Image.Image:
    """Return Pillow's image of a file, of which only the header was read.

    Raises:
        MediaError: it is too large, damaged, or not of a format that is opened.
    """
    Image.init()
    try:
        return Image.open(file, formats=[format_ for format_ in limits.image_formats if format_ in Image.OPEN])
    except Image.DecompressionBombError as error:
        raise MediaError(f"{name}: the image is too large ({error})") from error
    except _DAMAGED as error:
        raise MediaError(f"{name}: {_explain(file, name)}") from error


def _explain(file: BinaryIO, name: str) -> str:
    """Return why Pillow refused a file, in words for its owner."""
    try:
        kind = identify(file, name)
    except MediaError as refusal:
        return str(refusal).removeprefix(f"{name}: ")
    if kind in (VIDEO, AUDIO):
        return "is a video, not an image" if kind == VIDEO else "is a sound file, not an image"
    return "not an image that can be read, or a damaged one"


def upright_rgb(image: Image.Image, name: str, limits: MediaLimits) -> Image.Image:
    """Return Pillow's image, or the frame of it that was sought, as RGB and upright.

    Raises:
        MediaLimitError: it is too large. MediaError: it is damaged, or of a mode that is not a colour.
    """
    limits.check_image(image.width, image.height, name)
    try:
        image.load()
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        raise MediaError(f"{name}: the image is damaged or truncated ({error})") from error
    try:
        rgb = _to_rgb(image)
    except ValueError as error:
        raise MediaError(f"{name}: an image of mode {image.mode} cannot be made RGB ({error})") from error
    turn = _UPRIGHT.get(_orientation(image))
    return rgb if turn is None else rgb.transpose(turn)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DAMAGED:
        return 1  # the pixels are fine, and an unreadable tag says nothing about how to turn them
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # Pillow clips these at 255, which turns a 16-bit picture white.
        return Image.fromarray(_scale_to_8_bits(np.asarray(image))).convert("RGB")
    if image.mode in _PREMULTIPLIED:
        image = image.convert(_PREMULTIPLIED[image.mode])
    return image.convert("RGB")


def _scale_to_8_bits(values_HW: np.ndarray) -> np.ndarray:
    """Return grey values of any depth as uint8. The depth is 16 bits where the type says so, else what they need."""
    if values_HW.dtype.itemsize == 2:
        return (values_HW.astype(np.uint16) >> 8).astype(np.uint8)
    is_float = values_HW.dtype.kind == "f"
    values_HW = np.nan_to_num(values_HW.astype(np.float64))
    largest = values_HW.max(initial=0.0)
    if is_float and largest <= 1.0:
        full = 1.0
    else:
        full = next((depth for depth in (255.0, 65535.0) if largest <= depth), largest)
    return np.clip(values_HW * (255.0 / full) + 0.5, 0, 255).astype(np.uint8)
