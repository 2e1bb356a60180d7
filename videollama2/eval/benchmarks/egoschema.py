"""EgoSchema: 5,031 three-minute clips with five long options each (arXiv 2308.09126). 500 answers are public."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from videollama2.errors import DataError
from videollama2.eval.annotations import (
    AnnotationEntry,
    check_unique,
    find_annotations,
    read_annotation_json,
    read_entries,
)
from videollama2.eval.atomic import write_atomically
from videollama2.eval.benchmarks.multiple_choice import ONLY_THE_LETTER, MultipleChoice, lettered
from videollama2.eval.downloads.video_files import VideoFolder
from videollama2.eval.items import Item
from videollama2.eval.reading.answers import published_egoschema
from videollama2.eval.samples import Sample

_OPTIONS = tuple(f"option {index}" for index in range(5))
_ID = re.compile(r"[0-9a-f-]{8,}")
_LETTERED = re.compile(r"^[A-E][.)]\s*")
ANSWERS, SUBSET = "subset_answers.json", "Subset/test-*.parquet"
_TASK = "Select the best answer to the following multiple-choice question based on the video."


class EgoSchema(MultipleChoice):
    """See the module. The public answers are scored; a submission file is written for the server that has the rest."""

    name = "egoschema"
    title = "EgoSchema"
    folder = "egoschema"
    questions = 5031
    source = "https://github.com/egoschema/EgoSchema"
    layout = """\
questions.json           a list of {"q_uid", "question", "option 0" .. "option 4"}
subset_answers.json      {"q_uid": index of the right option}, the 500 public answers; may be absent
good_clips_git/          (or videos/) q_uid.mp4 (or another kind of video)
                         In place of the two files, of lmms-lab/egoschema: MC/test-*.parquet or Subset/test-*.parquet"""
    annotations = ("questions.json", ANSWERS, "MC/test-*.parquet", SUBSET)
    published_parser = staticmethod(published_egoschema)
    name_letters = frozenset("C")  # the camera wearer

    def load(self, data: Path) -> list[Item]:
        """See :class:`Benchmark`."""
        path, *_ = find_annotations(data, *(name for name in self.annotations if name != ANSWERS))
        answers = _public_answers(data)
        videos = VideoFolder(data, "good_clips_git", "videos")
        items = [_item(entry, videos, answers) for entry in read_entries(path)]
        check_unique((item.id for item in items), path)
        # If the list of questions is shortened, answers may be left over. An answer under a name that is not an id,
        # however, is a mistake.
        unknown = [uid for uid in answers if not _ID.fullmatch(uid)]
        if unknown:
            raise DataError(f"{data / ANSWERS}: {unknown[0]!r} is not a question of {path}")
        return items

    def write_submission(self, items: Sequence[Item], samples: Sequence[Sample], folder: Path) -> list[Path]:
        """Write the JSON file for the official server and the CSV file for Kaggle."""
        answers = {sample.id: sample.parsed for sample in samples if sample.parsed is not None}
        as_json, as_csv = folder / "egoschema.json", folder / "egoschema.csv"
        write_atomically(as_json, json.dumps(answers, indent=1) + "\n")
        lines = ["q_uid, answer", *(f"{uid}, {index}" for uid, index in answers.items())]
        write_atomically(as_csv, "\n".join(lines) + "\n")
        return [as_json, as_csv]


def _item(entry: AnnotationEntry, videos: VideoFolder, answers: dict[str, int]) -> Item:
    """Return the item of an entry of questions.json, or of the hub's tables, which also hold the answers."""
    question = entry.text("question")
    if "option" in entry:
        uid = entry.path("video_idx")
        options = tuple(_LETTERED.sub("", option) for option in entry.texts("option", least=5, most=5))
    else:
        uid = entry.path("q_uid")
        options = tuple(entry.text(name) for name in _OPTIONS)
    answer = answers.pop(uid, None)
    if entry.told("answer"):
        answer = entry.index("answer", 5)
    return Item(
        id=uid,
        media=videos.find(uid),
        question=question,
        instruction=f"{_TASK}\n{question}\nOptions:\n{lettered(options)}{ONLY_THE_LETTER} The best answer is: ",
        answer=answer,
        options=options,
        category="subset",
        group=uid,
    )


def _public_answers(data: Path) -> dict[str, int]:
    """Return the public answers, from the file of answers or from the hub's table of questions with an answer."""
    path = data / ANSWERS
    if not path.is_file():
        tables = sorted(data.glob(SUBSET))
        return {entry.path("video_idx"): entry.index("answer", 5) for table in tables for entry in read_entries(table)}
    answers = AnnotationEntry(read_annotation_json(path, dict), str(path))
    return {uid: answers.index(uid, 5) for uid in answers.raw}
