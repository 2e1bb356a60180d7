"""MMVU, the multiple-choice questions of the validation set: expert knowledge of 27 subjects (arXiv 2501.12380).

This module does not have the open questions, which a language model compares with the reference.
"""

from __future__ import annotations

import re
import string
from pathlib import Path, PurePosixPath

from videollama2.errors import DataError
from videollama2.eval.annotations import AnnotationEntry, check_unique, find_annotations, read_entries
from videollama2.eval.downloads.video_files import VideoFolder
from videollama2.eval.items import PUBLISHED, Benchmark, Item, Parsed
from videollama2.eval.reading.answers import LETTERS, strict_option
from videollama2.eval.samples import Reading

_CHOICES = 5
_CHOICE_TYPE = "multiple-choice"
_POST = """\
Visual Information: processed video
Do not generate any intermediate reasoning process. Answer directly with the option letter from the
given choices.
"""
_LETTER = re.compile(r"\b([A-E])\b", re.I)
_DISCIPLINES = {
    "Science": "Biology Chemistry Modern_Physics Astronomy Geography Materials_Science Neurobiology Electromagnetism "
    "Thermodynamics Mechanics",
    "Engineering": "Civil_Engineering Electrical_Engineering Mechanical_Engineering Biomedical_Engineering "
    "Electronics_and_Communication Computer_Science",
    "Healthcare": "Clinical_Medicine Basic_Medicine Preventive_Medicine Pharmacy Dentistry",
    "Humanities and social science": "Art Literature History Law Economics Management",
}
_DISCIPLINE = {subject: name for name, subjects in _DISCIPLINES.items() for subject in subjects.split()}


class MMVU(Benchmark):
    """See the module.

    The prompt is the official one for direct answers. lmms-eval, whose rule is the ``published`` reading, counts an
    answer as right if it holds the right letter as a word, in any case (the article "a" too), or the words of the right
    option, or the letter anywhere and one word of the option.
    """

    name = "mmvu"
    title = "MMVU (validation, multiple choice)"
    folder = "mmvu"
    source = "https://github.com/yale-nlp/MMVU; https://huggingface.co/datasets/lmms-lab/MMVU"
    layout = """\
validation.json          a list of {"id", "video_path": "videos/SUBJECT/NUMBER.mp4", "question", "question_type",
                         "choices": {"A": ..., "E": ...}, "answer": a letter}; or, of the hub, data/validation-*.parquet
VIDEO_PATH               each video where the table says, relative to this folder"""
    annotations = ("validation.json", "data/validation-*.parquet", "validation-*.parquet")
    breakdowns = ("subject",)
    max_new_tokens = 1024

    def load(self, data: Path) -> list[Item]:
        """See :class:`Benchmark`; open questions are left out."""
        paths = find_annotations(data, *self.annotations)
        videos = VideoFolder(data, ".", "videos")
        entries = [entry for path in paths for entry in read_entries(path)]
        items = [_item(entry, videos) for entry in entries if entry.text("question_type") == _CHOICE_TYPE]
        if not items:
            raise DataError(f"{paths[0]}: there is no multiple-choice question in this file")
        check_unique((item.id for item in items), paths[0])
        return items

    def parse(self, item: Item, output: str, protocol: str) -> Parsed:
        """See :class:`Benchmark`."""
        if protocol != PUBLISHED:
            return strict_option(output, item.options)
        match = _LETTER.search(output)
        return Parsed(LETTERS.index(match.group(1).upper()) if match else None)

    def read(self, item: Item, output: str, protocol: str) -> Reading:
        """See :class:`Benchmark`."""
        reading = super().read(item, output, protocol)
        if protocol != PUBLISHED or item.answer is None:
            return reading
        letter, text, lowered = LETTERS[item.answer], item.options[item.answer].strip().lower(), output.lower()
        words = [word for part in text.split() if len(word := part.strip(string.punctuation)) > 2]
        named = re.search(rf"\b{letter}\b", output, re.I) is not None
        hinted = letter.lower() in lowered and any(word in lowered for word in words)
        return Reading(item.answer, False, True) if named or text in lowered or hinted else reading


def _item(entry: AnnotationEntry, videos: VideoFolder) -> Item:
    question, letters = entry.text("question"), LETTERS[:_CHOICES]
    choices = entry.record("choices")
    options = tuple(choices.answer(letter) for letter in letters)
    answer = entry.text("answer").strip()
    if answer not in letters:
        raise entry.problem("answer", f"expected a letter from A to E, got {answer!r}")
    media = videos.find_path(entry.path("video_path"))
    subject = PurePosixPath(media).parent.name
    if subject not in _DISCIPLINE:
        raise entry.problem("video_path", f"expected videos/SUBJECT/NAME, got {entry.text('video_path')!r}")
    listed = "".join(f"{letter}: {option}\n" for letter, option in zip(letters, options, strict=True))
    return Item(
        id=entry.answer("id"),
        media=media,
        question=question,
        instruction=f"\nQuestion:{question}\n{listed}{_POST}",
        answer=letters.index(answer),
        options=options,
        category=_DISCIPLINE[subject],
        group=media,
        extra={"subject": subject},
    )
