"""Draws strips of small pictures and waveforms that show what a model sees and hears.

The pictures are embedded in the page as ``data:`` URLs, so there are no files that other visitors could request.
"""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from videollama2.inference.lru import LruStore
from videollama2.media.audio import Sound
from videollama2.media.kinds import AUDIO, IMAGE, VIDEO
from videollama2.serve.page.conversation import Medium
from videollama2.serve.page.waveform import draw_sound
from videollama2.serve.untrusted_media.parts import sound_options

EDGE = 144
"""Pixels of the shorter edge. Pictures are drawn at half this size, so that they are sharp on a phone."""

_MAX_STRIPS = 64

EMPTY = (
    '<div class="vl-frames vl-frames-empty">What the model sees and hears appears here once there is a video, a '
    "picture or a sound.</div>"
)


class MediaDecoder(Protocol):
    """Decodes untrusted media; implemented by :class:`videollama2.serve.untrusted_media.sandbox.Sandbox`."""

    async def read_timed(self, kind: str, source: Any, options: Mapping[str, Any] | None = None) -> Any: ...

    async def hear(self, source: Any, options: Mapping[str, Any] | None = None) -> Sound: ...


class Thumbnails:
    """Draws strips of frames, and caches the latest ones.

    Args:
        reader: reader that decodes media in another process.
    """

    def __init__(self, reader: MediaDecoder) -> None:
        self.reader = reader
        self._strips: LruStore[tuple[Any, ...], str] = LruStore(_MAX_STRIPS)

    async def strip(self, medium: Medium, default_frames: int) -> str:
        """Return the HTML of one medium's strip; below the frames of a video with its sound is a waveform.

        Args:
            default_frames: the model's number of frames, used if the medium does not give one.

        Raises:
            VideoLlama2Error: the medium cannot be decoded.
        """
        options = dict(medium.options)
        if medium.kind == AUDIO:
            return await self._waveform(medium.path, options)
        its_sound = sound_options(options) if options.pop("use_audio", False) else None
        if medium.kind == VIDEO:
            options.setdefault("num_frames", default_frames)
        key = medium.kind, medium.path, tuple(sorted(options.items()))
        strip = self._strips.get(key)
        if strip is None:
            decoded = await self.reader.read_timed(medium.kind, Path(medium.path), options)
            pictures = [decoded.frames] if medium.kind == IMAGE else list(decoded.frames)
            strip = await asyncio.to_thread(_draw, medium, options, pictures, decoded.times)
            self._strips.put(key, strip)
        return strip if its_sound is None else strip + await self._waveform(medium.path, its_sound)

    async def _waveform(self, path: str, options: Mapping[str, Any]) -> str:
        sound = await self.reader.hear(Path(path), options)
        return await asyncio.to_thread(draw_sound, sound, bool(options.get("of_video")))


def _draw(medium: Medium, options: Mapping[str, Any], frames: Sequence[np.ndarray], times: Sequence[float]) -> str:
    """Return the strip's HTML. Each frame is labelled with its time, or with its number if there are no times."""
    cells = []
    for number, frame_HWC in enumerate(frames):
        label, caption = "picture", ""
        if medium.kind == VIDEO:
            is_timed = len(times) == len(frames)
            shown = clock(times[number]) if is_timed else str(number + 1)
            label = f"frame {number + 1}" + (f" at {shown}" if is_timed else "")
            caption = f"<figcaption>{shown}</figcaption>"
        picture = f'<img src="{data_url(frame_HWC)}" alt="{label}" draggable="false">'
        cells.append(f"<figure>{picture}{caption}</figure>")
    title = _title(medium, options, len(cells))
    return (
        f'<section class="vl-frames" data-frames="{len(cells)}"><header>{title}</header>'
        f'<div class="vl-strip" tabindex="0" aria-label="{escape(title)}">{"".join(cells)}</div></section>'
    )


def clock(seconds: float) -> str:
    """Format a time as video players do, with tenths below a minute: ``3.5 s``, ``2:05``, ``1:02:05``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _title(medium: Medium, options: Mapping[str, Any], count: int) -> str:
    if medium.kind == IMAGE:
        return "1 picture"
    start, end = options.get("start"), options.get("end")
    where = "the whole video"
    if start is not None or end is not None:
        where = f"{start or 0:g} s to " + ("the end" if end is None else f"{end:g} s")
    return f"{count} frame{'s' if count > 1 else ''} from {where}"


def data_url(frame_HWC: np.ndarray) -> str:
    """Return a frame as a JPEG of at most :data:`EDGE` pixels on its shorter edge and four times that on the other."""
    picture = Image.fromarray(np.ascontiguousarray(frame_HWC))
    scale = min(EDGE / min(picture.size), 4 * EDGE / max(picture.size))
    if scale < 1:
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
