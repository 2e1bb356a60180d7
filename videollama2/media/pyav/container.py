"""Opening a file with FFmpeg so that no other file or address is opened, and saying why it was refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av

from videollama2.errors import MediaError
from videollama2.media.kinds import IMAGE, VIDEO, identify
from videollama2.media.limits import OWN_FILES, MediaLimits
from videollama2.media.sources import opened

_MISSING_SECONDS, _MISSING_SHARE = 0.5, 0.05  # headers round; less than this is not called truncated


def open_container(source: Any, name: str, limits: MediaLimits = OWN_FILES) -> Any:
    """FFmpeg's container of a path, or of a binary file that can seek.

    Raises:
        MediaError: the source is no container of a format that is read here.
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


def decoder_options(limits: MediaLimits) -> dict[str, str]:
    """The limits as FFmpeg's decoders take them: a header can name any size, also in the middle of a stream."""
    options = {"max_pixels": str(limits.max_frame_pixels)}
    return options if limits.codecs is None else {**options, "codec_whitelist": limits.codecs}


def is_much_less(seconds: float, stated: float) -> bool:
    """Whether so much less was read than a header states that the file must be truncated."""
    return stated - seconds > max(_MISSING_SECONDS, _MISSING_SHARE * stated)


def is_much_fewer(frames: int, stated: int) -> bool:
    """The same for numbers of frames."""
    return stated - frames > max(1, _MISSING_SHARE * stated)


def _explain(source: Any, name: str, error: Exception) -> str:
    """Why FFmpeg refused a file, in a reader's words."""
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
