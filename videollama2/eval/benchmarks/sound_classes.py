"""Defines the base of TUT2017 and VocalSound: one question about each sound, answered by a class.

The annotation file has a line ``{"audio": path, "gt": class}`` for each sound. A line may also have ``crop_start``, the
first sample that is heard of a sound that is longer than a clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from videollama2.errors import DataError
from videollama2.eval.annotations import AnnotationEntry, find_annotations, read_entries
from videollama2.eval.benchmarks.multiple_choice import ONLY_THE_LETTER, MultipleChoice, lettered
from videollama2.eval.downloads.video_files import AUDIO_SUFFIXES, VideoFolder
from videollama2.eval.items import PUBLISHED, Item, WordedBenchmark
from videollama2.eval.reading.answers import LETTERS
from videollama2.eval.samples import Reading
from videollama2.media.kinds import AUDIO


def crop_start(entry: AnnotationEntry) -> int | None:
    """Return the first sample that is heard of a sound that is longer than a clip, if the annotations say so."""
    return entry.index("crop_start", 2**62) if entry.told("crop_start") else None


class SoundClasses(MultipleChoice, WordedBenchmark):
    """A benchmark of sounds of known classes.

    The published scorer counts an answer as right if it contains the class's name anywhere ("scar" is a car), or if it
    is a letter and nothing else, in brackets or not, and the reference is a part of that option's name.

    Attributes:
        task: the text before the options.
        classes: names of the classes, in the order of the options.
        folders: folders of sounds below the data folder; the first one is that of the published layout.
    """

    task: str
    classes: tuple[str, ...]
    folders: tuple[str, ...]

    def load(self, data: Path) -> list[Item]:
        """See :class:`Benchmark`."""
        path, *_ = find_annotations(data, *self.annotations)
        sounds = VideoFolder(data, *self.folders, suffixes=AUDIO_SUFFIXES)
        return [self._item(entry, index, sounds) for index, entry in enumerate(read_entries(path))]

    def _item(self, entry: AnnotationEntry, index: int, sounds: VideoFolder) -> Item:
        path = entry.foreign_path("audio")
        return self.item_of(f"{index}-{PurePosixPath(path).name}", sounds.find_end(path), entry, entry.text("gt"))

    def item_of(self, id: str, media: str, record: AnnotationEntry, answer: str) -> Item:
        """See :class:`WordedBenchmark`."""
        names = [_plain(name) for name in self.classes]
        if _plain(answer) not in names:
            raise DataError(f"{record.where}: the class must be one of {', '.join(self.classes)}; got {answer!r}")
        index = names.index(_plain(answer))
        return Item(
            id=id,
            media=media,
            kind=AUDIO,
            question=self.task.removeprefix("Question: "),
            instruction=f"{self.task}\nOptions:\n{lettered(self.classes)}.{ONLY_THE_LETTER}",
            answer=index,
            options=self.classes,
            category=self.classes[index],
            group=id,
            extra={"gt": answer.strip()},
            crop_start=crop_start(record),
        )

    def read(self, item: Item, output: str, protocol: str) -> Reading:
        """See :class:`Benchmark`."""
        if protocol != PUBLISHED:
            return super().read(item, output, protocol)
        said, wanted = output.strip().upper(), item.extra["gt"].upper()
        if wanted in said:
            return Reading(item.answer, False, True)
        chosen = _lone_letter(said, self.classes)
        return Reading(chosen, False, chosen is not None and wanted in self.classes[chosen].upper())


def _lone_letter(said: str, classes: Sequence[str]) -> int | None:
    """Return the number of the option whose letter is the whole text, alone or in brackets."""
    forms = {form: index for index in range(len(classes)) for form in (LETTERS[index], f"({LETTERS[index]})")}
    return forms.get(said)


def _plain(name: str) -> str:
    """Return a class's name in the form that is compared; annotations also have ``forest_path``, for example."""
    return " ".join(name.lower().replace("/", " or ").replace("_", " ").split())
