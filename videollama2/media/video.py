"""Opens a video of any kind and reads the frames of a clip. This is the one place where a decoder is chosen."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from videollama2.errors import ConfigError, MediaError, MissingDependencyError
from videollama2.media.animation import AnimatedPictureReader
from videollama2.media.arrays import is_array
from videollama2.media.frames import FrameSampling, select_frames
from videollama2.media.kinds import VIDEO, animated_format
from videollama2.media.limits import OWN_FILES, MediaLimits
from videollama2.media.readers import (
    FOLDER_FPS,
    LIST_FPS,
    ArrayReader,
    FrameFolderReader,
    ImageListReader,
    VideoReader,
)
from videollama2.media.sources import check_path, describe_source, opened, seekable_file

OpenVideo = Callable[[Any, str, MediaLimits], VideoReader]
"""Opens a source (path or binary file) that messages call by the name given, within limits."""


def _pyav(source: Any, name: str, limits: MediaLimits) -> VideoReader:
    try:
        from videollama2.media.pyav.reader import PyAVReader
    except ModuleNotFoundError as error:
        raise MissingDependencyError.of("reading videos needs PyAV", "av") from error
    return PyAVReader(source, name, limits)


def _decord(source: Any, name: str, limits: MediaLimits) -> VideoReader:
    from videollama2.media.decord_reader import DecordReader

    return DecordReader(source, name, limits)


BACKENDS: dict[str, OpenVideo] = {"pyav": _pyav, "decord": _decord}
"""Decoders of video files by the name ``--video-backend`` takes."""

DEFAULT_BACKEND = "pyav"


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames of one clip, and where in the video they are.

    Attributes:
        frames_THWC: uint8 RGB; a list of HWC arrays where the images of a list or folder differ in size.
        indices: number of each frame in the video.
        times: seconds of each frame after the video's first one.
        fps: average frame rate of the video.
        total: number of frames of the video.
        name: path or description of the source.
    """

    frames_THWC: np.ndarray | list[np.ndarray]  # noqa: N815
    indices: list[int]
    times: list[float]
    fps: float
    total: int
    name: str


def open_video(
    source: Any, backend: str = "auto", fps: float | None = None, limits: MediaLimits = OWN_FILES
) -> VideoReader:
    """Return a reader for ``source``; close it, or use it in a ``with`` block.

    Args:
        source: path of a video file, animated picture or folder of frames; bytes or a binary file; a list of images
            (anything :func:`videollama2.media.image.load_image` takes); a numpy array or torch tensor
            (T,H,W,C), (T,C,H,W) or (T,H,W).
        backend: "pyav", "decord", or "auto" for the default. Only video files are read by decord.
        fps: rate of frames without times of their own: folders (3 if None), lists and arrays (1 if None).
        limits: which formats are opened, and how large frames may be.

    Raises:
        MediaNotFoundError: the path does not exist.
        MediaLimitError: its frames are too large.
        MediaError: the source cannot be read as a video.
        ConfigError: no such backend.
        MissingDependencyError: the backend is not installed.
    """
    name = describe_source(source)
    open_file = _backend(backend)
    if is_array(source):
        return ArrayReader(source, LIST_FPS if fps is None else fps)
    if isinstance(source, (list, tuple)):
        return ImageListReader(source, LIST_FPS if fps is None else fps, limits=limits)
    if isinstance(source, Image.Image):
        raise MediaError(f"{name}: is one image, not a video; a video can be a list of images")
    if isinstance(source, (str, os.PathLike)):
        source = check_path(source)
        if source.is_dir():
            return FrameFolderReader(source, FOLDER_FPS if fps is None else fps, limits)
    else:
        source = seekable_file(source, name, VIDEO)
    with opened(source, name, VIDEO) as file:
        animated = animated_format(file)
    if animated in ("PNG", "WEBP"):
        return AnimatedPictureReader(source, name, limits)
    if animated is not None:
        # decord cannot read gifs, nor does the published code ask it to.
        open_file = BACKENDS[DEFAULT_BACKEND]
    return open_file(source, name, limits)


def check_video_file(path: str | os.PathLike | bytes, limits: MediaLimits = OWN_FILES) -> None:
    """Find out cheaply whether a file can be read as a video, by its first packet; a reader reads all of them.

    Raises:
        MediaError: there is nothing in it that could be decoded.
    """
    name = describe_source(path)
    with opened(path, name, VIDEO) as file:
        animated = animated_format(file)
    if animated in ("PNG", "WEBP"):
        AnimatedPictureReader(path, name, limits).close()
        return
    from videollama2.media.pyav.reader import check_first_packet

    check_first_packet(seekable_file(path, name, VIDEO) if isinstance(path, bytes) else path, name, limits)


def read_clip(
    source: Any,
    sampling: FrameSampling | None = None,
    backend: str = "auto",
    fps: float | None = None,
    limits: MediaLimits = OWN_FILES,
) -> Clip:
    """Choose frames of a video and read them; no other frames are converted, and few others decoded.

    Arguments are those of :func:`open_video`; ``sampling`` defaults to one frame per second.

    Raises:
        MediaLimitError: the video is longer, or more frames are chosen, than the limits allow; or the clip starts
            after the end of the video.
        MediaError: as :func:`open_video`.
    """
    with open_video(source, backend, fps, limits) as reader:
        limits.check_duration(reader.duration, reader.name)
        indices = _chosen(reader, sampling or FrameSampling(num_frames=None))
        limits.check_count(len(indices), reader.name)
        times = reader.times
        return Clip(
            reader.get_frames(indices), indices, [times[i] for i in indices], reader.fps, reader.num_frames, reader.name
        )


def count_frames(source: Any, sampling: FrameSampling) -> int:
    """Return how many frames :func:`read_clip` would read; none are decoded.

    Raises:
        MediaError: see :func:`read_clip`.
    """
    with open_video(source) as reader:
        return len(_chosen(reader, sampling))


def _chosen(reader: VideoReader, sampling: FrameSampling) -> list[int]:
    return select_frames(
        reader.num_frames,
        reader.fps,
        sampling,
        times=reader.times,
        step_fps=reader.step_fps,
        duration=reader.duration,
        name=reader.name,
    )


def _backend(name: str) -> OpenVideo:
    name = DEFAULT_BACKEND if name == "auto" else name
    if name not in BACKENDS:
        raise ConfigError(f"video backend {name!r} is not one of {', '.join(['auto', *BACKENDS])}")
    return BACKENDS[name]
