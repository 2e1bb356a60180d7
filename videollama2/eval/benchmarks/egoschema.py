"""EgoSchema: 5,031 three-minute clips, five long options each (arXiv 2308.09126). 500 answers are public."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from videollama2.errors import DataError
from videollama2.eval.annotations import VideoFolder, check_unique, read_json, read_records
from videollama2.eval.answers import published_egoschema
from videollama2.eval.atomic import write_atomically
from videollama2.eval.benchmarks.multiple_choice import ONLY_THE_LETTER, MultipleChoice, lettered
from videollama2.eval.items import Item
from videollama2.eval.samples import Sample

_OPTIONS = tuple(f"option {index}" for index in range(5))
_TASK = "Select the best answer to the following multiple-choice question based on the video."


class EgoSchema(MultipleChoice):
    """See the module. The public answers are scored; a submission file is written for the server that has the rest."""

    name = "egoschema"
    title = "EgoSchema"
    folder = "egoschema"
    source = "https://github.com/egoschema/EgoSchema"
    layout = """\
questions.json           a list of {"q_uid", "question", "option 0" .. "option 4"}
subset_answers.json      {"q_uid": index of the right option}, the 500 public answers; may be absent
good_clips_git/          q_uid.mp4 (or avi, mov, mkv)"""
    published_parser = staticmethod(published_egoschema)
    name_letters = frozenset("C")  # the camera wearer

    def load(self, data: Path) -> list[Item]:
        """See :class:`Benchmark`."""
        path = data / "questions.json"
        answers = _public_answers(data / "subset_answers.json")
        videos = VideoFolder(data, "good_clips_git")
        items = []
        for record in read_records(path):
            uid, question = record.path("q_uid"), record.text("question")
            options = tuple(record.text(name) for name in _OPTIONS)
            items.append(
                Item(
                    id=uid,
                    media=videos.find(uid),
                    kind="video",
                    start=None,
                    end=None,
                    question=question,
                    instruction=f"{_TASK}\n{question}\nOptions:\n{lettered(options)}{ONLY_THE_LETTER} "
                    "The best answer is: ",
                    answer=answers.pop(uid, None),
                    options=options,
                    category="subset",
                    group=uid,
                )
            )
        check_unique((item.id for item in items), path)
        if answers:
            raise DataError(f"{data / 'subset_answers.json'}: {next(iter(answers))!r} is no question of {path}")
        return items

    def write_submission(self, items: Sequence[Item], samples: Sequence[Sample], folder: Path) -> list[Path]:
        """JSON for the official server, CSV for Kaggle."""
        answers = {sample.id: sample.parsed for sample in samples if sample.parsed is not None}
        as_json, as_csv = folder / "egoschema.json", folder / "egoschema.csv"
        write_atomically(as_json, json.dumps(answers, indent=1) + "\n")
        lines = ["q_uid, answer", *(f"{uid}, {index}" for uid, index in answers.items())]
        write_atomically(as_csv, "\n".join(lines) + "\n")
        return [as_json, as_csv]


def _public_answers(path: Path) -> dict[str, int]:
    if not path.is_file():
        return {}
    answers = read_json(path, dict)
    for uid, index in answers.items():
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < 5:
            raise DataError(f"{path}: field {uid!r}: expected a whole number from 0 to 4, got {index!r}")
    return answers
