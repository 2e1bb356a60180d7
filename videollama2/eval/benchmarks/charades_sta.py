"""Charades-STA: find the span of a video in which the event of a sentence happens (arXiv 1705.02101).

Answers are not just right or wrong: the span read from an answer is compared with the true one by their overlap
(intersection over union). The results are the mean overlap and the shares of answers with an overlap of at least 0.3,
0.5 and 0.7 (R@1).
"""

from __future__ import annotations

import re
from pathlib import Path

from videollama2.errors import DataError
from videollama2.eval.annotations import AnnotationEntry, find_annotations, read_entries, why_unreadable
from videollama2.eval.downloads.video_files import VideoFolder
from videollama2.eval.items import PUBLISHED, Benchmark, Item, Parsed
from videollama2.eval.measures import Measure
from videollama2.eval.reading.strict import after_thinking
from videollama2.eval.samples import Reading

OVERLAPS = (0.3, 0.5, 0.7)
_PRE = (
    "Please find the visual event described by a sentence in the video, determining its starting and ending times. "
    "The format should be: 'The event happens in the start time - end time'. For example, The event 'person turn a "
    "light on' happens in the 24.3 - 30.4 seonds. Now I will give you the textual sentence: "
)
_POST = "Please return its start time and end time."
_LINE = re.compile(r"(?P<video>\S+) (?P<start>\d+(?:\.\d+)?) (?P<end>\d+(?:\.\d+)?)##(?P<sentence>.+)")
_EXAMPLE = "a specific example is : 20.8 - 30.0 seconds"
_SPAN = re.compile(r"(\d+(?:\.\d*)?)\s*-\s*(\d+(?:\.\d*)?)")
_NUMBER = re.compile(r"\b\d+\.\d+\b|\b\d+\b")
_KEYWORDS = ("start", "end", "happen")

TimeSpan = tuple[float, float]


def overlap(a: TimeSpan, b: TimeSpan) -> float:
    """Return the intersection over union of two spans of time, from 0 to 1."""
    union = max(a[1], b[1]) - min(a[0], b[0])
    return max(min(a[1], b[1]) - max(a[0], b[0]), 0.0) / union if union > 0 else 0.0


def _mean_overlap(reading: Reading) -> float | None:
    return reading.value


def _at_least(share: float) -> Measure:
    def reached(reading: Reading) -> float | None:
        return None if reading.value is None else float(reading.value >= share)

    return Measure(f"R@1, IoU >= {share}", reached)


class CharadesSTA(Benchmark):
    """See the module.

    The prompt and the ``published`` reading are those of lmms-eval; if no span can be read, the overlap is 0.
    ``strict`` reads a span only if the answer holds exactly one.
    """

    name = "charades_sta"
    title = "Charades-STA"
    folder = "charades_sta"
    questions = 3720
    source = "https://github.com/jiyanggao/TALL; https://huggingface.co/datasets/lmms-lab/charades_sta"
    layout = """\
charades_sta_test.txt    lines "VIDEO start end##sentence", times in seconds;
                         in its place, of lmms-lab/charades_sta: data/test-*.parquet
Charades_v1_480/         VIDEO.mp4 (or another kind of video)"""
    annotations = ("charades_sta_test.txt", "data/test-*.parquet")
    max_new_tokens = 50
    measures = (Measure("mean IoU", _mean_overlap, proportion=False), *(_at_least(share) for share in OVERLAPS))

    def load(self, data: Path) -> list[Item]:
        """See :class:`Benchmark`."""
        path, *_ = find_annotations(data, *self.annotations)
        videos = VideoFolder(data, "Charades_v1_480", "videos")
        entries = read_entries(path) if path.suffix == ".parquet" else _lines(path)
        return [_item(entry, index, videos) for index, entry in enumerate(entries)]

    def parse(self, item: Item, output: str, protocol: str) -> Parsed:
        """See :class:`Benchmark`; the value read is a span in seconds."""
        return Parsed(published_span(output) if protocol == PUBLISHED else strict_span(output))

    def read(self, item: Item, output: str, protocol: str) -> Reading:
        """See :class:`Benchmark`; the reading's ``value`` is the overlap."""
        span = self.parse(item, output, protocol).value
        value = overlap(span, item.answer) if span else 0.0
        return Reading(list(span) if span else None, False, value >= OVERLAPS[1], value)


def published_span(output: str) -> TimeSpan | None:
    """Read a span as lmms-eval does.

    It is the first "m - n" (or "m to n"), else the first numbers of the first two sentences that speak of start, end or
    happening. The third form of lmms-eval, hours:minutes:seconds, is never reached there, since the hours already count
    as a number.
    """
    text = output.lower().replace(_EXAMPLE, "").replace("to", "-")
    spans = [(float(start), float(end)) for start, end in _SPAN.findall(text)]
    if not spans:
        sentences = [each for each in re.split(r"[!?\n]", text) if any(word in each for word in _KEYWORDS)]
        times = [float(found[0]) for each in sentences if (found := _NUMBER.findall(each))]
        spans = [(times[0], times[1])] if len(times) > 1 else []
    return (min(spans[0]), max(spans[0])) if spans else None


def strict_span(output: str) -> TimeSpan | None:
    """Read the two times, in order, of an answer that holds exactly two; a time may be written as minutes:seconds."""
    times = re.findall(r"(?:(?:(\d+):)?(\d{1,2}):)?(\d+(?:\.\d+)?)", after_thinking(output))
    seconds = [int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(rest) for hours, minutes, rest in times]
    return (seconds[0], seconds[1]) if len(seconds) == 2 and seconds[0] <= seconds[1] else None


def _lines(path: Path) -> list[AnnotationEntry]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"{path}: {why_unreadable(error)}") from error
    entries = []
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line.strip())
        if line.strip() and not match:
            raise DataError(f"{path}: line {number}: expected 'VIDEO start end##sentence', got {line!r}")
        if match:
            times = [float(match["start"]), float(match["end"])]
            raw = {"video": match["video"], "caption": match["sentence"], "timestamp": times}
            entries.append(AnnotationEntry(raw, f"{path}: line {number}"))
    return entries


def _item(entry: AnnotationEntry, index: int, videos: VideoFolder) -> Item:
    video, sentence = entry.path("video").removesuffix(".mp4"), entry.text("caption").strip().removesuffix(".")
    times = entry.raw.get("timestamp")
    if not isinstance(times, list) or len(times) != 2 or not all(isinstance(time, int | float) for time in times):
        raise entry.problem("timestamp", f"expected start and end in seconds, got {times!r}")
    return Item(
        id=str(index),
        media=videos.find(video),
        question=sentence,
        instruction=f"{_PRE}{sentence}. {_POST}",
        answer=sorted(map(float, times)),
        category="all",
        group=video,
    )
