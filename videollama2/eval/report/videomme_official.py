"""Writes the output of Video-MME's official scorer for a results file, byte for byte (held by a golden test).

The scorer leaves out missing videos and answers without any of the letters A to D, so that its accuracy is over the
remaining answers. :func:`videollama2.eval.reading.answers.first_letter` reads the letter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from videollama2.errors import DataError
from videollama2.eval.reading.answers import LETTERS, first_letter

DURATIONS = ("short", "medium", "long")
DOMAINS = (
    "Knowledge",
    "Film & Television",
    "Sports Competition",
    "Artistic Performance",
    "Life Record",
    "Multilingual",
)
TASK_TYPES = (
    "Temporal Perception",
    "Spatial Perception",
    "Attribute Perception",
    "Action Recognition",
    "Object Recognition",
    "OCR Problems",
    "Counting Problem",
    "Temporal Reasoning",
    "Spatial Reasoning",
    "Action Reasoning",
    "Object Reasoning",
    "Information Synopsis",
)
_THICK, _THIN = "=" * 37, "-" * 37
_FIELDS = ("duration", "domain", "missing", "questions")


def official_letter(response: str) -> str:
    """Return the first of the letters A to D after the prefixes are removed, or an empty text."""
    chosen = first_letter(response, "ABCD").value
    return "" if chosen is None else LETTERS[chosen]


def official_report(results: Sequence[dict[str, Any]]) -> str:
    """Return the scorer's text: for each length of video and for all videos, accuracy by domain, by task and overall.

    Raises:
        DataError: an entry lacks a field; the message names its index.
    """
    answers = list(_answers(results))
    blocks = []
    for duration in DURATIONS:
        chosen = [answer for answer in answers if answer[0] == duration]
        blocks.append(_block(f"Evaluation on video Type: {duration}", "Video Domains", chosen) + "\n\n\n")
    blocks.append(_block("Evaluation on the entire dataset", "Video Categories", answers) + "\n")
    return "".join(blocks)


def _answers(results: Iterable[dict[str, Any]]) -> Iterable[tuple[str, str, str, bool]]:
    """Yield (duration, domain, task type, right) for every answer that counts."""
    for index, entry in enumerate(results):
        absent = [name for name in _FIELDS if name not in entry]
        if absent:
            raise DataError(f"VideoMME results: index {index}, field {absent[0]!r}: is missing")
        for question in () if entry["missing"] else entry["questions"]:
            letter = official_letter(question.get("response", ""))
            if letter:
                yield entry["duration"], entry["domain"], question["task_type"], letter == question["answer"]


def _block(title: str, domains_title: str, answers: Sequence[tuple[str, str, str, bool]]) -> str:
    by_domain, by_task = defaultdict(list), defaultdict(list)
    for _, domain, task, right in answers:
        by_domain[domain].append(right)
        by_task[task].append(right)
    lines = [_THICK, title, _THICK, _THIN, domains_title, _THIN]
    lines += [f"{name}: {_percent(by_domain[name])}" for name in DOMAINS]
    lines += [_THIN, "Task Categories", _THIN]
    lines += [f"{name}: {_percent(by_task[name])}" for name in TASK_TYPES]
    counted = [right for name in TASK_TYPES for right in by_task[name]]
    return "\n".join([*lines, _THIN, "Overall Performance", _THIN, f"Overall: {_percent(counted)}"])


def _percent(right: Sequence[bool]) -> str:
    return f"{100 * sum(right) / len(right) if right else 0: .1f}%"
