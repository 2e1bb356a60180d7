"""Opens a file with FFmpeg so that no other file or address is opened, and says why it was refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import av.error
from av.stream import Disposition

from videollama2.errors import MediaError
from videollama2.media.kinds import IMAGE, VIDEO, identify
from videollama2.media.limits import OWN_FILES, MediaLimits
from videollama2.media.sources import opened

_MISSING_SECONDS, _MISSING_SHARE = 0.5, 0.05  # headers round; less than this is not called truncated


def open_container(source: Any, name: str, limits: MediaLimits = OWN_FILES) -> Any:
    """Return FFmpeg's container of a path, or of a binary file that can seek.

    Raises:
        MediaError: the source is not a container of a format that is read here.
    """
    if hasattr(source, "read"):
        source.seek(0)
        target = source
    else:
        # Absolute and with a scheme, or a colon in the name would be taken for a protocol.
        target = "file:" + str(Path(source).absolute())
    options = {"format_whitelist": limits.containers, "protocol_whitelist": "file", **decoder_options(limits)}
    try:
        return av.open(target, metadata_errors="replace", options=options)
    except av.error.FFmpegError as error:
        raise MediaError(f"{name}: {_explain(source, name, error)}") from error


def video_stream(container: Any, name: str, limits: MediaLimits = OWN_FILES) -> Any:
    """Return the stream that is looked at, set up so that it decodes in the calling thread only.

    Raises:
        MediaLimitError: its frames are too large.
        MediaError: there is no video stream, no decoder for it, or it states no size.
    """
    stream = container.streams.best("video")
    if stream is None or stream.disposition & Disposition.attached_pic:
        contents = " and ".join(_contents(container)) or "nothing"
        raise MediaError(f"{name}: has no video stream, only {contents}")
    context = stream.codec_context
    if context is None:
        raise MediaError(f"{name}: there is no decoder for its video stream")
    if not (context.width and context.height):
        raise MediaError(
            f"{name}: the size of its frames is unknown: it is damaged, or larger than "
            f"{limits.max_frame_pixels / 1e6:g} megapixels"
        )
    limits.check_frames(context.width, context.height, 1, name)
    stream.thread_type = "NONE"
    context.thread_count = 1
    context.options = decoder_options(limits)
    return stream


def _contents(container: Any) -> list[str]:
    """Return what a file has instead of a video; a cover picture is a video stream to FFmpeg."""
    covers = [stream for stream in container.streams if stream.disposition & Disposition.attached_pic]
    kinds = sorted({stream.type for stream in container.streams if stream not in covers})
    return kinds + ["a cover picture"] * bool(covers)


def decoder_options(limits: MediaLimits) -> dict[str, str]:
    """Return the limits as FFmpeg's decoders take them: a header can name any size, also in the middle of a stream."""
    options = {"max_pixels": str(limits.max_frame_pixels)}
    return options if limits.codecs is None else {**options, "codec_whitelist": limits.codecs}


def is_much_less(seconds: float, stated: float) -> bool:
    """Return whether so much less was read than a header states that the file must be truncated."""
    return stated - seconds > max(_MISSING_SECONDS, _MISSING_SHARE * stated)


def is_much_fewer(frames: int, stated: int) -> bool:
    """Return whether so many frames are missing that the file must be truncated."""
    return stated - frames > max(1, _MISSING_SHARE * stated)


def _explain(source: Any, name: str, error: av.error.FFmpegError) -> str:
    """Return why FFmpeg refused a file, in words for its owner."""
    try:
        with opened(source, name, VIDEO) as file:
            kind = identify(file, name)
    except MediaError as refusal:
        return str(refusal).removeprefix(f"{name}: ")
    if kind == IMAGE:
        return "is a still image, not a video"
    if kind == VIDEO:
        return f"the file is truncated or damaged ({error.strerror})"
    return "is not a video or a sound in a format that can be read"
