"""Decodes the sound of a file through PyAV (FFmpeg), piece by piece: memory does not grow with its length."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import av
import av.error
import numpy as np
from av.stream import Discard

from videollama2.errors import MediaError, MediaLimitError
from videollama2.media.limits import OWN_FILES, MediaLimits
from videollama2.media.pyav.container import decoder_options, is_much_less, open_container
from videollama2.media.readers import MediaWarning

MAX_SECONDS = 6 * 3600
"""Longest sound that is decoded, in seconds, whatever the limits."""

# What one unit of each sample format is worth, so that full scale is 1.
_FULL_SCALE = {"u1": 2.0**7, "i2": 2.0**15, "i4": 2.0**31, "i8": 2.0**63, "f4": 1.0, "f8": 1.0}

_ROUNDING, _AUDIBLE_GAP = 0.005, 0.1  # seconds

Channels = Literal["first", "mix"]


class SoundTrack:
    """The sound track of a file: the one with the most channels where there are several (FFmpeg's choice).

    Attributes:
        name: how messages call the file.
        is_there: whether the file has a sound track.
        rate: samples per second; None without a track.
        offset: seconds from the first picture to the first sample; 0 without a picture.
        stated: seconds that the file says the track is long; 0 if it says nothing.

    Args:
        source: path of an existing file, or a binary file that can seek (it is not closed here).

    Raises:
        MediaLimitError: the file has too many streams, or its track breaks another limit.
        MediaError: the file cannot be opened, or there is no decoder for its track.
    """

    def __init__(self, source: Any, name: str, limits: MediaLimits = OWN_FILES) -> None:
        self.name, self._source, self._limits = name, source, limits
        with self._open() as container:
            stream = container.streams.best("audio")
            self.is_there = stream is not None
            self.rate: int | None = None
            self.offset = self.stated = 0.0
            if stream is not None:
                self.offset, self.stated = _offset(container, stream), _stated(container, stream)
                self.rate = self._checked_rate(stream)

    def _checked_rate(self, stream: Any) -> int:
        if stream.codec_context is None:
            raise MediaError(f"{self.name}: there is no decoder for its sound")
        if not stream.rate:
            raise MediaError(f"{self.name}: the sampling rate of its sound is unknown; the file is damaged")
        self._limits.check_sound(stream.rate, stream.channels or 1, self.name)
        self._limits.check_duration(self.stated, self.name, "the sound")
        return stream.rate

    def samples(self, channels: Channels = "first") -> Iterator[np.ndarray]:
        """Yield pieces of the track at its own rate, float64, full scale 1.

        Args:
            channels: the first one alone, or the mean of all.
        """
        for frame in self._frames():
            if frame.sample_rate != self.rate:
                raise MediaError(
                    f"{self.name}: its sound changes from {self.rate} to {frame.sample_rate} samples per second"
                )
            yield _to_float(frame, channels)

    def resampled(self, rate: int) -> Iterator[np.ndarray]:
        """Yield pieces of the track, all channels mixed into one by FFmpeg, int16 at another rate.

        Times that the container gives are ignored, as ``ffmpeg -f s16le`` ignores them: no gap is filled.
        """
        resampler = av.AudioResampler("s16", "mono", rate)
        for frame in self._frames():
            frame.pts = None
            yield from self._resample(resampler, frame)
        yield from self._resample(resampler, None)

    def _resample(self, resampler: av.AudioResampler, frame: Any) -> Iterator[np.ndarray]:
        try:
            pieces = resampler.resample(frame)
        except (av.error.FFmpegError, ValueError) as error:
            raise MediaError(
                f"{self.name}: its sound changes its form in the middle and cannot be resampled"
            ) from error
        for piece in pieces:
            yield piece.to_ndarray()[0]

    def _open(self) -> Any:
        container = open_container(self._source, self.name, self._limits)
        count = len(container.streams)
        if count > self._limits.max_streams:
            container.close()
            raise MediaLimitError(self.name, f"has {count} streams, more than {self._limits.max_streams}")
        return container

    def _frames(self) -> Iterator[Any]:
        """Yield decoded frames in order; in the end, judge what was lost on the way."""
        with self._open() as container:
            stream = container.streams.best("audio")
            for other in container.streams:
                other.discard = Discard.default if other is stream else Discard.all
            # One thread is enough: sound decodes far faster than it plays.
            stream.codec_context.thread_count = 1
            stream.codec_context.options = decoder_options(self._limits)
            progress = _Progress()
            for frames, is_damaged in _decoded(container, stream):
                for frame in frames:
                    progress.add(frame)
                    self._check_progress(progress.seconds, frame)
                    yield frame
                if is_damaged:
                    progress.damaged_since = progress.seconds
            stated = _stated_seconds(stream)
        self._judge(progress, stated)

    def _check_progress(self, seconds: float, frame: Any) -> None:
        """Check what was decoded against the limits: headers may state less, and a stream may change on the way."""
        if seconds > MAX_SECONDS:
            raise MediaLimitError(self.name, f"its sound is longer than {MAX_SECONDS / 3600:g} hours")
        self._limits.check_duration(seconds, self.name, "the sound")
        self._limits.check_sound(frame.sample_rate, len(frame.layout.channels), self.name)

    def _judge(self, progress: _Progress, stated: float) -> None:
        read, lost = progress.seconds, progress.lost
        if progress.is_broken and is_much_less(read, read + lost):
            raise MediaError(f"{self.name}: {lost:.2f} s of its sound cannot be decoded; {read:.2f} s can")
        if progress.is_broken or lost > _AUDIBLE_GAP:
            problem = f"{lost:.2f} s of sound are missing; the sound behind them comes earlier"
        elif progress.damaged_since is not None or is_much_less(read, stated):
            problem = f"the file is damaged or truncated; the {read:.2f} s of sound that can be read are used"
        else:
            return
        warnings.warn(f"{self.name}: {problem}", MediaWarning, stacklevel=2)


@dataclass
class _Progress:
    """The part of a track that was decoded.

    Attributes:
        seconds: sound so far.
        lost: seconds missing between frames, by their times.
        damaged_since: where something could not be decoded and no sound has come since.
        is_broken: whether sound came after such a place.
    """

    seconds: float = 0.0
    lost: float = 0.0
    damaged_since: float | None = None
    is_broken: bool = False
    _expected: float | None = None

    def add(self, frame: Any) -> None:
        """Count a frame."""
        seconds = frame.samples / frame.sample_rate
        # Damage at the end of a file is a file that was cut off, which is usable. Sound behind the damage means that a
        # part in the middle is gone.
        if self.damaged_since is not None:
            self.is_broken, self.damaged_since = True, None
        if frame.pts is not None:
            time = float(frame.pts * frame.time_base)
            # Containers round times, some to milliseconds.
            if self._expected is not None and time - self._expected > _ROUNDING:
                self.lost += time - self._expected
            self._expected = time + seconds
        self.seconds += seconds


def _decoded(container: Any, stream: Any) -> Iterator[tuple[list[Any], bool]]:
    """Yield for each packet its frames, and whether something could not be read or decoded."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except (av.error.FFmpegError, IndexError):  # PyAV raises the latter when a stream appears on the way
            yield _flushed(stream), False
            yield [], True
            return
        try:
            yield stream.decode(packet), False
        except av.error.EOFError:
            return
        except av.error.FFmpegError:
            yield [], True


def _stated_seconds(stream: Any) -> float:
    return float(stream.duration * stream.time_base) if stream.duration else 0.0


def _flushed(stream: Any) -> list[Any]:
    try:
        return stream.decode(None)
    except av.error.FFmpegError:
        return []


def _to_float(frame: Any, channels: Channels) -> np.ndarray:
    values_CS = frame.to_ndarray()
    if not frame.format.is_planar:
        values_CS = values_CS.reshape(-1, len(frame.layout.channels)).T
    kind = values_CS.dtype.str[1:]
    chosen_CS = values_CS[:1] if channels == "first" else values_CS
    # Unsigned samples have silence in the middle of their range.
    centre = _FULL_SCALE[kind] if kind.startswith("u") else 0.0
    return ((chosen_CS.astype(np.float64) - centre) / _FULL_SCALE[kind]).mean(axis=0)


def _stated(container: Any, stream: Any) -> float:
    return _stated_seconds(stream) or (container.duration / av.time_base if container.duration else 0.0)


def _offset(container: Any, stream: Any) -> float:
    pictures = container.streams.best("video")
    if pictures is None or pictures.start_time is None or stream.start_time is None:
        return 0.0
    return float(stream.start_time * stream.time_base - pictures.start_time * pictures.time_base)
