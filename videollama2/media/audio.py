"""Reads the sound of any file as the clip that a model hears. Shapes: S samples, T filter bank frames, F mel bins.

There are two ways, as published, and the same sound comes out differently:

* a sound file (:func:`read_sound`): one channel, cut or padded to 30 s at the file's own rate, then resampled as a
  whole by Fourier transform in float64, so that the padding rings;
* the sound of a video (:func:`read_video_sound`): all channels mixed and resampled by FFmpeg to 16 bits, of which
  eight windows of 2 s are joined and padded to 30 s.

Where the published way loses something, there is another beside it: ``channels="mix"``, ``windows="whole"``, and bounds
in seconds. The middle 30 s of a longer file are taken, not a random part.
"""

from __future__ import annotations

import io
import math
import numbers
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from videollama2.errors import MediaError, MediaLimitError, MissingDependencyError
from videollama2.media.arrays import is_array
from videollama2.media.limits import OWN_FILES, MediaLimits
from videollama2.media.sources import check_path, describe_source

if TYPE_CHECKING:
    import torch

    from videollama2.audio_config import AudioConfig
    from videollama2.media.pyav.sound import SoundTrack

NO_TRACK = "the video has no sound track: silence is heard"
"""Note of a :class:`Sound` that stands for a missing track."""

_KEPT_SAMPLES = 600 * 48_000
"""A longer track is decoded twice, once to learn its length, instead of being held in memory (230 MB of float64)."""

SampleSpan = tuple[int, int]
Windows = Literal["published", "whole"]


@dataclass(frozen=True)
class ClipRules:
    """The length of a clip and what it is made of; see :class:`videollama2.audio_config.AudioConfig` for the fields."""

    sampling_rate: int = 16000
    clip_seconds: float = 30.0
    num_windows: int = 8
    window_seconds: float = 2.0

    @classmethod
    def of(cls, config: AudioConfig) -> ClipRules:
        """Return the rules of a model."""
        return cls(config.sampling_rate, config.clip_seconds, config.num_windows, config.window_seconds)

    def samples(self, rate: int) -> int:
        """Return the number of samples of a clip at this rate."""
        return round(self.clip_seconds * rate)


@dataclass(frozen=True)
class SoundSampling:
    """Defines which part of a sound is heard.

    Attributes:
        start, end: bounds in seconds, of a video from its first picture; None leaves that side open.
        channels: "published" hears the first channel of a sound file (videos are always mixed), "mix" the mean of all.
        windows: "published" never reaches the end of a video's sound, "whole" spreads the windows up to it.
        crop_start: where more sound was chosen than a clip is long, the first sample heard, counted from the first one
            chosen, at the file's own rate (of a video, at the model's); None takes the middle.

    Raises:
        MediaError: a value breaks one of these rules.
    """

    start: float | None = None
    end: float | None = None
    channels: Literal["published", "mix"] = "published"
    windows: Windows = "published"
    crop_start: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("start", self.start), ("end", self.end)):
            if value is not None and (not isinstance(value, numbers.Real) or not math.isfinite(value) or value < 0):
                raise MediaError(f"{name} {value!r} of a sound is not a number of seconds from 0")
        if self.end is not None and self.end <= (self.start or 0):
            raise MediaError(f"end {self.end} s of a sound is not after its start {self.start or 0} s")
        if self.channels not in ("published", "mix"):
            raise MediaError(f"channels {self.channels!r} is neither 'published' nor 'mix'")
        if self.windows not in ("published", "whole"):
            raise MediaError(f"windows {self.windows!r} is neither 'published' nor 'whole'")
        if self.crop_start is not None and (not isinstance(self.crop_start, int) or self.crop_start < 0):
            raise MediaError(f"crop_start {self.crop_start!r} is not a number of samples from 0")


@dataclass(frozen=True, eq=False)
class Sound:
    """A clip ready for the filter bank.

    Attributes:
        wave_S: samples at the model's rate, full scale 1; float64 of a sound file, float32 of a video (published).
        spans: the parts of the track that are heard, (first, last + 1) in samples: of a sound file at its own rate, of
            a video at the model's.
        seconds: length of the track; 0 without one.
        note: what the listener should know, or None.
        name: path or description of the source.
    """

    wave_S: np.ndarray  # noqa: N815
    spans: list[SampleSpan]
    seconds: float
    note: str | None
    name: str


def read_sound(
    source: Any,
    rules: ClipRules | None = None,
    sampling: SoundSampling | None = None,
    limits: MediaLimits = OWN_FILES,
) -> Sound:
    """Read the clip of a sound file, or of the sound track of any other file.

    Args:
        source: path, bytes or a binary file in any container PyAV reads.

    Raises:
        MediaNotFoundError: the path does not exist.
        MediaLimitError: the source has no sound, none within the bounds, or breaks a limit.
        MediaError: its sound cannot be decoded.
        MissingDependencyError: PyAV is not installed.
    """
    rules, sampling = rules or ClipRules(), sampling or SoundSampling()
    track = _track(source, limits)
    rate = track.rate
    if rate is None:
        raise MediaLimitError(track.name, "has no sound track")
    length = rules.samples(rate)

    def choose(total: int) -> list[SampleSpan]:
        first, last = _bounds(total, rate, sampling, track)
        return [_crop(first, last, length, sampling.crop_start, track.name)]

    channels = "mix" if sampling.channels == "mix" else "first"
    pieces, spans, total = _cut(lambda: track.samples(channels), choose)
    wave_S = _padded(pieces, length)
    if rate != rules.sampling_rate:
        wave_S = resample(wave_S, rules.samples(rules.sampling_rate))
    return Sound(wave_S, spans, total / rate, None, track.name)


def read_video_sound(
    source: Any,
    rules: ClipRules | None = None,
    sampling: SoundSampling | None = None,
    limits: MediaLimits = OWN_FILES,
) -> Sound:
    """Read the windows of a video's sound. A video without a track is silent, and :attr:`Sound.note` says so.

    Args:
        source: as :func:`read_sound`; also what else is a video: a folder or list of frames, an array, all silent.

    Raises:
        As :func:`read_sound`, except where there is no track.
    """
    rules, sampling = rules or ClipRules(), sampling or SoundSampling()
    rate = rules.sampling_rate
    track = None if _is_frames(source) else _track(source, limits)
    if track is None or not track.is_there:
        silence_S = np.zeros(rules.samples(rate), np.float32)
        return Sound(silence_S, [], 0.0, NO_TRACK, describe_source(source))

    def choose(total: int) -> list[SampleSpan]:
        first, last = _bounds(total, rate, sampling, track)
        is_whole = sampling.windows == "whole"
        spans = window_spans(last - first, rate, rules.num_windows, rules.window_seconds, is_whole)
        return [(first + start, min(first + end, last)) for start, end in spans]

    pieces, spans, total = _cut(lambda: track.resampled(rate), choose)
    wave_S = np.concatenate(pieces).astype(np.float32) / 2.0**15
    # The windows together may be longer than the model's clip, which is then their middle (published).
    start, end = _crop(0, len(wave_S), rules.samples(rate), sampling.crop_start, track.name)
    return Sound(_padded([wave_S[start:end]], rules.samples(rate)), spans, total / rate, None, track.name)


def sound_seconds(source: Any, decode: bool = False) -> float | None:
    """Return the length of a file's sound track in seconds, or None without one.

    Args:
        decode: measure the length by decoding the track, instead of taking the one that the file states.

    Raises:
        MediaError: the file cannot be opened or decoded, or its track is empty.
    """
    track = _track(source, OWN_FILES)
    if track.rate is None:
        return None
    if not decode:
        return track.stated
    samples = sum(map(len, track.samples()))
    if not samples:
        raise MediaError(f"{track.name}: its sound track is empty (0 s)")
    return samples / track.rate


def sound_features(sound: Sound, config: AudioConfig) -> torch.Tensor:
    """Return ``fbank_1TF`` of a clip as models take it, in bfloat16: they were trained on rounded values."""
    import torch

    from videollama2.media.filter_bank import log_filter_bank

    fbank_TF = log_filter_bank(
        torch.tensor(sound.wave_S), config.sampling_rate, config.num_mel_bins, config.frame_samples
    )
    return fbank_TF.to(torch.bfloat16).unsqueeze(0)


def window_spans(
    samples: int, rate: int, num_windows: int = 8, window_seconds: float = 2.0, whole: bool = False
) -> list[SampleSpan]:
    """Spread ``num_windows`` windows over a track, (first, last + 1) in samples; the last may reach over its end.

    A track shorter than a window gives the same one each time. Source: ``ConstantClipsPerVideoSampler`` of pytorchvideo
    0.1.5, whose last window starts at 7/8 of the room there is; with ``whole`` it ends with the track.
    """
    window = Fraction(window_seconds)
    room = Fraction(max(samples / rate - window_seconds, 0.0))  # the rounding of this float is published
    steps = max(num_windows - 1, 1) if whole else num_windows
    starts = [room * i / steps for i in range(num_windows)]
    return [(math.floor(rate * start), math.floor(rate * (start + window))) for start in starts]


def resample(wave_S: np.ndarray, samples: int) -> np.ndarray:
    """Return the wave with another number of samples, by Fourier transform, as if the wave repeated for ever.

    Source: ``scipy.signal.resample``.
    """
    before, shared = len(wave_S), min(len(wave_S), samples)
    spectrum_K = np.zeros(samples // 2 + 1, np.complex128)
    spectrum_K[: shared // 2 + 1] = np.fft.rfft(wave_S)[: shared // 2 + 1]
    if shared % 2 == 0 and before != samples:
        # The frequency of half the lower rate stands for itself and its mirror image.
        spectrum_K[shared // 2] *= 2.0 if samples < before else 0.5
    return np.fft.irfft(spectrum_K, samples) * (samples / before)


def _is_frames(source: Any) -> bool:
    """Whether this is a video of single frames, which has no sound."""
    if isinstance(source, (str, os.PathLike)):
        return check_path(source).is_dir()
    return is_array(source) or isinstance(source, (list, tuple))


def _track(source: Any, limits: MediaLimits) -> SoundTrack:
    name = describe_source(source)
    if isinstance(source, (str, os.PathLike)):
        source = check_path(source)
        if source.is_dir():
            raise MediaError(f"{name}: is a folder, not a sound")
    elif isinstance(source, (bytes, bytearray, memoryview)):
        source = io.BytesIO(source)
    elif not hasattr(source, "read"):
        raise MediaError(f"{name}: a {type(source).__name__} is not a sound")
    try:
        from videollama2.media.pyav.sound import SoundTrack
    except ModuleNotFoundError as error:
        raise MissingDependencyError.of("reading sound needs PyAV", "av") from error
    return SoundTrack(source, name, limits)


def _bounds(total: int, rate: int, sampling: SoundSampling, track: SoundTrack) -> SampleSpan:
    """Return the part of a track between the bounds, in samples."""
    if total == 0:
        raise MediaLimitError(track.name, "its sound track is empty (0 s)")
    first = 0 if sampling.start is None else max(0, round((sampling.start - track.offset) * rate))
    last = total if sampling.end is None else min(total, round((sampling.end - track.offset) * rate))
    if first >= last:
        until = "its end" if sampling.end is None else f"{sampling.end:g} s"
        raise MediaLimitError(
            track.name,
            f"there is no sound between {sampling.start or 0:g} s and {until}; it is {total / rate:.2f} s long",
        )
    return first, last


def _crop(first: int, last: int, length: int, start: int | None, name: str) -> SampleSpan:
    """Return at most ``length`` samples: from ``start`` on (counted from ``first``), else the middle ones."""
    spare = last - first - length
    if start is None:
        start = max(0, spare // 2)
    elif start > max(0, spare):
        raise MediaError(f"{name}: a clip of {length} samples cannot start at sample {start} of {last - first}")
    return first + start, min(first + start + length, last)


def _cut(
    read: Callable[[], Iterable[np.ndarray]], choose: Callable[[int], list[SampleSpan]]
) -> tuple[list[np.ndarray], list[SampleSpan], int]:
    """Return parts of a track, their spans and the track's samples, where the spans depend on the track's length."""
    kept: list[np.ndarray] | None = []
    total = 0
    for piece in read():
        total += len(piece)
        if kept is not None:
            kept.append(piece)
            # The spans depend on the length, which only decoding tells for sure. A long track is decoded a second time
            # rather than kept, see _KEPT_SAMPLES.
            if total > _KEPT_SAMPLES:
                kept = None
    spans = choose(total)
    if kept is None:
        return _collect(read(), spans), spans, total
    whole_S = np.concatenate(kept)
    return [whole_S[start:end] for start, end in spans], spans, total


def _collect(pieces: Iterable[np.ndarray], spans: Sequence[SampleSpan]) -> list[np.ndarray]:
    """Return the spans of a track that comes in pieces, in one pass."""
    found: list[list[np.ndarray]] = [[] for _ in spans]
    at, stop = 0, max(end for _, end in spans)
    for piece in pieces:
        # Windows of a short track overlap, so a piece may belong to several.
        for (start, end), parts in zip(spans, found, strict=True):
            if start < at + len(piece) and at < end:
                # A copy, or the whole piece would be kept alive.
                parts.append(piece[max(start - at, 0) : end - at].copy())
        at += len(piece)
        if at >= stop:
            break
    return [np.concatenate(parts) for parts in found]


def _padded(pieces: Sequence[np.ndarray], samples: int) -> np.ndarray:
    wave_S = np.concatenate(pieces)
    return np.concatenate([wave_S, np.zeros(samples - len(wave_S), wave_S.dtype)])
