"""Video-ChatGPT's generative benchmark: long answers that are graded in five aspects (arXiv 2306.05424)."""

from __future__ import annotations

from pathlib import Path

from videollama2.eval.annotations import AnnotationEntry, find_annotations, read_entries
from videollama2.eval.downloads.video_files import VideoFolder
from videollama2.eval.items import Benchmark, Item
from videollama2.eval.measures import Aspect

CATEGORIES = ("generic", "temporal", "consistency")
_PATTERNS = {name: (f"{name}_qa.json", f"{name.capitalize()}/test-*.parquet") for name in CATEGORIES}
_NAMES = {name: name for name in ("Q", "Q1", "Q2", "A")}
_HUB_NAMES = {"Q": "question", "Q1": "question_1", "Q2": "question_2", "A": "answer"}


class VideoChatGPT(Benchmark):
    """See the module.

    A generic question is answered once and graded in three aspects. A consistency item asks the same thing in two
    questions, which are answered independently.
    """

    name = "videochatgpt"
    title = "Video-ChatGPT"
    folder = "videochatgpt_gen"
    questions = 2994
    source = "https://github.com/mbzuai-oryx/Video-ChatGPT (quantitative evaluation)"
    layout = """\
generic_qa.json          a list of {"Q", "A", "video_name"}
temporal_qa.json         the same
consistency_qa.json      a list of {"Q1", "Q2", "A", "video_name"}
                         In place of each, of lmms-lab/VideoChatGPT: Generic/test-*.parquet and so on
Test_Videos/             VIDEO_NAME.mp4 (or another kind of video)"""
    annotations = tuple(pattern for name in CATEGORIES for pattern in _PATTERNS[name])
    aspects = (
        Aspect("correctness", "videochatgpt_correctness", ("generic",)),
        Aspect("detail", "videochatgpt_detail", ("generic",)),
        Aspect("context", "videochatgpt_context", ("generic",)),
        Aspect("temporal", "videochatgpt_temporal", ("temporal",)),
        Aspect("consistency", "videochatgpt_consistency", ("consistency",)),
    )

    def load(self, data: Path) -> list[Item]:
        """See :class:`Benchmark`; categories without a file are left out, and the report counts the questions asked."""
        videos = VideoFolder(data, "Test_Videos", "videos")
        there = {name for name, known in _PATTERNS.items() if any(any(data.glob(pattern)) for pattern in known)}
        items = []
        for category in CATEGORIES if not there else [name for name in CATEGORIES if name in there]:
            path, *_ = find_annotations(data, *_PATTERNS[category])
            items += [_item(entry, category, index, videos) for index, entry in enumerate(read_entries(path))]
        return items


def _item(record: AnnotationEntry, category: str, index: int, videos: VideoFolder) -> Item:
    name = record.path("video_name")
    names = _HUB_NAMES if "question" in record else _NAMES  # the hub has other field names
    instruction: str | tuple[str, ...] = (
        record.text(names["Q"]) if category != "consistency" else tuple(record.text(names[key]) for key in ("Q1", "Q2"))
    )
    return Item(
        id=f"{category}-{index}",
        media=videos.find(name),
        question=instruction if isinstance(instruction, str) else list(instruction),
        instruction=instruction,
        answer=record.text(names["A"]),
        category=category,
        group=name,
    )
