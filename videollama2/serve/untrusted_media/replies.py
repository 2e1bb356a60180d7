"""Rebuilds the results of decoding processes, frames and sounds, from replies that are not trusted.

A client may have taken over the process that decoded its medium, so every field of a reply is checked before use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from videollama2.media.audio import NO_TRACK, Sound
from videollama2.media.kinds import AUDIO, IMAGE

Frames = np.ndarray | list[np.ndarray]
"""uint8 frames: an image is (H, W, 3), a video (T, H, W, 3) or, if frame sizes differ, a list of (H, W, 3)."""

_MOST_SPANS = 1024
_SAMPLES = ("float32", "float64")


@dataclass(frozen=True)
class Decoded:
    """One decoded image or video: its frames and, for a video, the time in seconds at which each is shown."""

    frames: Frames
    times: tuple[float, ...] = ()


class InvalidReplyError(Exception):
    """Raised when a reply is not one that :mod:`~videollama2.serve.untrusted_media.child` writes."""


def frame_bytes(frames: Frames) -> int:
    """Return the number of bytes that frames occupy in memory."""
    return frames.nbytes if isinstance(frames, np.ndarray) else sum(frame.nbytes for frame in frames)


def size_of(result: Decoded | Sound) -> int:
    """Return the number of bytes that a result occupies in memory."""
    return result.wave_S.nbytes if isinstance(result, Sound) else frame_bytes(result.frames)


def frames_of(kind: str, reply: dict[str, Any], arrays: Sequence[bytearray], max_frames: int) -> Decoded:
    """Return the frames of an image or a video.

    Raises:
        InvalidReplyError: the reply has other shapes than frames have, or too many frames.
    """
    shapes = reply.get("shapes")
    dimensions = (3,) if kind == IMAGE else (3, 4)
    if not isinstance(shapes, list) or not 1 <= len(shapes) == len(arrays) <= max_frames:
        raise InvalidReplyError(f"a reply with the shapes {shapes!r:.200}")
    frames = []
    for shape, data in zip(shapes, arrays, strict=True):
        good = isinstance(shape, list) and all(type(side) is int and side > 0 for side in shape)
        if not good or len(shape) not in dimensions or shape[-1] != 3 or math.prod(shape) != len(data):
            raise InvalidReplyError(f"a reply with the shape {shape!r:.200}")
        array = np.frombuffer(data, np.uint8).reshape(shape)
        array.flags.writeable = False
        frames.append(array)
    whole = frames[0] if kind == IMAGE or frames[0].ndim == 4 else frames
    return Decoded(whole, _times(reply))


def sound_of(reply: dict[str, Any], arrays: Sequence[bytearray], samples: int) -> Sound:
    """Return the clip of a sound.

    Args:
        samples: number of samples of a clip.

    Raises:
        InvalidReplyError: the wave has another length or type, holds no numbers, or the facts about it are invalid.
    """
    name, seconds, spans = reply.get("dtype"), reply.get("seconds"), reply.get("spans")
    if name not in _SAMPLES or len(arrays) != 1 or len(arrays[0]) != samples * np.dtype(name).itemsize:
        raise InvalidReplyError(f"a reply with a sound of type {name!r:.200}")
    wave_S = np.frombuffer(arrays[0], name)
    wave_S.flags.writeable = False
    # Float files are not clipped, as published, but a value that is not a number would spoil the whole filter bank.
    if not np.isfinite(wave_S).all():
        raise InvalidReplyError("a reply with a sound that holds infinite values")
    if not isinstance(seconds, float) or not 0 <= seconds < 1e9 or not _are_spans(spans):
        raise InvalidReplyError(f"a reply with a sound of {seconds!r:.200} s in the parts {spans!r:.200}")
    note = None if reply.get("has_track") is True else NO_TRACK
    return Sound(wave_S, [(start, end) for start, end in spans or ()], seconds, note, f"the {AUDIO}")


def _are_spans(spans: Any) -> bool:
    if not isinstance(spans, list) or len(spans) > _MOST_SPANS:
        return False
    return all(isinstance(span, list) and len(span) == 2 and all(type(end) is int for end in span) for span in spans)


def _times(reply: dict[str, Any]) -> tuple[float, ...]:
    """Return the frames' times, or an empty tuple if the reply has no valid ones."""
    times = reply.get("times")
    if not isinstance(times, list) or not all(isinstance(time, float) and abs(time) < 1e9 for time in times):
        return ()
    return tuple(times)
