"""Draws the sound that a model hears as a waveform, an SVG that is embedded in the page."""

from __future__ import annotations

from html import escape
from itertools import pairwise

import numpy as np

from videollama2.media.audio import Sound

BARS = 120
_HEIGHT = 40
_QUIET = 1e-3  # 60 dB below full scale; resampling leaves less in the padding
_LOUDEST_GAIN = 8.0


def draw_sound(sound: Sound, of_video: bool) -> str:
    """Return the HTML of a sound: a bar for each moment, and a text that says which part of it is heard.

    The padding behind a sound that is shorter than a clip is not drawn. Quiet sounds are drawn up to eight times as
    high as they are, so that something is seen.

    Args:
        of_video: whether it is the sound of a video, which is heard in windows.
    """
    title = title_of(sound, of_video)
    levels = bar_levels(sound)
    gain = min(1.0 / max(levels.max(), _QUIET), _LOUDEST_GAIN)
    bars = []
    for number, level in enumerate(levels):
        height = max(1.0, min(1.0, level * gain) * _HEIGHT)
        bars.append(f"M{number * 3 + 1.5} {(_HEIGHT - height) / 2:.1f}v{height:.1f}")
    picture = (
        f'<svg viewBox="0 0 {len(levels) * 3} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)}"><path d="{"".join(bars)}"/></svg>'
    )
    silent = " vl-silent" if sound.note is not None else ""
    return f'<section class="vl-frames vl-wave{silent}"><header>{escape(title)}</header>{picture}</section>'


def bar_levels(sound: Sound) -> np.ndarray:
    """Return the highest amplitude within each of :data:`BARS` equal parts of the clip, without the padding behind."""
    loudness_S = np.abs(sound.wave_S)
    audible = np.flatnonzero(loudness_S > _QUIET)
    heard_S = loudness_S[: audible[-1] + 1] if len(audible) else loudness_S
    edges = np.linspace(0, len(heard_S), BARS + 1).astype(int)
    return np.array([heard_S[start : max(end, start + 1)].max(initial=0.0) for start, end in pairwise(edges)])


def title_of(sound: Sound, of_video: bool) -> str:
    """Return which part of a track is heard, in words."""
    if sound.note is not None:
        return "no sound track: silence is heard"
    if of_video and sound.seconds > 2:
        windows = "one window" if len(sound.spans) == 1 else f"{len(sound.spans)} windows"
        return f"{sound.seconds:.1f} s of sound, heard in {windows}"
    return f"{sound.seconds:.1f} s of sound"
