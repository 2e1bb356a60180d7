"""Parses answers: reads the option that was chosen.

The functions ``published_*`` reproduce the parsers of the published code, including their faults: they accept a letter
anywhere, also inside a word ("Based" is B), and return option C if they find nothing. Golden tests fix their results,
because published numbers depend on them. The strict parser is :func:`videollama2.eval.reading.strict.strict_option`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from videollama2.eval.items import Parsed
from videollama2.eval.reading.strict import LETTERS, strict_option

__all__ = [
    "LETTERS",
    "PublishedParser",
    "first_letter",
    "first_letter_mended",
    "published_egoschema",
    "published_mvbench",
    "published_perception_test",
    "published_videomme",
    "strict_option",
]

_FALLBACK = Parsed(2, guessed=True)
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_DIGITS = {str(digit): word for digit, word in enumerate(_WORDS)}


def _without_the_word(output: str) -> str:
    """Remove the word "answer", as the published code does, since its A would be read as an option."""
    return output.replace("answer", "").replace("Answer", "")


def _letter(found: str, count: int) -> Parsed | None:
    """Strip blanks and brackets as the published code does; if a comma or bracket remains, the result is None."""
    letter = found.strip().strip("()")
    return Parsed(LETTERS.index(letter)) if len(letter) == 1 and letter in LETTERS[:count] else None


def published_mvbench(output: str, options: Sequence[str]) -> Parsed:
    """Read the first capital letter of an option, else the first option whose text the answer contains.

    Brackets, commas and blanks around the letter belong to the match.
    """
    output = _without_the_word(output)
    match = re.search(rf"[(, ]*[A-{LETTERS[len(options) - 1]}][), ]*", output)
    if match:
        return _letter(match.group(), len(options)) or _FALLBACK
    return _contained(output, options) or _FALLBACK


def published_egoschema(output: str, options: Sequence[str] = ("",) * 5) -> Parsed:
    """Read the first capital letter of an option, and nothing else."""
    match = re.search(r"[( ]*[A-E][) ]*", _without_the_word(output))
    return (match and _letter(match.group(), 5)) or _FALLBACK


def published_perception_test(output: str, options: Sequence[str]) -> Parsed:
    """Read the first capital letter of an option, else the option whose text is exactly the answer."""
    output = _without_the_word(output)
    match = re.search(r"\(*[A-C]\)*", output)
    if match:
        return _letter(match.group(), 3) or _FALLBACK
    texts = [option.lower() for option in options]
    return Parsed(texts.index(output.lower())) if output.lower() in texts else _FALLBACK


def published_videomme(output: str, choices: Sequence[str]) -> Parsed:
    """Read the first capital letter from A to D, else the first option that the answer contains (digits also as words).

    ``choices`` begin with their letters ("A. Apples."). The published code takes an option's text to lie between the
    letter and the last character, which is lost ("C. 5" leaves an empty text, which every answer contains).
    """
    output = _without_the_word(output)
    match = re.search(r"[A-D]", output)
    if match:
        return Parsed(LETTERS.index(match.group()))
    options = [text.group(1) for choice in choices if (text := re.search(r"[A-D]\. (.*).", choice))]
    if len(options) < len(choices):
        return _FALLBACK
    return _contained(output, options, [_DIGITS.get(option, option) for option in options]) or _FALLBACK


_LEADS = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option isThe correct option is",
    "Best answer:Best option:",
)


_LEADS_MENDED = (
    *_LEADS[:4],
    "The best option is",
    "The correct option is",
    "Best answer:",
    "Best option:",
)


def first_letter(output: str, options: Sequence[str]) -> Parsed:
    """Read the first capital letter of an option after removing certain phrases, as scorers of VideoMME's family do.

    Two pairs of these phrases lack the comma between them in the scorers, so they are never found. Without a letter the
    parsed value is None.
    """
    return _first_letter(output, options, _LEADS)


def first_letter_mended(output: str, options: Sequence[str]) -> Parsed:
    """Read as :func:`first_letter`, but with the missing commas, as LongVideoBench's scorer does.

    "Best answer: D" is therefore D, and not the B of "Best".
    """
    return _first_letter(output, options, _LEADS_MENDED)


def _first_letter(output: str, options: Sequence[str], leads: Sequence[str]) -> Parsed:
    text = output.strip()
    for lead in leads:
        text = text.replace(lead, "")
    match = re.search(rf"[A-{LETTERS[len(options) - 1]}]", text)
    return Parsed(LETTERS.index(match.group()) if match else None)


def _contained(output: str, options: Sequence[str], others: Sequence[str] | None = None) -> Parsed | None:
    lowered = output.lower()
    for index, (option, other) in enumerate(zip(options, others or options, strict=True)):
        if option.lower() in lowered or other.lower() in lowered:
            return Parsed(index)
    return None


PublishedParser = Callable[[str, Sequence[str]], Parsed]
