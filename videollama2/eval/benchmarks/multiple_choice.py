"""What the multiple-choice benchmarks share."""

from __future__ import annotations

from collections.abc import Sequence

from videollama2.eval.answers import LETTERS, PublishedParser, strict_option
from videollama2.eval.items import PUBLISHED, Benchmark, Item, Parsed

ONLY_THE_LETTER = "Answer with the option's letter from the given choices directly and only give the best option."


def lettered(options: Sequence[str]) -> str:
    """``(A) first`` and so on, a line each, the last one ended as well."""
    return "".join(f"({LETTERS[index]}) {option}\n" for index, option in enumerate(options))


def question_and_options(question: str, options: Sequence[str]) -> str:
    """The prompt of MVBench and Perception Test."""
    return f"Question: {question}\nOptions:\n{lettered(options)}{ONLY_THE_LETTER}"


class MultipleChoice(Benchmark):
    """Answers name an option.

    Attributes:
        published_parser: of :mod:`videollama2.eval.answers`.
        name_letters: see ``strict_option``.
    """

    published_parser: PublishedParser
    name_letters: frozenset[str] = frozenset()

    def parse(self, item: Item, output: str, protocol: str) -> Parsed:
        """See :class:`Benchmark`."""
        if protocol == PUBLISHED:
            return type(self).published_parser(output, self.published_options(item))
        return strict_option(output, item.options, self.name_letters)

    def published_options(self, item: Item) -> Sequence[str]:
        """What the published parser compares with."""
        return item.options
