"""What tests of the built-in world read out of scenes and questions."""

import random
from collections import Counter, defaultdict
from collections.abc import Collection
from functools import cache

from videollama2.shapes.questions import QUESTION_TYPES, Question, questions
from videollama2.shapes.scene import COLOURS, FRAMES, SHAPES, Scene, ShapeObject

SAMPLED = (1, 4, 7, 10, 13, 16, 19, 22)
"""The frames that the published uniform sampling takes out of 24 when it wants 8."""


def ask(scene: Scene) -> list[Question]:
    return questions(scene, random.Random(scene.index))


def states(scene: Scene, item: ShapeObject) -> list:
    return looks(item)[: scene.frames]


@cache  # asked for the same objects again and again
def looks(item: ShapeObject) -> list:
    return [item.state(frame) for frame in range(FRAMES)]


def visible(scene: Scene, item: ShapeObject) -> list:
    return [state for state in states(scene, item) if state is not None]


def names_in(text: str) -> tuple[set[str], set[str]]:
    """Colours and shapes that a text names."""
    words = set(text.replace("?", "").replace(",", "").split())
    return words & set(COLOURS), words & set(SHAPES)


def assert_balanced(found: list[Question], slack: float, types: Collection[str] = QUESTION_TYPES) -> None:
    """Check that all types occur, and that one answer for all is right as often as a guess, apart from some slack."""
    by_type = defaultdict(list)
    for question in found:
        by_type[question.type].append(question)
    assert set(by_type) == set(types)
    for kind, group in by_type.items():
        chance = sum(1 / len(question.candidates) for question in group) / len(group)
        (most, times), *_ = Counter(question.balance_key for question in group).most_common(1)
        assert times / len(group) < chance + slack, (kind, most, times, len(group))
