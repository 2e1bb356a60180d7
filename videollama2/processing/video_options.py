"""Converts transformers' options for choosing the frames of a video into options of ``load_video``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from videollama2.errors import ConfigError
from videollama2.media.arrays import is_array
from videollama2.media.frames import frames_at_rate
from videollama2.media.video import open_video


def options_of_each(options: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Split the options of a call into those of each video; ``video_metadata`` may have one entry per video.

    Raises:
        ConfigError: the number of metadata entries differs from the number of videos.
    """
    metadata = options.get("video_metadata")
    if not isinstance(metadata, (list, tuple)):
        return [dict(options)] * count
    if len(metadata) != count:
        raise ConfigError(f"video_metadata holds {len(metadata)} entries for {count} video(s)")
    return [{**options, "video_metadata": entry} for entry in metadata]


def frames_asked_for(source: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Replace ``fps``, ``do_sample_frames`` and ``video_metadata`` by the corresponding options of ``load_video``.

    Args:
        options: options of ``load_video``, and also: ``fps``, the number of frames to use per second, limited to
            ``MAX_FRAMES`` for the clip; ``do_sample_frames``, False to use all frames; ``video_metadata`` (``fps``),
            the frame rate of a list or array of frames, which have no times of their own.

    Raises:
        ConfigError: two of them contradict each other, or metadata is given for a file, which has its own times.
    """
    own = {name: value for name, value in options.items() if name not in ("fps", "do_sample_frames", "video_metadata")}
    wanted, metadata = options.get("fps"), options.get("video_metadata")
    every = options.get("do_sample_frames") is False
    if sum((every, wanted is not None, "num_frames" in own)) > 1:
        raise ConfigError("num_frames, fps and do_sample_frames=False exclude each other")
    rate = None if metadata is None else _rate(source, metadata)
    if rate is None and not every and wanted is None:
        return own
    with open_video(source, own.get("backend", "auto")) as reader:
        # The reader assumes a frame rate of its own for lists and arrays, so bounds in seconds of the given rate are
        # converted to it.
        stretch = 1.0 if rate is None else rate / reader.fps
        bounds = [own.get(long, own.get(short)) for long, short in (("start", "s"), ("end", "e"))]
        start, end = (None if bound is None else bound * stretch for bound in bounds)
        if every:
            own["num_frames"] = reader.num_frames
        elif wanted is not None:
            last = min(reader.num_frames / reader.fps, math.inf if end is None else end)
            own["num_frames"] = _count((last - (start or 0.0)) / stretch, wanted)
    return {name: value for name, value in own.items() if name not in ("s", "e")} | {"start": start, "end": end}


def _count(seconds: float, per_second: Any) -> int:
    if isinstance(per_second, bool) or not isinstance(per_second, (int, float)) or not 0 < per_second < math.inf:
        raise ConfigError(f"fps must be a positive number, got {per_second!r}")
    return frames_at_rate(seconds, per_second)


def _rate(source: Any, metadata: Any) -> float | None:
    rate = metadata.get("fps") if isinstance(metadata, Mapping) else getattr(metadata, "fps", None)
    if rate is None:
        return None
    if not isinstance(source, (list, tuple)) and not is_array(source):
        raise ConfigError("video_metadata is for frames in a list or array; a file has its own times")
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < math.inf:
        raise ConfigError(f"video_metadata: fps must be a positive number, got {rate!r}")
    return float(rate)
