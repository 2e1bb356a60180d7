"""The common base of the multiple-choice benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

from videollama2.eval.answers import LETTERS, PublishedParser, strict_option
from videollama2.eval.items import PUBLISHED, Benchmark, Item, Parsed

ONLY_THE_LETTER = "Answer with the option's letter from the given choices directly and only give the best option."


def lettered(options: Sequence[str]) -> str:
    """Return the options as lines ``(A) first`` and so on; the last line has a newline too."""
    return "".join(f"({LETTERS[index]}) {option}\n" for index, option in enumerate(options))


def question_and_options(question: str, options: Sequence[str]) -> str:
    """Return the prompt of MVBench and Perception Test."""
    return f"Question: {question}\nOptions:\n{lettered(options)}{ONLY_THE_LETTER}"


class MultipleChoice(Benchmark):
    """A benchmark whose answers name an option.

    Attributes:
        published_parser: the ``published`` parser, from :mod:`videollama2.eval.answers`.
        name_letters: the ``names`` of :func:`~videollama2.eval.strict.strict_option`.
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
