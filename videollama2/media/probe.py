"""Finds out whether a medium can be used without reading all of it, for checks of millions of files."""

from __future__ import annotations

import os
import warnings

from videollama2.errors import MediaError
from videollama2.media.audio import NO_TRACK, sound_seconds
from videollama2.media.frames import MAX_NUM_FRAMES, FrameSampling, select_frames
from videollama2.media.image import check_image, load_image
from videollama2.media.kinds import IMAGE
from videollama2.media.readers import FrameFolderReader, MediaWarning
from videollama2.media.sources import describe_source
from videollama2.media.video import check_video_file, open_video


def check_opens(path: str | bytes, kind: str) -> None:
    """Open a medium: the header of an image, the first packet of a video, the list of a folder of frames.

    Raises:
        MediaError: there is nothing in it that could be decoded.
    """
    if kind == IMAGE:
        check_image(path)
    elif isinstance(path, str) and os.path.isdir(path):
        FrameFolderReader(path).close()
    else:
        check_video_file(path)


def check_decodes(path: str | bytes, kind: str, start: float | None = None, end: float | None = None) -> list[str]:
    """Decode an image, or the first and the last frame of a video (of the part between ``start`` and ``end`` seconds).

    Returns:
        What is not as the file's header says, though it can be used.

    Raises:
        MediaError: it cannot be decoded, or begins after the end of the video.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", MediaWarning)
        if kind == IMAGE:
            load_image(path)
        else:
            _decode_ends(path, FrameSampling(MAX_NUM_FRAMES, start, end))
    return [str(each.message) for each in caught if issubclass(each.category, MediaWarning)]


def check_sound(path: str | bytes, decode: bool, is_optional: bool) -> tuple[float | None, list[str]]:
    """Find out how long a file's sound is.

    Args:
        decode: decode all of it, instead of reading what the file states.
        is_optional: whether the file may be without sound, as a video that is seen as well.

    Returns:
        seconds, None without a track, and what is not as it should be though it can be used.

    Raises:
        MediaError: the sound cannot be decoded, or there is none.
    """
    if isinstance(path, str) and os.path.isdir(path):
        seconds, caught = None, []
    else:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", MediaWarning)
            seconds = sound_seconds(path, decode)
    if seconds is None and not is_optional:
        raise MediaError(f"{describe_source(path)}: has no sound track")
    told = [str(each.message) for each in caught if issubclass(each.category, MediaWarning)]
    return seconds, [*told, f"{describe_source(path)}: {NO_TRACK}"] if seconds is None else told


def _decode_ends(path: str | bytes, sampling: FrameSampling) -> None:
    with open_video(path) as reader:
        first, last = 0, reader.num_frames - 1
        if sampling.start is not None or sampling.end is not None:
            times = {"times": reader.times, "step_fps": reader.step_fps, "name": reader.name}
            first, *_, last = select_frames(reader.num_frames, reader.fps, sampling, **times)
        reader.get_frames([first, last])
