"""Defines the base of ClothoAQA and MUSIC-AVQA: open questions whose answers are compared as texts."""

from __future__ import annotations

import re

from videollama2.eval.annotations import AnnotationEntry
from videollama2.eval.items import PUBLISHED, Item, Parsed, WordedBenchmark
from videollama2.eval.reading.strict import after_thinking
from videollama2.eval.samples import Reading
from videollama2.media.kinds import TAGS

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_LEAD = re.compile(r"^(?:the |my |final )*answer(?: is|:)\s*", re.I)
_YES_NO = re.compile(r"(yes|no)\b(?=\s*[,.;:!]|\s*$)", re.I)
_DENIED = re.compile(r"[,.;:]\s*(?:no|yes|not|wait|or|actually)\b", re.I)
MOST_WORDS = 3
"""Longest answer, in words, that the strict reading takes for an answer and not for a sentence."""


def conversation(entry: AnnotationEntry) -> tuple[str, str]:
    """Return the question, without tags of media, and the answer of a record with ``conversations``.

    Raises:
        DataError: there are not two messages, or one has no text.
    """
    messages = entry.records("conversations")
    if len(messages) < 2:
        raise entry.problem("conversations", f"expected a question and an answer, got {len(messages)} messages")
    question = messages[0].text("value")
    for tag in TAGS.values():
        question = question.replace(tag, "")
    if not question.strip():
        raise messages[0].problem("value", "there is no question")
    return question.strip(), messages[1].answer("value")


def strict_short_answer(output: str) -> str | None:
    """Return the short answer that a text gives, in one form, or None if it gives none.

    1. What stands before ``</think>`` and "The answer is" does not count, nor do case and punctuation.
    2. "Yes" or "no" at the beginning, before a comma or full stop, is the answer, unless another one follows.
    3. Otherwise the whole text is the answer if it has at most :data:`MOST_WORDS` words, and not both yes and no.
    4. Number words from zero to ten are the same as digits.
    """
    text = _LEAD.sub("", after_thinking(output).strip().strip("*\"'` "))
    if (begun := _YES_NO.match(text)) and not _DENIED.search(text[begun.end() :]):
        return begun.group(1).lower()
    words = re.sub(r"[^\w\s'-]", " ", text.lower()).split()
    if not 0 < len(words) <= MOST_WORDS or {"yes", "no"} <= set(words):
        return None
    return " ".join(str(_NUMBERS.index(word)) if word in _NUMBERS else word for word in words)


class ShortAnswers(WordedBenchmark):
    """A benchmark of short open answers.

    The published scorer compares texts in capital letters after removing blanks and full stops from the end of the
    answer; "2" is wrong for "two".
    """

    how = "short answers"

    def parse(self, item: Item, output: str, protocol: str) -> Parsed:
        """See :class:`Benchmark`."""
        return Parsed(output.rstrip(" .") or None if protocol == PUBLISHED else strict_short_answer(output))

    def read(self, item: Item, output: str, protocol: str) -> Reading:
        """See :class:`Benchmark`."""
        said = self.parse(item, output, protocol).value
        if protocol == PUBLISHED:
            return Reading(said, False, (said or "").upper() == item.answer.upper())
        wanted = strict_short_answer(item.answer) or item.answer.strip().lower()
        return Reading(said, False, said == wanted)
