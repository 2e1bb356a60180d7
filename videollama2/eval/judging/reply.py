"""Parses a judge's replies: it accepts any formatting but no ambiguity: an unclear reply is an error."""

from __future__ import annotations

import re
from typing import NamedTuple

from videollama2.eval.reading.strict import after_thinking
from videollama2.eval.samples import MAX_SCORE

# Judges write for instance {'pred': 'yes', 'score': 4}, {''score': 4.8}, **Score:** 4/5, ```json {"score": "4"}```.
_DRESS = r"[\s'\"`*_]*"
_PRED = re.compile(rf"(?<![a-z])pred(?:iction)?{_DRESS}[:=]{_DRESS}([a-z]+)(?![a-z])", re.I)
_SCORE = re.compile(  # a number out of ten is on another scale and does not count
    rf"(?<![a-z])score{_DRESS}(?:[:=]|\bis\b){_DRESS}([-+]?\d+(?:\.\d+)?)(?![\d.]*\d)(?!\s*/\s*(?!{MAX_SCORE}\b)\d)",
    re.I,
)
_NUMBER_ALONE = re.compile(rf"{_DRESS}(\d+(?:\.\d+)?)(?:\s*/\s*{MAX_SCORE})?[\s'\"`*_.]*", re.I)
_VERDICTS = {"yes": "yes", "no": "no", "true": "yes", "false": "no"}


class ReplyError(ValueError):
    """The reply holds no verdict, several, or one out of range."""


class Grade(NamedTuple):
    """The content of a reply. ``pred`` is "yes" or "no", or None if only a score is asked for; ``score`` is in 0..5."""

    pred: str | None
    score: float


def parse_reply(text: str, wants_pred: bool) -> Grade:
    """Read yes or no and the score from a reply, without the model's reasoning before it.

    Raises:
        ReplyError: a value is missing, contradictory or outside 0..5; the message says which.
    """
    text = after_thinking(text)
    scores = {float(found) for found in _SCORE.findall(text)}
    if not scores and not wants_pred and (alone := _NUMBER_ALONE.fullmatch(text)):
        scores = {float(alone.group(1))}
    score = _only(scores, "score")
    if not 0 <= score <= MAX_SCORE:
        raise ReplyError(f"score {score:g} is outside 0..{MAX_SCORE}")
    if not wants_pred:
        return Grade(None, score)
    words = {word.lower() for word in _PRED.findall(text)}
    pred = _VERDICTS.get(_only(words, "pred"))
    if pred is None or re.search(rf"pred{_DRESS}[:=]{_DRESS}yes\s*/\s*no", text, re.I):
        raise ReplyError("pred is neither yes nor no")
    return Grade(pred, score)


def chosen_answer(text: str) -> str:
    """Return the answer that a judge chose: the text after "Answer:" in the last line with that word, or everything."""
    text = after_thinking(text)
    lines = [line.strip() for line in text.split("\n") if "Answer" in line]
    return lines[-1].replace("Answer:", "").strip() if lines else text


def chooses_option(text: str, option: str) -> bool:
    """Whether a judge chose this option ("B. dunking"), by the rule of TempCompass's scorer.

    The answer must begin with the option's letter and a full stop, and name no other of the letters A to D so; the
    letter alone does not count.
    """
    answer = chosen_answer(text)
    named = sum(answer.count(f"{letter}.") for letter in "ABCD")
    return named == 1 and answer.split(". ")[0] == option.split(". ")[0]


def written_pred(text: str) -> str | None:
    """Return the word for yes or no as the judge wrote it, for scorers that count only "yes" in small letters."""
    found = _PRED.search(after_thinking(text))
    return found.group(1) if found else None


def _only(found: set, what: str):
    if not found:
        raise ReplyError(f"no {what}")
    if len(found) > 1:
        raise ReplyError(f"several values of {what}: {', '.join(sorted(map(str, found)))}")
    return found.pop()
