"""Clotho, evaluation set: captions of sounds, each compared with five references (arXiv 1910.09387)."""

from __future__ import annotations

from pathlib import Path

from videollama2.eval.annotations import AnnotationEntry, check_unique, find_annotations, read_entries
from videollama2.eval.benchmarks.sound_classes import crop_start
from videollama2.eval.downloads.video_files import AUDIO_SUFFIXES, VideoFolder
from videollama2.eval.items import Benchmark, Item
from videollama2.eval.measures import Aspect
from videollama2.media.kinds import AUDIO

REFERENCES = 5


class Clotho(Benchmark):
    """See the module.

    The judge compares an answer with one reference at a time. The published scorer cuts the mean of the five scores to
    a whole number; the strict protocol does not.
    """

    name = "clotho"
    title = "Clotho captions"
    folder = "Clotho"
    questions = 1045
    source = "https://zenodo.org/records/4783391"
    layout = """\
clotho_captions_evaluation.csv   a table of file_name and caption_1 .. caption_5
evaluation/                      NAME.wav"""
    annotations = ("clotho_captions_evaluation.csv",)
    aspects = (Aspect("correctness", "clotho_correctness"), Aspect("detail", "clotho_detail"))

    def load(self, data: Path) -> list[Item]:
        """See :class:`Benchmark`."""
        path, *_ = find_annotations(data, *self.annotations)
        sounds = VideoFolder(data, "evaluation", ".", suffixes=AUDIO_SUFFIXES)
        items = [_item(entry, sounds) for entry in read_entries(path)]
        check_unique((item.id for item in items), path)
        return items


def _item(entry: AnnotationEntry, sounds: VideoFolder) -> Item:
    name = entry.path("file_name")
    return Item(
        id=name,
        media=sounds.find_path(name),
        kind=AUDIO,
        question="Describe the audio.",
        instruction="Describe the audio.",
        answer=[entry.text(f"caption_{number}") for number in range(1, REFERENCES + 1)],
        category="all",
        group=name,
        crop_start=crop_start(entry),
    )
