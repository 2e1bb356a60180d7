"""Reading the chosen option from an answer.

``published_*`` reproduce what the published code reads, fallback included: a letter anywhere, also inside a word
("Based" is B), and option C where nothing is found. They are frozen by golden tests; published numbers depend on them.
``strict_option`` reads letters that stand by themselves, or the text of exactly one option, and otherwise nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence

from videollama2.eval.items import Parsed

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_FALLBACK = Parsed(2, guessed=True)
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_DIGITS = {str(digit): word for digit, word in enumerate(_WORDS)}


def _without_the_word(output: str) -> str:
    """Published: "answer" would be read as option A."""
    return output.replace("answer", "").replace("Answer", "")


def _letter(found: str, count: int) -> Parsed | None:
    """Published clean-up: a comma or bracket that stays on makes the letter unknown."""
    letter = found.strip().strip("()")
    return Parsed(LETTERS.index(letter)) if len(letter) == 1 and letter in LETTERS[:count] else None


def published_mvbench(output: str, options: Sequence[str]) -> Parsed:
    """First capital of an option with brackets, commas and blanks around; else the first option that is contained."""
    output = _without_the_word(output)
    match = re.search(rf"[(, ]*[A-{LETTERS[len(options) - 1]}][), ]*", output)
    if match:
        return _letter(match.group(), len(options)) or _FALLBACK
    return _contained(output, options) or _FALLBACK


def published_egoschema(output: str, options: Sequence[str] = ("",) * 5) -> Parsed:
    """First capital of an option, nothing else."""
    match = re.search(r"[( ]*[A-E][) ]*", _without_the_word(output))
    return (match and _letter(match.group(), 5)) or _FALLBACK


def published_perception_test(output: str, options: Sequence[str]) -> Parsed:
    """First capital of an option; else the answer is exactly an option's text."""
    output = _without_the_word(output)
    match = re.search(r"\(*[A-C]\)*", output)
    if match:
        return _letter(match.group(), 3) or _FALLBACK
    texts = [option.lower() for option in options]
    return Parsed(texts.index(output.lower())) if output.lower() in texts else _FALLBACK


def published_videomme(output: str, choices: Sequence[str]) -> Parsed:
    """First capital from A to D; else the first option that is contained, digits also as words.

    ``choices`` carry their letters ("A. Apples."). The text of an option is what stands between the letter and the last
    character, which is lost ("C. 5" leaves an empty text that every answer contains).
    """
    output = _without_the_word(output)
    match = re.search(r"[A-D]", output)
    if match:
        return Parsed(LETTERS.index(match.group()))
    texts = [re.search(r"[A-D]\. (.*).", choice) for choice in choices]
    if not all(texts):
        return _FALLBACK
    options = [text.group(1) for text in texts]
    return _contained(output, options, [_DIGITS.get(option, option) for option in options]) or _FALLBACK


def _contained(output: str, options: Sequence[str], others: Sequence[str] | None = None) -> Parsed | None:
    lowered = output.lower()
    for index, (option, other) in enumerate(zip(options, others or options, strict=True)):
        if option.lower() in lowered or other.lower() in lowered:
            return Parsed(index)
    return None


def strict_option(output: str, options: Sequence[str], names: Collection[str] = ()) -> Parsed:
    """The option an answer clearly names, or None.

    In this order: the answer is one letter; a letter in brackets or after "answer is", "option" or the like; a letter
    that stands alone before punctuation or the end; the text of one option. Two different ones at the same step: None.

    Args:
        options: their texts, without letters.
        names: letters that may also be somebody's name (EgoSchema calls the camera wearer C), so that alone in a
            sentence they say nothing.
    """
    text = output.strip()
    last = LETTERS[len(options) - 1]
    for find in (_whole, _marked, _alone):
        found = find(text, last, names)
        if found:
            return Parsed(LETTERS.index(next(iter(found))) if len(found) == 1 else None)
    named = {index for index, option in enumerate(options) if _says(text, option)}
    # "right" is also said by "turns right"; the longer option is what was meant.
    named = {i for i in named if not any(i != j and _says(options[j], options[i]) for j in named)}
    return Parsed(named.pop() if len(named) == 1 else None)


_BEFORE_LETTER = r"\b(?i:answer(?: is| would be)?|option|choice)\b\s*(?:is\b)?"


def _whole(text: str, last: str, names: Collection[str]) -> set[str]:
    match = re.fullmatch(rf"\W*([A-{last}])\W*", text, re.I | re.A)
    return {match.group(1).upper()} if match else set()


def _marked(text: str, last: str, names: Collection[str]) -> set[str]:
    bracketed = re.findall(rf"[(\[]\s*([A-{last}])\s*[)\]]", text, re.I)
    said = re.findall(rf"{_BEFORE_LETTER}[\s:*\"']*\(?([A-{last}])(?![\w'])(?!\s+[a-z])", text)
    return {letter.upper() for letter in (*bracketed, *said)}


def _alone(text: str, last: str, names: Collection[str]) -> set[str]:
    """Capitals that are words of their own. A before a word is an article, unless "and" or "or" joins it to another."""
    found = set(re.findall(rf"(?<![\w'])([A-{last}])(?=\s*(?:[.,:;)!?\n]|$)|\s+(?:and|or|nor)\b)", text))
    return {letter for letter in found if letter not in names}


def _says(text: str, option: str) -> bool:
    """Whether the words of ``option`` stand in ``text`` one after the other."""
    words = re.escape(option.strip().rstrip(".").lower())
    return bool(words) and re.search(rf"(?<!\w){words}(?!\w)", text.lower()) is not None


PublishedParser = Callable[[str, Sequence[str]], Parsed]
