"""A decoding process: reads jobs from its standard input, answers on its standard output, and has no other ties.

It is started by :mod:`~videollama2.serve.untrusted_media.sandbox`, and imports :mod:`videollama2.media` but neither
torch nor transformers.
"""

from __future__ import annotations

import io
import os
import sys
import sysconfig
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from videollama2.media import image as image_module
from videollama2.media.frames import FrameSampling, select_frames
from videollama2.media.image import load_image
from videollama2.media.pixels import pad_to_square, resize_in_two_passes
from videollama2.media.pyav import reader as pyav_reader
from videollama2.media.video import open_video
from videollama2.serve.untrusted_media.limits import die_with_parent, limit_cpu, restrict
from videollama2.serve.untrusted_media.wire import WireError, read_message, write_message

IMAGE_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "PPM", "AVIF")
"""Pillow's formats a client may send. Its others (TIFF, JPEG 2000, icons, ...) are rare in requests and have a history
of memory faults."""

CONTAINERS = "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,flv,gif,ogg,asf,h264,hevc,obu,av1,ivf"

CODECS = (
    "h264,hevc,vp8,vp9,libvpx,libvpx-vp9,av1,libdav1d,libaom-av1,mpeg4,mpeg2video,mpeg1video,mjpeg,gif,theora,h263,"
    "flv,msmpeg4v2,msmpeg4,wmv1,wmv2,wmv3,vc1,prores"
)
"""FFmpeg's decoders a client's video may use, audio none. JPEG 2000 in a video has been a way into a server."""

_WHAT_DECODERS_RAISE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    RuntimeError,
    AttributeError,
)


class RefusedError(Exception):
    """A medium that breaks a rule; the text is for the client."""


@dataclass(frozen=True)
class Limits:
    """``max_pixels`` per frame, ``max_frames`` and ``max_seconds`` per video, ``max_bytes`` per message."""

    max_pixels: int
    max_frames: int
    max_seconds: float
    max_bytes: int


def main(parent: int) -> None:
    """Serve jobs until the input ends."""
    die_with_parent(parent)
    requests, replies = _take_over_streams()
    try:
        header, _ = read_message(requests, 0)
        limits = Limits(**header["limits"])
        _narrow_readers(limits)
        in_force = restrict(header["memory_bytes"], header["life_cpu_seconds"], _installation())
        write_message(replies, {"ready": in_force})
        while True:
            header, blobs = read_message(requests, limits.max_bytes)
            limit_cpu(header["cpu_seconds"])
            reply, arrays = _answer(header, blobs, limits)
            del blobs
            write_message(replies, reply, arrays)
    except (WireError, BrokenPipeError):
        return


def _take_over_streams() -> tuple[BinaryIO, BinaryIO]:
    """Standard input and output for messages alone: what a library prints must not end up among them."""
    requests = os.fdopen(os.dup(0), "rb", buffering=0)
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    os.close(nothing)
    return requests, io.BufferedWriter(replies, 1 << 16)


def _narrow_readers(limits: Limits) -> None:
    """Bring the readers' own bounds down to what clients may send. They are made for one's own files."""
    import av

    av.logging.set_level(None)
    warnings.simplefilter("ignore")
    Image.init()
    Image.MAX_IMAGE_PIXELS = None  # checked here
    image_module.narrow(IMAGE_FORMATS, limits.max_pixels)
    pyav_reader.narrow(CONTAINERS, CODECS, limits.max_pixels)


def _installation() -> list[str]:
    """Folders that hold Python, the packages used here and system libraries: modules may be imported late."""
    paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    paths |= {os.path.dirname(os.path.dirname(os.path.abspath(module.__file__))) for module in (np, Image)}
    paths.add(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    paths |= {os.path.join(sys.base_prefix, "lib"), "/usr/lib", "/lib", "/lib64"}
    return sorted(path for path in paths if path)


def _answer(
    header: dict[str, Any], blobs: list[bytearray], limits: Limits
) -> tuple[dict[str, Any], Sequence[np.ndarray]]:
    """Reply and frames of one job. Whatever goes wrong becomes a reply: the process is there for the next one."""
    try:
        frames = _read(header, blobs, limits)
        frames = _resized(frames, header["size"], limits) if header.get("size") else frames
        if isinstance(frames, np.ndarray):
            arrays = [np.ascontiguousarray(frames)]
        else:
            arrays = [np.ascontiguousarray(frame_HWC) for frame_HWC in frames]
        shapes = [list(array.shape) for array in arrays]
    except RefusedError as refusal:
        return {"error": "refused", "message": str(refusal)}, ()
    except MemoryError:
        return {"error": "memory"}, ()
    except _WHAT_DECODERS_RAISE as error:
        return {"error": "unreadable", "detail": f"{type(error).__name__}: {error}"[:2000]}, ()
    return {"shapes": shapes}, arrays


def _read(header: dict[str, Any], blobs: list[bytearray], limits: Limits) -> np.ndarray | list[np.ndarray]:
    """(H, W, 3) of an image; (T, H, W, 3) of a video, or a list where frames differ in size."""
    if header["kind"] == "image":
        _check_image(blobs[0], limits)
        return np.asarray(load_image(blobs[0]))
    if header["is_list"]:
        for blob in blobs:
            _check_image(blob, limits)
    source = blobs if header["is_list"] else blobs[0]
    sampling = FrameSampling(**header["sampling"])
    with open_video(source) as reader:
        if reader.duration > limits.max_seconds:
            length = f"{reader.duration:.0f} s long"
            raise RefusedError(f"the video is {length}; at most {limits.max_seconds:g} s are accepted")
        if sampling.start is not None and sampling.start > reader.duration + 1e-3:
            raise RefusedError(f"start {sampling.start:g} s is after the end of the video ({reader.duration:.2f} s)")
        indices = select_frames(
            reader.num_frames,
            reader.fps,
            sampling,
            times=reader.times,
            step_fps=reader.step_fps,
            name=reader.name,
        )
        if len(indices) > limits.max_frames:
            raise RefusedError(f"{len(indices)} frames were asked for; at most {limits.max_frames} are given")
        return reader.get_frames(indices)


def _check_image(data: bytearray, limits: Limits) -> None:
    """Refuse by the header, before memory is taken. What cannot be opened is for the reader to refuse."""
    try:
        with Image.open(io.BytesIO(data), formats=_known_formats()) as image:
            width, height = image.size
    except (OSError, ValueError, SyntaxError, ArithmeticError, IndexError, TypeError):
        return
    if width * height > limits.max_pixels:
        raise RefusedError(f"the image is {width}x{height} pixels; at most {limits.max_pixels} pixels are accepted")


def _known_formats() -> list[str]:
    """Of the accepted formats those that this Pillow reads."""
    return [name for name in IMAGE_FORMATS if name in Image.OPEN]


def _resized(
    frames: np.ndarray | list[np.ndarray], size: dict[str, Any], limits: Limits
) -> np.ndarray | list[np.ndarray]:
    """Frames as the model's preprocessing resizes them first, so that only these values travel and are kept.

    Doing so again changes nothing: Pillow copies a picture that has the size asked for. So the pixels in the end are
    those of the whole frame, bit for bit.
    """
    if isinstance(frames, np.ndarray) and frames.ndim == 3:
        return _resize(frames, size, limits)
    small = [_resize(frame_HWC, size, limits) for frame_HWC in frames]
    return np.stack(small) if len({frame_HWC.shape for frame_HWC in small}) == 1 else small


def _resize(frame_HWC: np.ndarray, size: dict[str, Any], limits: Limits) -> np.ndarray:
    if size["background"] is not None:
        side = max(frame_HWC.shape[:2])
        if side * side > limits.max_pixels:
            raise RefusedError("the frames are too wide or too high for their other side")
        frame_HWC = pad_to_square(frame_HWC, tuple(size["background"]))
    height, width = frame_HWC.shape[:2]
    edge = size["edge"]
    if isinstance(edge, list):
        height, width = edge
    elif edge is not None:
        # As in transformers, the longer edge is rounded down.
        height, width = (int(edge * height / width), edge) if width <= height else (edge, int(edge * width / height))
    if height * width > limits.max_pixels:
        raise RefusedError("the frames are too wide or too high for their other side")
    return np.asarray(resize_in_two_passes(Image.fromarray(frame_HWC), width, height, size["resample"]))
