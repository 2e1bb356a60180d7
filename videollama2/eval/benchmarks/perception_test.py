"""Perception Test, multiple-choice questions with three options each (arXiv 2305.13786)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from videollama2.errors import ConfigError, DataError
from videollama2.eval.annotations import (
    AnnotationEntry,
    check_unique,
    find_annotations,
    read_annotation_json,
    read_entries,
)
from videollama2.eval.atomic import write_atomically
from videollama2.eval.benchmarks.multiple_choice import MultipleChoice, question_and_options
from videollama2.eval.downloads.video_files import VideoFolder
from videollama2.eval.items import Benchmark, Item
from videollama2.eval.reading.answers import published_perception_test
from videollama2.eval.samples import Sample

FILES = {
    "test": ("mc_question_test.json", "mc_question_test/test-*.parquet"),
    "valid": ("mc_question_valid.json", "all_valid.json", "mc_question_val/validation-*.parquet"),
}
"""Annotation files by split; the first one that exists is used. Without a given split, test comes before valid."""


class PerceptionTest(MultipleChoice):
    """See the module. A split with answers (valid) is scored; for one without (test), a submission file is written.

    Args:
        split: one of :data:`FILES`, or None for the first one that exists.
    """

    name = "perception_test"
    title = "Perception Test"
    folder = "perception_test_mcqa"
    source = "https://github.com/google-deepmind/perception_test"
    layout = """\
mc_question_test.json    (or mc_question_valid.json) {"video_id": {"metadata": {"video_id", "split"}, "mc_question":
                         [{"id", "question", "options": 3 texts, "answer_id" (not in test), "area", "reasoning"}]}}
                         In its place, of lmms-lab/PerceptionTest_Val: mc_question_val/validation-*.parquet
videos/                  video_id.mp4 (or another kind of video)"""
    annotations = tuple(name for names in FILES.values() for name in names)
    breakdowns = ("reasoning",)
    published_parser = staticmethod(published_perception_test)

    def __init__(self, split: str | None = None) -> None:
        if split not in (None, *FILES):
            raise ConfigError(f"split must be one of {', '.join(FILES)}, got {split!r}")
        self.split = split

    def configure(self, split: str | None = None, **options: Any) -> Benchmark:
        """See :class:`Benchmark`."""
        super().configure(**options)
        return PerceptionTest(split)

    def settings(self) -> dict[str, Any]:
        """See :class:`Benchmark`."""
        return {"split": self.split}

    def load(self, data: Path) -> list[Item]:
        """See :class:`Benchmark`."""
        known = [name for split, names in FILES.items() if self.split in (None, split) for name in names]
        path, *_ = find_annotations(data, *known)
        videos = VideoFolder(data, "videos")
        if path.suffix == ".parquet":
            items = [_item(entry, entry.path("video_name"), videos) for entry in read_entries(path)]
        else:
            items = []
            for key, raw in read_annotation_json(path, dict).items():
                entry = AnnotationEntry(raw, f"{path}: index {key!r}")
                video = entry.record("metadata").path("video_id")
                # Videos of the benchmark's other tasks have no multiple-choice questions.
                questions = entry.records("mc_question") if "mc_question" in entry else ()
                items.extend(_item(question, video, videos) for question in questions)
        if not items:
            raise DataError(f"{path}: there is no question in this file")
        check_unique((item.id for item in items), path)
        return items

    def write_submission(self, items: Sequence[Item], samples: Sequence[Sample], folder: Path) -> list[Path]:
        """Write the JSON file for the challenge's server, with the chosen option of each question by video."""
        by_id = {sample.id: sample for sample in samples}
        answers: dict[str, list[dict[str, object]]] = {}
        for item in items:
            chosen = by_id[item.id].parsed if item.id in by_id else None
            if chosen is not None:
                entry = {"id": item.extra["question_id"], "answer_id": chosen, "answer": item.options[chosen]}
                answers.setdefault(item.extra["video_id"], []).append(entry)
        path = folder / "perception_test.json"
        write_atomically(path, json.dumps(answers) + "\n")
        return [path]


def _item(record: AnnotationEntry, video: str, videos: VideoFolder) -> Item:
    number, question = record.index("id" if "id" in record else "question_id", 10**9), record.text("question")
    options = record.texts("options", least=3, most=3)
    return Item(
        id=f"{video}-{number}",
        media=videos.find(video),
        question=question,
        instruction=question_and_options(question, options),
        answer=record.index("answer_id", 3) if record.told("answer_id") else None,
        options=options,
        category=record.text("area"),
        group=video,
        extra={"video_id": video, "question_id": number, "reasoning": record.raw.get("reasoning")},
    )
