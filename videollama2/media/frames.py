"""Which frames of a video to look at. Integers only: nothing here opens a file.

Sampling reproduces what the published code chose (``frame_sample.json`` of the reference data). Where the
published choice loses something, ours keeps it:

* the cap on frames keeps frames from the whole clip, not only from its beginning;
* an explicit ``num_frames`` is honoured up to ``MAX_NUM_FRAMES``, not silently cut to 32;
* the bounds of a clip in a video of variable frame rate are looked up in the real frame times. On a constant
  rate this is the published arithmetic, to the frame.
"""

from __future__ import annotations

import math
import numbers
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from videollama2.constants import MAX_FRAMES
from videollama2.errors import MediaError

MAX_NUM_FRAMES = 1024
"""Most frames one clip may have. It keeps a typing mistake from allocating all memory."""

_TIME_TOLERANCE = 1e-3
"""Seconds. Durations that people copy from a player are rounded to the millisecond."""


def uniform_indices(duration: int, num_frames: int) -> list[int]:
    """Middles of ``num_frames`` equal segments of the frames ``0 .. duration - 1``, halves rounded up.

    A video shorter than ``num_frames`` repeats indices. Source: published ``frame_sample(mode="uniform")``;
    computed in integers, because a half must not depend on the rounding error of a float.

    Raises:
        MediaError: ``duration`` is below 1, or ``num_frames`` is outside 1 .. ``MAX_NUM_FRAMES``.
    """
    _check_duration(duration)
    num_frames = check_num_frames(num_frames)
    return [((duration - 1) * (2 * i + 1) + num_frames) // (2 * num_frames) for i in range(num_frames)]


def fps_indices(duration: int, fps: float) -> list[int]:
    """One frame per second: the middle of every run of ``int(fps)`` frames, or of all if there are fewer.

    ``duration`` is a number of frames. Rates below one frame per second keep every frame. Source: published
    ``frame_sample(mode="fps")``, which also rounds the rate down (29.97 steps by 29 frames).

    Raises:
        MediaError: ``duration`` is below 1, or ``fps`` is not a positive finite number.
    """
    _check_duration(duration)
    _check_fps(fps)
    step = min(max(int(fps), 1), duration)
    return list(range(step // 2, duration, step))


def check_num_frames(num_frames: int, name: str = "num_frames") -> int:
    """The number as int; MediaError unless it is whole and from 1 to ``MAX_NUM_FRAMES``."""
    if isinstance(num_frames, bool) or not isinstance(num_frames, numbers.Integral):
        raise MediaError(f"{name} {num_frames!r} is not a whole number")
    if not 1 <= num_frames <= MAX_NUM_FRAMES:
        raise MediaError(f"{name} {num_frames} is outside 1 to {MAX_NUM_FRAMES}")
    return int(num_frames)


@dataclass(frozen=True)
class FrameSampling:
    """Which part of a video is looked at, and how often.

    Attributes:
        num_frames: frames spread evenly over the clip; None means one per second, at most ``max_frames``.
        start, end: bounds of the clip in seconds from the first frame; None leaves that side open. Equal
            bounds mean the second that begins there (published).
        max_frames: cap of the one-frame-per-second mode; frames kept under it stay spread over the clip.
        on_reversed: what a negative bound, or a start behind the end, leads to. "error" raises. "swap" is the
            published repair: negative bounds become 0, reversed bounds are exchanged.

    Raises:
        MediaError: a value breaks one of these rules.
    """

    num_frames: int | None = None
    start: float | None = None
    end: float | None = None
    max_frames: int = MAX_FRAMES
    on_reversed: Literal["error", "swap"] = "error"

    def __post_init__(self) -> None:
        if self.num_frames is not None:
            check_num_frames(self.num_frames)
        check_num_frames(self.max_frames, "max_frames")
        if self.on_reversed not in ("error", "swap"):
            raise MediaError(f"on_reversed {self.on_reversed!r} is neither 'error' nor 'swap'")
        for name, value in (("start", self.start), ("end", self.end)):
            _check_second(name, value)
        if self.on_reversed == "error":
            self._reject_reversed()

    def _reject_reversed(self) -> None:
        for name, value in (("start", self.start), ("end", self.end)):
            if value is not None and value < 0:
                raise MediaError(f"{name} {value} s is negative")
        if self.end is not None and self.start is not None and self.start > self.end:
            raise MediaError(f"start {self.start} s is after end {self.end} s")
        if self.end == 0 and self.start is None:
            raise MediaError("end 0 s leaves no part of the video")

    def bounds(self) -> tuple[float | None, float | None]:
        """``(start, end)`` in seconds, put in order the published way (both must be given for that)."""
        if self.start is None or self.end is None:
            return self.start, self.end
        start, end = sorted((max(self.start, 0.0), max(self.end, 0.0)))
        return start, end + 1.0 if start == end else end


def select_frames(
    total: int,
    fps: float,
    sampling: FrameSampling,
    *,
    times: Sequence[float] | None = None,
    step_fps: float | None = None,
    name: str = "video",
) -> list[int]:
    """Indices of the frames to read, ascending, repeated where the clip has fewer frames than were asked for.

    Args:
        total: number of frames of the whole video.
        fps: its average rate in frames per second.
        sampling: clip and count.
        times: seconds of every frame from the first one. Used for the bounds when the rate varies.
        step_fps: rate that the one-frame-per-second mode counts in, when it is not ``fps``.
        name: how messages call the video.

    Raises:
        MediaError: no frames, no usable rate, or a start that lies after the end of the video.
    """
    if total < 1:
        raise MediaError(f"{name}: the video has no frames")
    _check_fps(fps, name)
    if times is not None and is_constant_rate(times, fps):
        times = None
    first, last = _clip_bounds(total, fps, sampling, times, name)
    length = last - first + 1
    if sampling.num_frames is not None:
        chosen = uniform_indices(length, sampling.num_frames)
    else:
        chosen = fps_indices(length, step_fps or fps)
        if len(chosen) > sampling.max_frames:
            chosen = [chosen[i] for i in uniform_indices(len(chosen), sampling.max_frames)]
    return [first + i for i in chosen]


def is_constant_rate(times: Sequence[float], fps: float) -> bool:
    """Whether every frame lies within half a frame of where a constant rate of ``fps`` puts it."""
    return all(abs(time * fps - i) <= 0.5 for i, time in enumerate(times))


def _clip_bounds(
    total: int, fps: float, sampling: FrameSampling, times: Sequence[float] | None, name: str
) -> tuple[int, int]:
    """First and last frame of the clip, both included.

    The published code takes the frame before the one shown at each bound (its "- 1"); results depend on it.
    """
    start, end = sampling.bounds()
    duration = total / fps if times is None else times[-1] + 1 / fps
    first, last = 0, total - 1
    if start is not None:
        first = max(_frame_at(start, total, fps, times) - 1, 0)
        if first > last or start > duration + _TIME_TOLERANCE:
            raise MediaError(f"{name}: start {start:g} s is after the end of the video ({duration:.2f} s)")
    if end is not None:
        last = max(min(_frame_at(end, total, fps, times) - 1, last), first)
    return first, last


def _frame_at(second: float, total: int, fps: float, times: Sequence[float] | None) -> int:
    """Index of the frame shown at ``second``; past the end it goes on counting at the average rate."""
    if times is None:
        return int(second * fps)
    if second < times[-1]:
        return max(bisect_right(times, second) - 1, 0)
    return total - 1 + int((second - times[-1]) * fps)


def _check_duration(duration: int) -> None:
    if duration < 1:
        raise MediaError(f"a clip of {duration} frames has nothing to sample")


def _check_fps(fps: float, name: str = "video") -> None:
    if not (math.isfinite(fps) and fps > 0):
        raise MediaError(f"{name}: frame rate {fps} is not a positive number")


def _check_second(name: str, value: float | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise MediaError(f"{name} {value!r} is not a number of seconds")
    if not math.isfinite(value):
        raise MediaError(f"{name} {value} is not a number of seconds")
