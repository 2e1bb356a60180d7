"""Chooses the subtitles of a prompt: finds and reads their files, and picks the cues of the frames a model sees.

``published_lines`` reproduces the published choice, which has a frame sampler of its own, repeats a cue for every frame
that it covers, and excludes the bounds of cues. ``seen_lines`` takes the cues of exactly the frames that the model
sees, each of them once, as plain words.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from videollama2.errors import DataError
from videollama2.media.frames import FrameSampling, select_frames
from videollama2.media.video import open_video

FOLDERS = ("subtitles", "subtitle")
ENDINGS = (".srt", ".en.srt", ".vtt", ".en.vtt")
"""Suffixes of subtitle files, in order of preference; see :func:`split_ending` for their spellings."""

_ENDING = re.compile(r"(?:(\.en)(?:-[a-z]+)?)?(\.srt|\.vtt)$", re.I)

_TIME = re.compile(r"(\d{1,2}):(\d{1,2}):(\d{1,2})[.,](\d{1,3})")
_TIME_OF_VTT = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})")
_NUMBER_OF_NEXT = re.compile(r"\n+ *\d+ *$")
_STYLE = re.compile(r"< *(/?) *([isub]) *>")
_TAG = re.compile(r"< */? *[a-zA-Z][^>]*>")
_MARKUP = re.compile(r"< */? *[a-zA-Z][^>]*>|<[\d:.]+>|\{\\[^}]*\}")  # this includes times within a cue, and {\an8}
_BREAK = re.compile(r"< *br */? *>|\\[Nnh]", re.I)
_UNSEEN = re.compile("[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")


class SubtitleFolder:
    """A finder of the subtitle files of videos. The folders are listed only once."""

    def __init__(self, data: Path, folders: Sequence[str] = FOLDERS) -> None:
        self._paths: dict[str, Path] = {}
        for folder in folders:
            entries = sorted((data / folder).iterdir()) if (data / folder).is_dir() else ()
            for path in entries:
                stem, ending = split_ending(path.name)
                if ending and path.is_file():
                    self._paths.setdefault(f"{stem}{ending}", path)

    def find(self, stem: str) -> Path | None:
        """Return the subtitle file of the video with this name, or None."""
        return next((path for end in ENDINGS if (path := self._paths.get(stem + end))), None)


def split_ending(name: str) -> tuple[str, str]:
    """Split a name such as ``ID.EN-US.SRT`` into ``ID`` and ``.en.srt``; the suffix is empty for other kinds of file.

    Suffixes may be in upper or lower case, and English may be that of a region.
    """
    found = _ENDING.search(name)
    return (name, "") if found is None else (name[: found.start()], "".join(filter(None, found.groups())).lower())


def check_subtitles(paths: Iterable[Path]) -> None:
    """Read every file, so that an unusable one is reported before the first question is asked.

    Raises:
        DataError: files cannot be used; the message names the first one, its problem, and the number of others.
    """
    problems = []
    for path in dict.fromkeys(paths):
        try:
            read_subtitles(path)
        except DataError as error:
            problems.append(str(error))
    if problems:
        more = f" (and {len(problems) - 1} more subtitle files cannot be used)" if len(problems) > 1 else ""
        raise DataError(problems[0] + more)


@dataclass(frozen=True)
class Cue:
    """A text shown between ``start`` and ``end``, in milliseconds. The lines of a cue are joined by blanks.

    ``published_text`` is the text of the published code's reader, which turns tags such as italics into braces.
    """

    start: int
    end: int
    text: str
    published_text: str


def read_subtitles(path: Path) -> list[Cue]:
    """Read the cues of a SubRip or WebVTT file, in the file's order.

    Raises:
        DataError: the file cannot be read, is neither UTF-8 nor marked as UTF-16, or holds text but no cue.
    """
    content = _text(path)
    is_vtt = content.lstrip().startswith("WEBVTT") or path.suffix.lower() == ".vtt"
    spans: list[tuple[int, int]] = []
    bodies: list[list[str]] = []
    for line in content.split("\n"):
        times = _times(line, is_vtt)
        if len(times) == 2:
            spans.append((_milliseconds(times[0]), _milliseconds(times[1])))
            bodies.append([])
        elif bodies:
            bodies[-1].append(line)
    if content.strip() and not spans and content.strip() != "WEBVTT":
        raise DataError(f"{path}: holds no line like 00:00:01,000 --> 00:00:02,500")
    if is_vtt:  # a blank line ends a cue; text between it and the next times is a name or a note
        bodies = [_until_blank(body) for body in bodies]
    return [_cue(*span, body) for span, body in zip(spans, bodies, strict=True)]


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read as subtitles ({error.strerror or error})") from error
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: cannot be read as subtitles: it is not UTF-8 ({error.reason} at byte {error.start}); convert it, "
            "for instance with iconv -f latin1 -t utf-8"
        ) from error


def _times(line: str, is_vtt: bool) -> list[tuple[str, str, str, str]]:
    if "-->" in line:
        found = _TIME.findall(line)
        return found if len(found) == 2 else _TIME_OF_VTT.findall(line)
    return [] if is_vtt else _TIME.findall(line)


def _until_blank(body: list[str]) -> list[str]:
    for index, line in enumerate(body):
        if not line.strip():
            return body[:index]
    return body


def published_lines(cues: Sequence[Cue], total: int, fps: float, num_frames: int) -> list[str]:
    """Return the texts for a video of ``total`` frames at ``fps``, one for each of ``num_frames`` frames with a cue."""
    lines = []
    for frame in _published_frames(total, num_frames):
        time = round(frame * 1000 / fps)
        # The first cue whose open interval holds the time, as the published code chooses; ours below include both ends.
        cue = next((cue for cue in cues if cue.start < time < cue.end), None)
        if cue is not None and cue.published_text.strip():
            lines.append(cue.published_text)
    return lines


def seen_lines(cues: Sequence[Cue], times: Sequence[float]) -> list[str]:
    """Return the texts of the cues shown at ``times`` (seconds), in order and each once."""
    shown = [cue for cue in cues if any(cue.start <= 1000 * time <= cue.end for time in times)]
    return [cue.text for cue in shown if cue.text]


def subtitles_for(
    video: Path, cues: Sequence[Cue], num_frames: int, published: bool, sampling: FrameSampling | None = None
) -> str:
    """Return the subtitles for ``num_frames`` frames of a video, one cue per line.

    Unless ``published``, they are those of the frames that ``sampling`` chooses (by default ``num_frames`` by index).

    Raises:
        MediaError: the video cannot be opened.
    """
    with open_video(video) as reader:
        if published:
            return "\n".join(published_lines(cues, reader.num_frames, reader.fps, num_frames))
        times = reader.times
        chosen = select_frames(
            reader.num_frames,
            reader.fps,
            sampling or FrameSampling(num_frames=num_frames),
            times=times,
            step_fps=reader.step_fps,
            duration=reader.duration,
            name=reader.name,
        )
        return "\n".join(seen_lines(cues, [times[index] for index in chosen]))


def _published_frames(total: int, count: int) -> list[int]:
    """Return the middle frames of ``count`` segments, whose ends are rounded before (halves round to even)."""
    # Not the frames that the model sees: the published code rounds the ends of the segments for subtitles, and their
    # middles for frames.
    segment = (total - 1) / count
    return [(round(segment * index) + round(segment * (index + 1))) // 2 for index in range(count)]


def _milliseconds(stamp: tuple[str, ...]) -> int:
    hours, minutes, seconds, fraction = stamp
    return ((int(hours or 0) * 60 + int(minutes)) * 60 + int(seconds)) * 1000 + int(fraction.ljust(3, "0"))


def _cue(start: int, end: int, body: list[str]) -> Cue:
    lines = [line.rstrip("\r") for line in body]
    blank_then_number = len(lines) > 1 and not any(map(str.strip, lines[:-1])) and lines[-1].strip().isdigit()
    text = "" if blank_then_number else _NUMBER_OF_NEXT.sub("", "\n".join(lines).strip())
    styled = _STYLE.sub(lambda tag: f"{{\\{tag[2]}{0 if tag[1] else 1}}}", text)
    published = _TAG.sub("", styled).replace("\n", " ")
    return Cue(start, end, _plain(text), published)


def _plain(text: str) -> str:
    """Return the words of a text: without tags, entities and invisible characters, and with single blanks."""
    shown = html.unescape(_MARKUP.sub("", _BREAK.sub(" ", text)))
    return " ".join(_UNSEEN.sub("", shown).split())
