"""Defines the common base of the multiple-choice benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from videollama2.eval.annotations import AnnotationEntry, check_unique, find_annotations, read_entries
from videollama2.eval.downloads.video_files import VideoFolder
from videollama2.eval.items import PUBLISHED, Benchmark, Item, Parsed
from videollama2.eval.reading.answers import LETTERS, PublishedParser, strict_option

ONLY_THE_LETTER = "Answer with the option's letter from the given choices directly and only give the best option."


def lettered(options: Sequence[str]) -> str:
    """Return the options as lines ``(A) first`` and so on; the last line has a newline too."""
    return "".join(f"({LETTERS[index]}) {option}\n" for index, option in enumerate(options))


def question_and_options(question: str, options: Sequence[str]) -> str:
    """Return the prompt of MVBench and Perception Test."""
    return f"Question: {question}\nOptions:\n{lettered(options)}{ONLY_THE_LETTER}"


def read_items(
    data: Path, annotations: Sequence[str], folders: Sequence[str], make: Callable[[AnnotationEntry, VideoFolder], Item]
) -> list[Item]:
    """Return the items of a benchmark with one annotation file, in whose entries each item is described.

    Args:
        data: folder of the benchmark.
        annotations: names that the file may have.
        folders: folders in which the videos may be.
        make: makes an item of an entry.

    Raises:
        DataError: there is no annotation file, or an entry breaks a rule, or two have the same id.
    """
    path, *_ = find_annotations(data, *annotations)
    videos = VideoFolder(data, *folders)
    items = [make(entry, videos) for entry in read_entries(path)]
    check_unique((item.id for item in items), path)
    return items


class MultipleChoice(Benchmark):
    """A benchmark whose answers name an option.

    Attributes:
        published_parser: the ``published`` parser, from :mod:`videollama2.eval.reading.answers`.
        name_letters: the ``names`` of :func:`~videollama2.eval.reading.strict.strict_option`.
    """

    published_parser: PublishedParser
    name_letters: frozenset[str] = frozenset()

    def parse(self, item: Item, output: str, protocol: str) -> Parsed:
        """See :class:`Benchmark`."""
        if protocol == PUBLISHED:
            return type(self).published_parser(output, self.published_options(item))
        return strict_option(output, item.options, self.name_letters)

    def published_options(self, item: Item) -> Sequence[str]:
        """Return the options in the form that the published parser compares with."""
        return item.options
