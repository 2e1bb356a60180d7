"""Still images from anywhere to RGB, and the question whether a file is an image or a video."""

from __future__ import annotations

import io
import os
import stat
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import Image

from videollama2.errors import MediaError, MediaNotFoundError
from videollama2.media.arrays import is_array, rgb_image

MAX_IMAGE_PIXELS = 178_956_970
"""Twice Pillow's warning level, where it refuses by itself. Checked before memory is taken."""

IMAGE_SUFFIXES = frozenset(
    (
        ".avif",
        ".bmp",
        ".dib",
        ".gif",
        ".heic",
        ".heif",
        ".ico",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tga",
        ".tif",
        ".tiff",
        ".webp",
    )
)
VIDEO_SUFFIXES = frozenset(
    (
        ".3gp",
        ".asf",
        ".avi",
        ".divx",
        ".f4v",
        ".flv",
        ".h264",
        ".h265",
        ".hevc",
        ".ivf",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".ogv",
        ".rm",
        ".rmvb",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
    )
)

# Formats by name, as Pillow also opens some that run other programs (EPS through Ghostscript).
_FORMATS = (
    "JPEG",
    "MPO",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "DIB",
    "TIFF",
    "PPM",
    "AVIF",
    "JPEG2000",
    "ICO",
    "TGA",
    "HEIF",
)

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

_GIF_STARTS = (b"GIF87a", b"GIF89a")
_IMAGE_STARTS = (
    *_GIF_STARTS,
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",  # JPEG
    b"II*\0",
    b"MM\0*",  # TIFF
    b"\0\0\0\x0cjP  ",
    b"\xff\x4f\xff\x51",  # JPEG 2000
    b"\0\0\1\0",  # icon
)
_VIDEO_STARTS = (
    b"\x1a\x45\xdf\xa3",  # Matroska, WebM
    b"\0\0\1\xba",
    b"\0\0\1\xb3",  # MPEG program stream, MPEG video
    b"\0\0\0\1",  # H.264 or H.265 without a container
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF, WMV
    b"FLV\1",
    b"OggS",
    b"DKIF",
    b".RMF",
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


def load_image(source: Any) -> Image.Image:
    """One image as RGB, upright according to its EXIF tag; of an animation the first frame.

    Args:
        source: path, bytes, binary file, PIL image, numpy array or torch tensor ((H,W), (H,W,C) or (C,H,W)).

    Alpha is dropped as ``convert("RGB")`` does (published). Grey of more than 8 bits is scaled to 8 bits.

    Raises:
        MediaNotFoundError: the path does not exist.
        MediaError: the file is empty, damaged, not an image, or too large.
    """
    name = describe_source(source)
    if is_array(source):
        return Image.fromarray(np.ascontiguousarray(rgb_image(source, name)))
    if isinstance(source, Image.Image):
        return _upright_rgb(source, name)
    with _open_binary(source, name) as file, _open_image(file, name) as image:
        return _upright_rgb(image, name)


def describe_source(source: Any) -> str:
    """How messages call a source: its path or file name, else what it is."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source) if isinstance(os.fspath(source), str) else os.fsdecode(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<{len(source)} bytes in memory>"
    if is_array(source):
        return f"<array of shape {tuple(source.shape)}>"
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or f"<image of {source.width}x{source.height}>"
    if isinstance(source, Sequence):
        return f"<list of {len(source)} frames>"
    file_name = getattr(source, "name", None)
    return file_name if isinstance(file_name, str) else f"<{type(source).__name__}>"


def check_path(path: str | os.PathLike) -> Path:
    """The path, once it is known to exist.

    Raises:
        MediaNotFoundError: there is nothing at this path.
        MediaError: it is empty or too long, an address, a device, or a file of zero bytes.
    """
    text = describe_source(path)
    if not text:
        raise MediaError("the path of the video or image is empty")
    if "://" in text:
        raise MediaError(f"{text}: addresses are not opened here; download the file and give its path")
    found = Path(text)
    try:
        status = found.stat()
    except FileNotFoundError as error:
        raise MediaNotFoundError(f"{text}: no such file or folder") from error
    except OSError as error:
        raise MediaError(f"{text}: cannot be opened ({error.strerror})") from error
    except ValueError as error:
        raise MediaError(f"{text}: cannot be opened ({error})") from error
    if stat.S_ISREG(status.st_mode) and status.st_size == 0:
        raise MediaError(f"{text}: the file is empty")
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise MediaError(f"{text}: is neither a file nor a folder")
    return found


def sniff_modality(path: str | os.PathLike) -> Literal["image", "video"]:
    """Whether a path holds an image or a video: by content, else by extension. A folder is a video of frames.

    Raises:
        MediaNotFoundError: the path does not exist.
        MediaError: the file is empty, or neither its content nor its extension tells.
    """
    found = check_path(path)
    if found.is_dir():
        return "video"
    try:
        with found.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise MediaError(f"{found}: cannot be opened ({error.strerror})") from error
    if head.startswith(_GIF_STARTS):
        return "video" if _is_animated(found) else "image"
    kind = identify(head)
    if kind is not None:
        return kind
    suffix = found.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return "image"
    if suffix in VIDEO_SUFFIXES:
        return "video"
    raise MediaError(f"{found}: is neither an image nor a video by content or by extension ({suffix!r})")


def identify(head: bytes) -> Literal["image", "video"] | None:
    """What the first bytes of a file say it is; None where they say nothing known. GIF counts as an image."""
    if _is_image(head):
        return "image"
    if _is_video(head):
        return "video"
    return None


def _is_image(head: bytes) -> bool:
    if head.startswith(_IMAGE_STARTS):
        return True
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return True
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1"):
        return True
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0":
        return True
    return head[:1] == b"P" and head[1:2] in b"123456" and head[2:3] in b"\t\n\r #" and len(head) > 2


def _is_video(head: bytes) -> bool:
    if head.startswith(_VIDEO_STARTS):
        return True
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return True
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp", b"moof"):
        return True
    return any(
        head[offset : offset + 1] == b"\x47" == head[offset + step : offset + step + 1]
        for offset, step in ((0, 188), (4, 192))
    )


def _is_animated(path: Path) -> bool:
    name = str(path)
    with _open_binary(path, name) as file, _open_image(file, name) as image:
        try:
            return getattr(image, "is_animated", False)
        except _DAMAGED as error:
            raise MediaError(f"{name}: the image is damaged ({error})") from error


def _open_binary(source: Any, name: str) -> BinaryIO:
    if isinstance(source, (str, os.PathLike)):
        path = check_path(source)
        if path.is_dir():
            raise MediaError(f"{name}: is a folder, not an image")
        try:
            return path.open("rb")
        except OSError as error:
            raise MediaError(f"{name}: cannot be opened ({error.strerror})") from error
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    elif hasattr(source, "read"):
        data = source.read()
    else:
        raise MediaError(f"{name}: a {type(source).__name__} is not an image")
    if not data:
        raise MediaError(f"{name}: the image is empty")
    return io.BytesIO(data)


def narrow(formats: Sequence[str], max_pixels: int) -> None:
    """Read less than usual in this process: for programs that open strangers' files.

    Args:
        formats: Pillow's names of those that are still opened.
        max_pixels: of one image.
    """
    global MAX_IMAGE_PIXELS, _FORMATS
    MAX_IMAGE_PIXELS, _FORMATS = max_pixels, tuple(formats)


def _open_image(file: BinaryIO, name: str) -> Image.Image:
    Image.init()
    try:
        return Image.open(file, formats=[format_ for format_ in _FORMATS if format_ in Image.OPEN])
    except Image.DecompressionBombError as error:
        raise MediaError(f"{name}: the image is too large ({error})") from error
    except _DAMAGED as error:
        raise MediaError(f"{name}: not an image that can be read, or a damaged one") from error


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise MediaError(f"{name}: {image.width}x{image.height} is more than {MAX_IMAGE_PIXELS} pixels")
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
    """Grey values of any depth as uint8. The depth is 16 bits where the type says so, else what they need."""
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
