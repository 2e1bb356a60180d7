"""Defines the common base of ActivityNet-QA and MSVD-QA: open questions with short answers.

The prompt is the question alone, and a judge compares the answer with the reference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from videollama2.errors import DataError
from videollama2.eval.annotations import AnnotationEntry, check_unique, find_annotations, read_entries
from videollama2.eval.downloads.video_files import VideoFolder
from videollama2.eval.items import Benchmark, Item
from videollama2.eval.measures import Aspect

QUESTION_FILE, ANSWER_FILE = "test_q.json", "test_a.json"
TABLES = ("data/test-*.parquet", "test-*.parquet")
"""Files with questions and their answers, as on the hub."""


class QuestionAnswer(Benchmark):
    """A benchmark of open questions.

    Questions and answers are joined by ``question_id``. The published code joins them by position, which gives wrong
    pairs if the files differ.

    Attributes:
        video_folders: folders of videos below the data folder; the first one is that of this project's layout.
        stem: file name of a video without its suffix, with ``{}`` for the video's name.
        types: names of the answer types; other numbers are shown as ``type N``.
    """

    video_folders: tuple[str, ...]
    stem: str = "{}"
    types: dict[Any, str] = {}
    aspects = (Aspect("qa", "qa"),)
    annotations = (QUESTION_FILE, ANSWER_FILE, *TABLES)

    def load(self, data: Path) -> list[Item]:
        """See :class:`Benchmark`."""
        question_path, *_ = find_annotations(data, QUESTION_FILE, *TABLES)
        questions = read_entries(question_path)
        answer_path = data / ANSWER_FILE if question_path.name == QUESTION_FILE else question_path
        answers = _by_question(read_entries(answer_path))
        videos = VideoFolder(data, *self.video_folders)
        items = []
        for entry in questions:
            number = entry.text("question_id")
            if number not in answers:
                raise entry.problem("question_id", f"{number!r} has no answer in {answer_path}")
            items.append(self._item(entry, answers.pop(number), videos))
        check_unique((item.id for item in items), question_path)
        if answers:
            raise next(iter(answers.values())).problem("question_id", f"has no question in {question_path}")
        return items

    def _item(self, question: AnnotationEntry, answer: AnnotationEntry, videos: VideoFolder) -> Item:
        name, text = question.path("video_name"), question.text("question")
        kind = answer.raw.get("type")
        if isinstance(kind, str) and kind.isdecimal():
            kind = int(kind)
        return Item(
            id=question.text("question_id"),
            media=videos.find(self.stem.format(name), name),
            question=text,
            instruction=text,
            answer=answer.answer("answer"),
            category=self.types.get(kind, "all" if kind is None else f"type {kind}"),
            group=name,
        )


def _by_question(records: list[AnnotationEntry]) -> dict[str, AnnotationEntry]:
    found: dict[str, AnnotationEntry] = {}
    for record in records:
        number = record.text("question_id")
        if number in found:
            raise DataError(f"{record.where}: question_id {number!r} is also at {found[number].where}")
        found[number] = record
    return found
