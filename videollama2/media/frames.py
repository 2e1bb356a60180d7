"""Chooses which frames of a video are looked at. The functions take and return numbers; they open no file.

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
from dataclasses import dataclass, replace
from typing import Literal

from videollama2.constants import MAX_FRAMES, MAX_NUM_FRAMES, NUM_FRAMES
from videollama2.errors import MediaError, MediaLimitError

_ROUNDING = 1e-6
"""Seconds. A middle that falls on a frame's own time must not miss it by the error of a float."""

_TIME_TOLERANCE = 1e-3
"""Seconds. Durations that people copy from a player are rounded to the millisecond."""


def uniform_indices(duration: int, num_frames: int) -> list[int]:
    """Return the middles of ``num_frames`` equal segments of the frames ``0 .. duration - 1``, halves rounded up.

    A video shorter than ``num_frames`` repeats indices. Source: published ``frame_sample(mode="uniform")``;
    computed in integers, because a half must not depend on the rounding error of a float.

    Raises:
        MediaError: ``duration`` is below 1, or ``num_frames`` is outside 1 .. ``MAX_NUM_FRAMES``.
    """
    _check_duration(duration)
    num_frames = check_num_frames(num_frames)
    return [((duration - 1) * (2 * i + 1) + num_frames) // (2 * num_frames) for i in range(num_frames)]


def fps_indices(duration: int, fps: float) -> list[int]:
    """Return one frame per second: the middle of every run of ``int(fps)`` frames, or of all if there are fewer.

    ``duration`` is a number of frames. Rates below one frame per second keep every frame. Source: published
    ``frame_sample(mode="fps")``, which also rounds the rate down (29.97 steps by 29 frames).

    Raises:
        MediaError: ``duration`` is below 1, or ``fps`` is not a positive finite number.
    """
    _check_duration(duration)
    _check_fps(fps)
    step = min(max(int(fps), 1), duration)
    return list(range(step // 2, duration, step))


def check_num_frames(num_frames: object, name: str = "num_frames") -> int:
    """Return the number as int; raise MediaError unless it is whole and from 1 to ``MAX_NUM_FRAMES``."""
    if isinstance(num_frames, bool) or not isinstance(num_frames, numbers.Integral):
        raise MediaError(f"{name} {num_frames!r} is not a whole number")
    count = int(num_frames)
    if not 1 <= count <= MAX_NUM_FRAMES:
        raise MediaError(f"{name} {count} is outside 1 to {MAX_NUM_FRAMES}")
    return count


def frames_or_own(num_frames: int | None, own: int) -> int:
    """Return the number of frames asked for, or the model's own number if none was. No other place decides this.

    Callers that may also ask for a part of a video, or for a rate, have a :class:`FrameSampling` in place of a number.
    """
    return own if num_frames is None else num_frames


@dataclass(frozen=True)
class FrameSampling:
    """Defines which part of a video is used, how many frames of it, and by which rule they are chosen.

    It is made where a caller says something about it (a flag, a field of a request, a part of a message) and handed
    down unchanged to the place where the video is open. A model fills in what was left to it with :meth:`for_model`.

    Attributes:
        num_frames: frames spread evenly over the clip; "model" leaves the number to the model (see
            :meth:`for_model`); None means one frame per second, at most ``max_frames``.
        start, end: bounds of the clip in seconds from the first frame; None leaves that side open. Equal
            bounds mean the second that begins there (published).
        fps: frames per second of the clip, instead of a number of frames: the seconds of the clip times this rate,
            rounded, are spread evenly over it as ``num_frames`` would be.
        max_frames: cap of the modes without a number; frames kept under it stay spread over the clip.
        sampling: what frames are spread over. "index" is published: over the numbers of the frames. "time": over the
            seconds of the clip, which differs where the frame rate varies (screen recordings).
        on_reversed: what a negative bound, or a start behind the end, leads to. "error" raises. "swap" is the
            published repair: negative bounds become 0, reversed bounds are exchanged.

    Raises:
        MediaError: a value breaks one of these rules.
    """

    num_frames: int | None | Literal["model"] = "model"
    start: float | None = None
    end: float | None = None
    max_frames: int = MAX_FRAMES
    sampling: Literal["index", "time"] = "index"
    on_reversed: Literal["error", "swap"] = "error"
    fps: float | None = None

    @classmethod
    def over(
        cls,
        rule: Literal["index", "time", "fps"],
        num_frames: int | Literal["model"] = "model",
        fps: float = 1.0,
        max_frames: int = MAX_FRAMES,
    ) -> FrameSampling:
        """Return what ``--sampling`` asks for: a number of frames over index or time, or frames by rate (fps).

        The rate of 1 is the published mode without a number of frames.
        """
        if rule == "fps":
            return cls(None, fps=None if fps == 1 else fps, max_frames=max_frames)
        return cls(num_frames, sampling=rule)

    @property
    def by_rate(self) -> bool:
        """Whether the number of frames depends on the length of the clip."""
        return self.num_frames is None

    def __post_init__(self) -> None:
        if self.fps is not None:
            self._take_rate(self.fps)
        if self.num_frames is not None and not self._is_for_model:
            check_num_frames(self.num_frames)
        check_num_frames(self.max_frames, "max_frames")
        for name, value, known in (
            ("on_reversed", self.on_reversed, ("error", "swap")),
            ("sampling", self.sampling, ("index", "time")),
        ):
            if value not in known:
                raise MediaError(f"{name} {value!r} is neither {known[0]!r} nor {known[1]!r}")
        for name, value in (("start", self.start), ("end", self.end)):
            _check_second(name, value)
        if self.on_reversed == "error":
            self._reject_reversed()

    def _take_rate(self, fps: float) -> None:
        if isinstance(fps, bool) or not isinstance(fps, numbers.Real) or not (math.isfinite(fps) and fps > 0):
            raise MediaError(f"fps {fps!r} is not a positive number")
        if self._is_for_model:
            object.__setattr__(self, "num_frames", None)
        if self.num_frames is not None:
            raise MediaError("num_frames and fps exclude each other")

    def for_model(self, num_frames: int = NUM_FRAMES) -> FrameSampling:
        """Return the same with the model's number of frames where none was asked for, as :func:`frames_or_own`.

        Args:
            num_frames: of the model's configuration; by default the published number.
        """
        return replace(self, num_frames=num_frames) if self._is_for_model else self

    @property
    def _is_for_model(self) -> bool:
        return isinstance(self.num_frames, str) and self.num_frames == "model"

    @property
    def count(self) -> int | None:
        """Number of frames, once a model or a caller has said it; None where the clip's length decides."""
        number = self.for_model().num_frames
        return None if number is None else int(number)

    def _reject_reversed(self) -> None:
        for name, value in (("start", self.start), ("end", self.end)):
            if value is not None and value < 0:
                raise MediaError(f"{name} {value} s is negative")
        if self.end is not None and self.start is not None and self.start > self.end:
            raise MediaError(f"start {self.start} s is after end {self.end} s")
        if self.end == 0 and self.start is None:
            raise MediaError("end 0 s leaves no part of the video")

    def bounds(self) -> tuple[float | None, float | None]:
        """Return ``(start, end)`` in seconds, put in order the published way (both must be given for that)."""
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
    duration: float | None = None,
    name: str = "video",
) -> list[int]:
    """Return the indices of the frames to read: ascending, repeated where the clip has fewer than were asked for.

    Args:
        total: number of frames of the whole video.
        fps: its average rate in frames per second.
        sampling: clip and count.
        times: seconds of every frame from the first one. Used for the bounds when the rate varies.
        step_fps: rate in which frames taken by rate are counted, when it is not ``fps``.
        duration: seconds from the first frame's appearance to the last one's end; by default the last frame lasts as
            long as an average one. Used when sampling by time.
        name: how messages call the video.

    Raises:
        MediaError: no frames, no usable rate, or a start that lies after the end of the video.
    """
    if total < 1:
        raise MediaError(f"{name}: the video has no frames")
    _check_fps(fps, name)
    if sampling.sampling == "time":
        return _select_by_time(total, fps, sampling, times, duration, name)
    # At a constant rate the published arithmetic decides to the frame, and times that a container has rounded must not
    # shift it.
    if times is not None and is_constant_rate(times, fps):
        times = None
    first, last = _clip_bounds(total, fps, sampling, times, name)
    length = last - first + 1
    count = sampling.count
    if sampling.fps is not None:
        count = frames_at_rate(length / fps, sampling.fps, sampling.max_frames)
    if count is not None:
        chosen = uniform_indices(length, count)
    else:
        chosen = _spread(fps_indices(length, step_fps or fps), sampling.max_frames)
    return [first + i for i in chosen]


def frames_at_rate(seconds: float, fps: float, most: int = MAX_FRAMES) -> int:
    """Return the number of frames that a clip of this length has at a rate: at least 1, at most ``most``."""
    return max(1, min(most, round(seconds * fps)))


def _spread(chosen: list[int], most: int) -> list[int]:
    """Return at most this many of the indices, evenly spread over them."""
    return chosen if len(chosen) <= most else [chosen[i] for i in uniform_indices(len(chosen), most)]


def _select_by_time(
    total: int,
    fps: float,
    sampling: FrameSampling,
    times: Sequence[float] | None,
    duration: float | None,
    name: str,
) -> list[int]:
    """Return the frames that are on screen in the middle of equal stretches of time.

    The stretches divide the clip; by rate, each is ``1 / fps`` seconds long, or a little less or more where the clip is
    no whole number of them.
    """
    times = [i / fps for i in range(total)] if times is None else times
    duration = times[-1] + 1 / fps if duration is None else duration
    start, end = sampling.bounds()
    start = start or 0.0
    if start > duration + _TIME_TOLERANCE:
        raise _starts_late(start, duration, name)
    end = min(duration if end is None else end, duration)
    # A start within the tolerance behind the end means the end.
    start = min(start, end)
    count = sampling.count
    if count is None:
        count = frames_at_rate(end - start, sampling.fps or 1.0, sampling.max_frames)
    middles = [start + (end - start) * (2 * i + 1) / (2 * count) for i in range(count)]
    return [max(bisect_right(times, second + _ROUNDING) - 1, 0) for second in middles]


def is_constant_rate(times: Sequence[float], fps: float) -> bool:
    """Return whether every frame lies within half a frame of where a constant rate of ``fps`` puts it."""
    return all(abs(time * fps - i) <= 0.5 for i, time in enumerate(times))


def _clip_bounds(
    total: int, fps: float, sampling: FrameSampling, times: Sequence[float] | None, name: str
) -> tuple[int, int]:
    """Return the first and the last frame of the clip, both included.

    The published code takes the frame before the one shown at each bound (its "- 1"); results depend on it.
    """
    start, end = sampling.bounds()
    duration = total / fps if times is None else times[-1] + 1 / fps
    first, last = 0, total - 1
    if start is not None:
        # Published: the bound is turned into a number of frames, and the frame before it is taken.
        first = max(_frame_at(start, total, fps, times) - 1, 0)
        if first > last or start > duration + _TIME_TOLERANCE:
            raise _starts_late(start, duration, name)
    if end is not None:
        last = max(min(_frame_at(end, total, fps, times) - 1, last), first)
    return first, last


def _starts_late(start: float, duration: float, name: str) -> MediaLimitError:
    return MediaLimitError(name, f"start {start:g} s is after the end of the video ({duration:.2f} s)")


def _frame_at(second: float, total: int, fps: float, times: Sequence[float] | None) -> int:
    """Return the index of the frame shown at ``second``; past the end, count on at the average rate."""
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


def _check_second(name: str, value: float | None, unit: str = "seconds") -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise MediaError(f"{name} {value!r} is not a number of {unit}")
    if not math.isfinite(value):
        raise MediaError(f"{name} {value} is not a number of {unit}")
