"""SubRip subtitles, and which of them go with the frames that a model sees.

``published_lines`` reproduces the published choice: its own frame sampler, a cue repeated for every frame it covers,
bounds excluded. ``seen_lines`` takes the cues of the very frames that the model is shown, each once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from videollama2.errors import DataError
from videollama2.media.frames import FrameSampling, select_frames
from videollama2.media.video import open_video

_TIME = re.compile(r"(\d{1,2}):(\d{1,2}):(\d{1,2})[.,](\d{1,3})")
_NUMBER_OF_NEXT = re.compile(r"\n+ *\d+ *$")
_STYLE = re.compile(r"< *(/?) *([isub]) *>")
_TAG = re.compile(r"< */? *[a-zA-Z][^>]*>")


@dataclass(frozen=True)
class Cue:
    """Text shown between ``start`` and ``end``, in milliseconds. Lines of one cue are joined by blanks.

    ``published_text``: as the published code's reader gives it, which turns tags of italics and the like into braces.
    """

    start: int
    end: int
    text: str
    published_text: str


def read_srt(path: Path) -> list[Cue]:
    """The cues of a file, in its order.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or holds no cue though it is not empty.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as subtitles in UTF-8 ({error})") from error
    spans: list[tuple[int, int]] = []
    bodies: list[list[str]] = []
    for line in content.split("\n"):
        times = _TIME.findall(line)
        if len(times) == 2:
            spans.append((_milliseconds(times[0]), _milliseconds(times[1])))
            bodies.append([])
        elif bodies:
            bodies[-1].append(line)
    if content.strip() and not spans:
        raise DataError(f"{path}: holds no line like 00:00:01,000 --> 00:00:02,500")
    return [_cue(*span, body) for span, body in zip(spans, bodies, strict=True)]


def published_lines(cues: Sequence[Cue], total: int, fps: float, num_frames: int) -> list[str]:
    """Texts for a video of ``total`` frames at ``fps``, one for each of ``num_frames`` frames that has a cue."""
    lines = []
    for frame in _published_frames(total, num_frames):
        time = round(frame * 1000 / fps)
        cue = next((cue for cue in cues if cue.start < time < cue.end), None)
        if cue is not None and cue.published_text.strip():
            lines.append(cue.published_text)
    return lines


def seen_lines(cues: Sequence[Cue], times: Sequence[float]) -> list[str]:
    """Texts of the cues shown at ``times`` (seconds), in order, each once."""
    shown = [cue for cue in cues if any(cue.start <= 1000 * time <= cue.end for time in times)]
    return [cue.text for cue in shown if cue.text]


def subtitles_for(video: Path, cues: Sequence[Cue], num_frames: int, published: bool) -> str:
    """The subtitles that go with ``num_frames`` frames of a video, a line each.

    Raises:
        MediaError: the video cannot be opened.
    """
    with open_video(video) as reader:
        if published:
            return "\n".join(published_lines(cues, reader.num_frames, reader.fps, num_frames))
        sampling = FrameSampling(num_frames=num_frames)
        times = reader.times
        chosen = select_frames(reader.num_frames, reader.fps, sampling, times=times, name=reader.name)
        return "\n".join(seen_lines(cues, [times[index] for index in chosen]))


def _published_frames(total: int, count: int) -> list[int]:
    """Middles of segments whose ends are rounded first; halves round to even."""
    segment = (total - 1) / count
    return [(round(segment * index) + round(segment * (index + 1))) // 2 for index in range(count)]


def _milliseconds(stamp: tuple[str, ...]) -> int:
    hours, minutes, seconds, fraction = stamp
    return ((int(hours) * 60 + int(minutes)) * 60 + int(seconds)) * 1000 + int(fraction.ljust(3, "0"))


def _cue(start: int, end: int, body: list[str]) -> Cue:
    lines = [line.rstrip("\r") for line in body]
    blank_then_number = len(lines) > 1 and not any(map(str.strip, lines[:-1])) and lines[-1].strip().isdigit()
    text = "" if blank_then_number else _NUMBER_OF_NEXT.sub("", "\n".join(lines).strip())
    styled = _STYLE.sub(lambda tag: f"{{\\{tag[2]}{0 if tag[1] else 1}}}", text)
    published = _TAG.sub("", styled).replace("\n", " ")
    plain = " ".join(_TAG.sub("", text).split())
    return Cue(start, end, plain, published)
