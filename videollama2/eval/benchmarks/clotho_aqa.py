"""ClothoAQA, test set: questions about sounds, answered in a single word (arXiv 2204.09634)."""

from __future__ import annotations

from pathlib import Path

from videollama2.eval.annotations import AnnotationEntry, check_unique, find_annotations, read_entries
from videollama2.eval.benchmarks.short_answers import ShortAnswers, conversation
from videollama2.eval.benchmarks.sound_classes import crop_start
from videollama2.eval.downloads.video_files import AUDIO_SUFFIXES, VideoFolder
from videollama2.eval.items import PUBLISHED, Item
from videollama2.eval.measures import Measure
from videollama2.eval.samples import Reading, Sample
from videollama2.media.kinds import AUDIO

_FILE = "clothoAQA_eval.json"


def _is_binary(answer: str) -> bool:
    return answer.lower() in ("yes", "no")


def _asks_yes_or_no(sample: Sample) -> bool:
    return _is_binary(str(sample.answer))


def _binary(reading: Reading) -> float | None:
    return reading.value


class ClothoAQA(ShortAnswers):
    """See the module.

    The paper's number is the accuracy over all questions. The published scorer also prints that over the questions
    whose answer is yes or no; there it removes nothing from the model's answer, so that "Yes." is wrong.
    """

    name = "clotho_aqa"
    title = "ClothoAQA"
    folder = "ClothoAQA"
    source = "https://zenodo.org/records/6473207"
    layout = """\
clothoAQA_eval.json      here or in the folder above: a list of {"id", "audio": path, of which the end counts,
                         "conversations": [{"value": question}, {"value": answer}]}
audio_files/             NAME.wav"""
    annotations = (_FILE,)
    measures = (Measure(), Measure("binary accuracy", _binary, concerns=_asks_yes_or_no))

    def load(self, data: Path) -> list[Item]:
        """See :class:`Benchmark`."""
        path, *_ = find_annotations(data, _FILE, f"../{_FILE}")
        sounds = VideoFolder(data, "audio_files", ".", suffixes=AUDIO_SUFFIXES)
        items = [
            self.item_of(
                entry.answer("id"), sounds.find_end(entry.foreign_path("audio")), entry, conversation(entry)[1]
            )
            for entry in read_entries(path)
        ]
        check_unique((item.id for item in items), path)
        return items

    def read(self, item: Item, output: str, protocol: str) -> Reading:
        """See :class:`Benchmark`."""
        reading = super().read(item, output, protocol)
        if not _is_binary(item.answer):
            return reading
        right = output.lower() == item.answer.lower() if protocol == PUBLISHED else reading.correct
        return Reading(reading.parsed, reading.guessed, reading.correct, float(bool(right)))

    def item_of(self, id: str, media: str, record: AnnotationEntry, answer: str) -> Item:
        """See :class:`WordedBenchmark`."""
        question = conversation(record)[0] if media else record.text("question")
        return Item(
            id=id,
            media=media,
            kind=AUDIO,
            question=question,
            instruction=f"Question: {question}\nAnswer the question using a single word." if media else question,
            answer=answer,
            category="yes or no" if _is_binary(answer) else "open",
            group=media or id,
            crop_start=crop_start(record),
        )
