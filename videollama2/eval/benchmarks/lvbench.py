"""LVBench: 1,549 questions about 103 videos of more than half an hour (arXiv 2406.08035)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from videollama2.eval.annotations import AnnotationEntry, check_unique, find_annotations, read_entries
from videollama2.eval.benchmarks.multiple_choice import MultipleChoice
from videollama2.eval.downloads.video_files import VideoFolder
from videollama2.eval.items import Item
from videollama2.eval.measures import Measure
from videollama2.eval.reading.answers import LETTERS, first_letter_mended
from videollama2.eval.samples import Sample

TYPES = (
    "key information retrieval",
    "event understanding",
    "summarization",
    "entity recognition",
    "reasoning",
    "temporal grounding",
)
"""Types of questions. A question may have several types, so each type has a measure, as in the official scorer."""
_OPTION = re.compile(r"^\(([A-Z])\)\s*(.*)$", re.M)
_POST = "\nAnswer the question with the option letter."


def _of_type(kind: str) -> Callable[[Sample], bool]:
    def concerns(sample: Sample) -> bool:
        return kind in (sample.breakdowns.get("question_type") or ())

    return concerns


class LVBench(MultipleChoice):
    """See the module. The text of a question includes its options; the end of the prompt is that of lmms-eval."""

    name = "lvbench"
    title = "LVBench"
    folder = "lvbench"
    questions = 1549
    source = "https://huggingface.co/datasets/zai-org/LVBench"
    layout = """\
video_info.meta.jsonl    a line for each video: {"key", "type", "qa": [{"uid", "question" with a line "(A) ..." for each
                         option, "answer": a letter, "question_type": texts}]}
all_videos/              (or videos/) KEY.mp4 (or another kind of video)"""
    annotations = ("video_info.meta.jsonl",)
    breakdowns = ("question_type",)
    measures = (Measure(), *(Measure(f"accuracy, {kind}", concerns=_of_type(kind)) for kind in TYPES))
    published_parser = staticmethod(first_letter_mended)

    def load(self, data: Path) -> list[Item]:
        """See :class:`Benchmark`."""
        path, *_ = find_annotations(data, *self.annotations)
        videos = VideoFolder(data, "all_videos", "videos")
        items = []
        for entry in read_entries(path):
            media, kind = videos.find(entry.path("key")), entry.text("type")
            items += [_item(question, media, kind) for question in entry.records("qa")]
        check_unique((item.id for item in items), path)
        return items


def _item(entry: AnnotationEntry, media: str, category: str) -> Item:
    question, answer = entry.text("question"), entry.text("answer").strip()
    options = tuple(text.strip() for _, text in _OPTION.findall(question))
    if len(options) < 2 or answer not in LETTERS[: len(options)]:
        raise entry.problem("answer", f"{answer!r} is not an option of its question")
    return Item(
        id=entry.answer("uid"),
        media=media,
        question=question,
        instruction=question + _POST,
        answer=LETTERS.index(answer),
        options=options,
        category=category,
        group=media,
        extra={"question_type": list(entry.texts("question_type"))},
    )
