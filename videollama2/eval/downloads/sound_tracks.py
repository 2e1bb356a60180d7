"""Counts the videos of a benchmark that have a sound track, for benchmarks whose questions are about sound."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from videollama2.errors import MediaError
from videollama2.eval.coverage import Supplement
from videollama2.eval.items import Item


def sound_tracks(items: Sequence[Item], data: Path) -> Supplement | None:
    """Return how many of the videos whose sound is asked about have a track, or None if no question is about sound.

    Every file is opened. Missing files are left out, and those that cannot be opened count as videos without a track.
    """
    names = dict.fromkeys(item.media for item in items if item.use_audio)
    if not names:
        return None
    present = [name for name in names if (data / name).is_file()]
    return Supplement("sound tracks", sum(_has_track(data / name) for name in present), len(present))


def _has_track(path: Path) -> bool:
    from videollama2.media.pyav.sound import SoundTrack

    try:
        return SoundTrack(path, str(path)).is_there
    except MediaError:
        return False
