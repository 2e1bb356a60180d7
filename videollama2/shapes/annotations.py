"""The built-in world, part 3: the rows of its annotation files.

What one scene adds to them (a dialogue to train on, questions to test with), and how a balanced test set is chosen.
"""

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

from videollama2.errors import DataError
from videollama2.shapes.questions import QUESTION_TYPES, Question, choose_dialogue, questions
from videollama2.shapes.scene import Scene

MCQ_PROMPT = (
    "Question: {question}\nOptions:\n{options}\n"
    "Answer with the option's letter from the given choices directly and only give the best option."
)
"""Wording that the published MVBench runner puts around a question."""


@dataclass(frozen=True)
class Annotation:
    """What one file adds to a set: the record of train.json (without turns where nothing can be asked), the rows of
    questions.json, and for each row the value to balance over (`Question.balance_key`)."""

    record: dict[str, Any]
    rows: list[dict[str, Any]]
    balance_keys: list[str]


def annotate(
    scene: Scene, file: str, *, questions_per_item: int, mcq_fraction: float, every_question: bool
) -> Annotation:
    """Questions about one scene, drawn in ``file`` (a path relative to the set's folder).

    The record asks at most ``questions_per_item``, about ``mcq_fraction`` of them as multiple choice; the rows are
    the same questions, or with ``every_question`` all that the scene supports.
    """
    rng = random.Random(f"questions:{scene.seed}:{scene.modality}:{scene.index}")
    found = questions(scene, rng)
    asked = choose_dialogue(found, rng, questions_per_item)
    name = f"s{scene.seed}-{scene.modality}-{scene.index:06d}"
    turns = _turns(asked, scene.modality, mcq_fraction, rng)
    listed = found if every_question else asked
    rows = [
        {
            "id": f"{name}-{number}",
            scene.modality: file,
            "type": question.type,
            "question": question.question,
            "answer": question.answer,
            "candidates": list(question.candidates),
        }
        for number, question in enumerate(listed)
    ]
    record = {"id": name, scene.modality: file, "conversations": turns}
    return Annotation(record, rows, [question.balance_key for question in listed])


def _turns(asked: list[Question], tag: str, mcq_fraction: float, rng: random.Random) -> list[dict[str, str]]:
    turns = []
    for question in asked:
        prompt, answer = question.question, question.answer
        if rng.random() < mcq_fraction:
            letters = [f"({chr(ord('A') + n)}) {option}" for n, option in enumerate(question.candidates)]
            prompt = MCQ_PROMPT.format(question=question.question, options="\n".join(letters))
            answer = letters[question.candidates.index(question.answer)]
        turns.append({"from": "human", "value": prompt if turns else f"<{tag}>\n{prompt}"})
        turns.append({"from": "gpt", "value": answer})
    return turns


def choose_balanced(pool: list[tuple[str, dict[str, Any]]], total: int, seed: int) -> list[dict[str, Any]]:
    """``total`` rows out of (balance key, row) pairs: equal per type, equal per key within a type, few per file.

    Types take turns, and within a type its keys do; each takes the question about the file used least so far. Raises
    DataError when a type runs out of questions.
    """
    rng = random.Random(f"balance:{seed}")
    piles: dict[str, dict[str, list[dict[str, Any]]]] = {kind: {} for kind in QUESTION_TYPES}
    for key, row in rng.sample(pool, len(pool)):
        piles[row["type"]].setdefault(key, []).append(row)
    used: Counter[str] = Counter()
    taken: list[dict[str, Any]] = []
    cycles: dict[str, list[str]] = {kind: [] for kind in QUESTION_TYPES}
    for number in range(total):
        kind = QUESTION_TYPES[number % len(QUESTION_TYPES)]
        row = _take(piles[kind], cycles[kind], used, rng)
        if row is None:
            raise DataError(
                f"this set has only {number // len(QUESTION_TYPES)} questions of type {kind!r}: "
                f"{total} balanced questions need more videos"
            )
        used[_file(row)] += 1
        taken.append(row)
    return sorted(taken, key=lambda row: ("image" in row, _file(row), row["id"]))


def _file(row: dict[str, Any]) -> str:
    return row.get("video") or row["image"]


def _take(
    piles: dict[str, list[dict[str, Any]]],
    cycle: list[str],
    used: Counter[str],
    rng: random.Random,
) -> dict[str, Any] | None:
    """Remove and return the next row of a type: the next key in its cycle, then the file used least."""
    if not cycle:
        cycle.extend(rng.sample(sorted(piles), len(piles)))
    while cycle:
        pile = piles[cycle.pop()]
        if pile:
            best = min(range(len(pile)), key=lambda place: used[_file(pile[place])])
            return pile.pop(best)
    return next((pile.pop() for pile in piles.values() if pile), None)
