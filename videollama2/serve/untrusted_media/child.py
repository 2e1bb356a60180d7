"""Runs in a decoding process: it reads jobs from standard input and answers on standard output.

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
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

import videollama2
from videollama2.errors import MediaLimitError
from videollama2.media.audio import ClipRules, SoundSampling, read_sound, read_video_sound
from videollama2.media.frames import FrameSampling
from videollama2.media.image import load_image
from videollama2.media.kinds import AUDIO, IMAGE
from videollama2.media.limits import MediaLimits
from videollama2.media.pixels import FrameResize
from videollama2.media.video import read_clip
from videollama2.serve.untrusted_media.limits import die_with_parent, limit_cpu, restrict
from videollama2.serve.untrusted_media.wire import WireError, read_message, write_message

IMAGE_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "PPM", "AVIF")
"""Pillow formats that a client may send. The others (TIFF, JPEG 2000, icons, ...) are rare in requests and have a
history of memory-safety bugs."""

CONTAINERS = "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,mjpeg,flv,gif,ogg,asf,h264,hevc,obu,av1,ivf"
"""FFmpeg containers that a client may send."""

CODECS = (
    "h264,hevc,vp8,vp9,libvpx,libvpx-vp9,av1,libdav1d,libaom-av1,mpeg4,mpeg2video,mpeg1video,mjpeg,gif,theora,h263,"
    "flv,msmpeg4v2,msmpeg4,wmv1,wmv2,wmv3,vc1,prores"
)
"""FFmpeg decoders that the frames of a client's video may use. JPEG 2000 video has been used to attack servers, so it
is left out."""

SOUND_CONTAINERS = CONTAINERS + ",mp3,wav,w64,aiff,aac,flac,ac3,eac3"
"""FFmpeg containers that a client may send for their sound."""

SOUND_CODECS = (
    "aac,aac_latm,mp3,mp3float,mp2,mp2float,opus,libopus,vorbis,libvorbis,flac,alac,ac3,eac3,wmav1,wmav2,amrnb,amrwb,"
    "adpcm_ms,adpcm_ima_wav,pcm_u8,pcm_s16le,pcm_s16be,pcm_s24le,pcm_s24be,pcm_s32le,pcm_s32be,pcm_f32le,pcm_f32be,"
    "pcm_f64le,pcm_f64be,pcm_alaw,pcm_mulaw"
)
"""FFmpeg decoders that a client's sound may use."""

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


def main(parent: int) -> None:
    """Serve jobs until standard input is closed."""
    die_with_parent(parent)
    requests, replies = _take_over_streams()
    try:
        header, _ = read_message(requests, 0)
        limits = client_limits(**header["limits"])
        max_bytes = header["max_bytes"]
        # Everything is loaded before the restrictions, after which few files can be opened. Only then does the server
        # hear that the process is ready, so no client's byte arrives earlier.
        _prepare_libraries()
        in_force = restrict(header["memory_bytes"], header["life_cpu_seconds"], _installation())
        write_message(replies, {"ready": in_force})
        while True:
            header, blobs = read_message(requests, max_bytes)
            limit_cpu(header["cpu_seconds"])
            reply, arrays = _answer(header, blobs, limits)
            # The source is not needed while the result is written, and may be as large.
            del blobs
            write_message(replies, reply, arrays)
    except (WireError, BrokenPipeError):
        return


def _take_over_streams() -> tuple[io.FileIO, IO[bytes]]:
    """Reserve standard input and output for messages, so that nothing a library prints ends up among them."""
    requests = io.FileIO(os.dup(0), "rb")
    replies = io.BufferedWriter(io.FileIO(os.dup(1), "wb"), 1 << 16)
    # Libraries in C print to these numbers directly, whatever Python's streams are.
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    os.close(nothing)
    return requests, replies


def client_limits(max_pixels: int, max_frames: int, max_seconds: float) -> MediaLimits:
    """Return the limits for clients' media, which are stricter than those for one's own files."""
    return MediaLimits(
        max_frame_pixels=max_pixels,
        max_image_pixels=max_pixels,
        max_clip_frames=max_frames,
        max_seconds=max_seconds,
        image_formats=IMAGE_FORMATS,
        containers=CONTAINERS,
        codecs=CODECS,
    )


def _prepare_libraries() -> None:
    """Load Pillow's plugins, silence all libraries, and replace Pillow's limit on pixels by ours."""
    import av.logging

    # Imported now, so that a slow disk delays no job.
    import videollama2.media.pyav.reader
    import videollama2.media.pyav.sound  # noqa: F401

    av.logging.set_level(None)
    warnings.simplefilter("ignore")
    Image.init()
    Image.MAX_IMAGE_PIXELS = None


def _installation() -> list[str]:
    """Return the folders of Python, of the packages used here and of system libraries, for modules imported later."""
    paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    paths |= {str(Path(module.__file__ or "").absolute().parents[1]) for module in (np, Image)}
    paths.add(str(Path(videollama2.__file__).absolute().parent))
    paths |= {os.path.join(sys.base_prefix, "lib"), "/usr/lib", "/lib", "/lib64"}
    return sorted(path for path in paths if path)


def _answer(
    header: dict[str, Any], blobs: list[bytearray], limits: MediaLimits
) -> tuple[dict[str, Any], Sequence[np.ndarray]]:
    """Return the reply and the arrays of one job. Errors become replies because the process serves further jobs."""
    try:
        reply, arrays = (_hear if header["kind"] == AUDIO else _look)(header, blobs, limits)
        arrays = [np.ascontiguousarray(array) for array in arrays]
        shapes = [list(array.shape) for array in arrays]
    except MediaLimitError as refusal:
        return {"error": "refused", "message": refusal.rule}, ()
    except MemoryError:
        return {"error": "memory"}, ()
    except _WHAT_DECODERS_RAISE as error:
        return {"error": "unreadable", "detail": f"{type(error).__name__}: {error}"[:2000]}, ()
    return {**reply, "shapes": shapes}, arrays


def _hear(
    header: dict[str, Any], blobs: list[bytearray], limits: MediaLimits
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Return the facts of a sound, and its wave."""
    source = blobs if header["is_list"] else blobs[0]
    read = read_video_sound if header["of_video"] else read_sound
    limits = replace(limits, containers=SOUND_CONTAINERS, codecs=SOUND_CODECS)
    sound = read(source, ClipRules(**header["rules"]), SoundSampling(**header["sampling"]), limits)
    has_track = sound.note is None
    facts = {"dtype": sound.wave_S.dtype.name, "spans": sound.spans, "seconds": sound.seconds, "has_track": has_track}
    return facts, [sound.wave_S]


def _look(
    header: dict[str, Any], blobs: list[bytearray], limits: MediaLimits
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Return the times of the frames of an image or a video, and the frames."""
    frames, times = _read(header, blobs, limits)
    return {"times": times}, [frames] if isinstance(frames, np.ndarray) else frames


def _read(
    header: dict[str, Any], blobs: list[bytearray], limits: MediaLimits
) -> tuple[np.ndarray | list[np.ndarray], list[float]]:
    """Return an image as (H, W, 3), or a video as (T, H, W, 3) or a list if frame sizes differ, and the frame times."""
    resize = None if header["resize"] is None else _resize_of(header["resize"])
    if header["kind"] == IMAGE:
        frame_HWC = np.asarray(load_image(blobs[0], limits))
        return (frame_HWC if resize is None else resize(frame_HWC, limits)), []
    source = blobs if header["is_list"] else blobs[0]
    clip = read_clip(source, FrameSampling(**header["sampling"]), limits=limits)
    times = [round(float(time), 6) for time in clip.times]
    if resize is None:
        return clip.frames_THWC, times
    small = [resize(frame_HWC, limits) for frame_HWC in clip.frames_THWC]
    return (np.stack(small) if len({frame_HWC.shape for frame_HWC in small}) == 1 else small), times


def _resize_of(fields: dict[str, Any]) -> FrameResize:
    """Rebuild the object from JSON, which turns the tuples of sizes and colours into lists."""
    edge, background = (tuple(v) if isinstance(v, list) else v for v in (fields["edge"], fields["background"]))
    return FrameResize(edge, fields["resample"], background)
