"""Video-ChatGPT's generative benchmark: long answers, graded in five respects (arXiv 2306.05424)."""

from __future__ import annotations

from pathlib import Path

from videollama2.eval.annotations import AnnotationEntry, VideoFolder, read_records
from videollama2.eval.items import Aspect, Benchmark, Item

CATEGORIES = ("generic", "temporal", "consistency")


class VideoChatGPT(Benchmark):
    """See the module. The generic questions are answered once and graded three times; a consistency item asks the same
    thing twice, each time on its own."""

    name = "videochatgpt"
    title = "Video-ChatGPT"
    folder = "videochatgpt_gen"
    source = "https://github.com/mbzuai-oryx/Video-ChatGPT (quantitative evaluation)"
    layout = """\
generic_qa.json          a list of {"Q", "A", "video_name"}
temporal_qa.json         the same
consistency_qa.json      a list of {"Q1", "Q2", "A", "video_name"}
Test_Videos/             VIDEO_NAME.mp4 (or webm, avi, mov, mkv)"""
    aspects = (
        Aspect("correctness", "videochatgpt_correctness", ("generic",)),
        Aspect("detail", "videochatgpt_detail", ("generic",)),
        Aspect("context", "videochatgpt_context", ("generic",)),
        Aspect("temporal", "videochatgpt_temporal", ("temporal",)),
        Aspect("consistency", "videochatgpt_consistency", ("consistency",)),
    )

    def load(self, data: Path) -> list[Item]:
        """See :class:`Benchmark`."""
        videos = VideoFolder(data, "Test_Videos")
        return [
            _item(record, category, index, videos)
            for category in CATEGORIES
            for index, record in enumerate(read_records(data / f"{category}_qa.json"))
        ]


def _item(record: AnnotationEntry, category: str, index: int, videos: VideoFolder) -> Item:
    name = record.path("video_name")
    if category == "consistency":
        question: str | list[str] = [record.text("Q1"), record.text("Q2")]
        instruction: str | tuple[str, ...] = tuple(question)
    else:
        question = instruction = record.text("Q")
    return Item(
        id=f"{category}-{index}",
        media=videos.find(name),
        kind="video",
        start=None,
        end=None,
        question=question,
        instruction=instruction,
        answer=record.text("A"),
        category=category,
        group=name,
    )
