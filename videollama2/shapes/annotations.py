"""Writes the rows of the annotation files of the built-in world.

This module decides what one scene adds to these files (a dialogue to train on, questions to test with) and chooses a
balanced test set.
"""

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

from videollama2.errors import DataError
from videollama2.media.kinds import AUDIO, IMAGE, VIDEO
from videollama2.shapes.questions import Question, choose_dialogue, questions
from videollama2.shapes.scene import Scene
from videollama2.shapes.sound_questions import HEARD_TYPES, SOUND_TYPES, sound_questions
from videollama2.shapes.sound_questions import training_questions as questions_of_training
from videollama2.shapes.sounds import Soundtrack

MCQ_PROMPT = (
    "Question: {question}\nOptions:\n{options}\n"
    "Answer with the option's letter from the given choices directly and only give the best option."
)
"""Prompt of a multiple-choice question, in the wording of the published MVBench runner."""


@dataclass(frozen=True)
class Annotation:
    """The annotations of one file of a set.

    ``record`` goes into train.json (its list of turns is empty if the scene supports no question), ``heard`` into
    sounds.json (the questions about the sound alone, None if there are none), ``rows`` go into questions.json, and
    ``balance_keys`` holds the :attr:`Question.balance_key` of each row.
    """

    record: dict[str, Any]
    rows: list[dict[str, Any]]
    balance_keys: list[str]
    heard: dict[str, Any] | None = None


def annotate(
    scene: Scene,
    file: str,
    *,
    questions_per_item: int,
    mcq_fraction: float,
    every_question: bool,
    track: Soundtrack | None = None,
    training_questions: bool = False,
) -> Annotation:
    """Return the annotations of one scene, which is drawn in ``file`` (a path relative to the set's folder).

    The record asks at most ``questions_per_item`` questions, a share of about ``mcq_fraction`` as multiple choice. The
    rows are the same questions or, with ``every_question``, all questions that the scene supports. With a soundtrack,
    the question about it is always among them. With ``training_questions``, the record of a clip about which there
    are questions of :data:`.sound_questions.TRAINING_TYPES` asks some of these, of that one and of what
    is seen to happen, in random order.
    """
    rng = random.Random(f"questions:{scene.seed}:{scene.modality}:{scene.index}")
    found = questions(scene, rng)
    if track is not None:
        found += sound_questions(scene, track, rng)
    asked = choose_dialogue(found, rng, questions_per_item, HEARD_TYPES)
    name = f"s{scene.seed}-{scene.modality}-{scene.index:06d}"
    trained = _in_training(found, scene, track, questions_per_item) if track and training_questions else []
    turns = _turns(trained or asked, scene.modality, mcq_fraction, rng)
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
    alone = [question for question in asked if question.type in SOUND_TYPES]
    turns = _turns(alone, AUDIO, mcq_fraction, rng)
    heard = {"id": f"{name}-sound", AUDIO: file, "conversations": turns} if alone else None
    return Annotation(record, rows, [question.balance_key for question in listed], heard)


def _in_training(found: list[Question], scene: Scene, track: Soundtrack, limit: int) -> list[Question]:
    """Return the dialogue with the questions that only training asks, or nothing if there are none about the clip.

    The generator is its own, so that the listed questions do not depend on these.
    """
    rng = random.Random(f"training:{scene.seed}:{scene.index}")
    steps = questions_of_training(scene, track, rng)
    if steps:
        steps += [question for question in found if question.type in HEARD_TYPES or _is_about_the_event(question)]
    return rng.sample(steps, min(limit, len(steps)))


def _is_about_the_event(question: Question) -> bool:
    """Return whether a question is about what the sound goes with: which object moves first, how the first changes."""
    return question.type == "order" or (question.type in ("change", "appearance") and question.subject == 0)


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


def choose_balanced(
    pool: list[tuple[str, dict[str, Any]]], total: int, seed: int, types: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Choose ``total`` rows of these types from (balance key, row) pairs, balanced over types, keys and files.

    The types take turns, and so do the keys within a type. Each turn takes the question whose file has been used least
    so far. Raises DataError when a type runs out of questions.
    """
    rng = random.Random(f"balance:{seed}")
    piles: dict[str, dict[str, list[dict[str, Any]]]] = {kind: {} for kind in types}
    for key, row in rng.sample(pool, len(pool)):
        piles[row["type"]].setdefault(key, []).append(row)
    used: Counter[str] = Counter()
    taken: list[dict[str, Any]] = []
    cycles: dict[str, list[str]] = {kind: [] for kind in types}
    # ``piles`` holds the rows left for each type and key, in random order; ``cycles`` the keys of each type that have
    # not had their turn in the current cycle.
    for number in range(total):
        kind = types[number % len(types)]
        row = _take(piles[kind], cycles[kind], used, rng)
        if row is None:
            raise DataError(
                f"this set has only {number // len(types)} questions of type {kind!r}: "
                f"{total} balanced questions need more videos"
            )
        used[_file(row)] += 1
        taken.append(row)
    return sorted(taken, key=lambda row: (IMAGE in row, _file(row), row["id"]))


def _file(row: dict[str, Any]) -> str:
    return row.get(VIDEO) or row[IMAGE]


def _take(
    piles: dict[str, list[dict[str, Any]]],
    cycle: list[str],
    used: Counter[str],
    rng: random.Random,
) -> dict[str, Any] | None:
    """Remove and return the next row of a type: the one of the next key in the cycle whose file was used least.

    A cycle visits every key once, in random order. Keys without rows left are skipped; None means that no row is left.
    """
    if not cycle:
        cycle.extend(rng.sample(sorted(piles), len(piles)))
    while cycle:
        pile = piles[cycle.pop()]
        if pile:
            best = min(range(len(pile)), key=lambda place: used[_file(pile[place])])
            return pile.pop(best)
    return next((pile.pop() for pile in piles.values() if pile), None)
