"""Questions about scenes, checked against an oracle that looks at the states of objects only."""

from collections import Counter, defaultdict

import pytest

from tests.shapes.helpers import assert_balanced, names_in, states, visible
from videollama2.shapes.questions import QUESTION_TYPES, STATIC_TYPES, TEMPORAL_TYPES, Question
from videollama2.shapes.scene import (
    COLOURS,
    QUADRANTS,
    SHAPES,
    Scene,
    ShapeObject,
)


def fitting(scene: Scene, text: str) -> list[int]:
    """Objects that look, in some frame, as the text says."""
    colours, shapes = names_in(text)
    return [
        index
        for index, item in enumerate(scene.objects)
        if any(
            (not colours or state.colour in colours) and (not shapes or state.shape in shapes)
            for state in visible(scene, item)
        )
    ]


def first_move(scene: Scene, item: ShapeObject) -> int:
    seen = states(scene, item)
    return next(frame for frame in range(1, scene.frames) if (seen[frame].x, seen[frame].y) != (seen[0].x, seen[0].y))


def way(first, last) -> str:
    across, down = last.x - first.x, last.y - first.y
    if abs(across) > abs(down):
        return "right" if across > 0 else "left"
    return "down" if down > 0 else "up"


def answer_from_states(scene: Scene, question: Question) -> str:
    if question.type == "count":
        return ("one", "two", "three", "four")[len(scene.objects) - 1]
    if question.type == "existence":
        return "yes" if fitting(scene, question.question) else "no"
    if question.type == "order":
        options = [name.removeprefix("the ") for name in question.candidates]
        owners = [fitting(scene, name)[0] for name in options]
        moves = [first_move(scene, scene.objects[owner]) for owner in owners]
        return "the " + options[moves.index(min(moves))]
    (owner,) = fitting(scene, question.question)
    item = scene.objects[owner]
    seen = visible(scene, item)
    if question.type == "position":
        return QUADRANTS[2 * (seen[0].y > 64) + (seen[0].x > 64)]
    if question.type == "direction":
        return way(seen[0], seen[-1])
    if question.type == "speed":
        path = sum(abs(b.x - a.x) + abs(b.y - a.y) for a, b in zip(seen, seen[1:], strict=False))
        return "fast" if path > 40 else "slowly"
    if question.type == "appearance":
        return "appears" if states(scene, item)[0] is None else "disappears"
    asks_colour = question.answer in COLOURS
    return seen[-1].colour if asks_colour else seen[-1].shape


@pytest.mark.slow
def test_every_answer_is_what_the_frames_show(asked):
    for scene, question in asked:
        assert answer_from_states(scene, question) == question.answer, (scene, question)


def test_names_are_true_of_one_object_in_all_its_frames(asked):
    for scene, question in asked:
        parts = [question.question]
        if question.type == "order":
            parts = question.question.split(" or ")
        for part in parts:
            colours, shapes = names_in(part)
            if question.type == "count" or (question.type, question.answer) == ("existence", "no"):
                continue
            (owner,) = fitting(scene, part)
            for state in visible(scene, scene.objects[owner]):
                assert not colours or state.colour in colours
                assert not shapes or state.shape in shapes


def test_types_and_their_media(asked):
    assert set(STATIC_TYPES) | set(TEMPORAL_TYPES) == set(QUESTION_TYPES)
    assert len(QUESTION_TYPES) == 10 and len(TEMPORAL_TYPES) == 5
    assert {q.type for scene, q in asked if scene.modality == "image"} == set(STATIC_TYPES)
    assert {q.type for scene, q in asked if scene.modality == "video"} == set(QUESTION_TYPES)
    assert min(Counter(q.type for _, q in asked).values()) > 300
    for scene, question in asked:
        if question.type in ("shape", "colour"):
            assert (
                len(
                    {
                        (state.shape, state.colour) if state else None
                        for state in states(scene, scene.objects[question.subject])
                    }
                )
                == 1
            )
        if question.type == "count":
            assert all(len(visible(scene, item)) == scene.frames for item in scene.objects)


def test_two_wordings_each(asked):
    shapes_of_text = defaultdict(set)
    for _, question in asked:
        words = question.question.replace("?", "").replace(",", "").split()
        frame = tuple(word for word in words if word not in COLOURS and word not in SHAPES)
        shapes_of_text[question.type].add(frame)
    for kind, frames in shapes_of_text.items():
        assert len(frames) >= 2, kind


def test_candidates(asked):
    places = defaultdict(Counter)
    for _, question in asked:
        assert question.answer in question.candidates
        assert len(set(question.candidates)) == len(question.candidates) and 2 <= len(question.candidates) <= 4
        places[len(question.candidates)][question.candidates.index(question.answer)] += 1
    for size, counts in places.items():
        total = sum(counts.values())
        assert all(abs(counts[place] / total - 1 / size) < 0.03 for place in range(size)), (size, counts)


def test_guessing_gives_chance(asked):
    assert_balanced([question for _, question in asked], slack=0.05)


def test_what_is_not_there_nearly_is(asked):
    denied = [(s, q) for s, q in asked if q.type == "existence" and q.answer == "no" and len(s.objects) in (2, 3)]
    wrong_pair = 0
    for scene, question in denied:
        (colour,), (shape,) = names_in(question.question)
        worn = [state for item in scene.objects for state in visible(scene, item)]
        assert shape in {state.shape for state in worn} or colour in {state.colour for state in worn}
        wrong_pair += shape in {state.shape for state in worn} and colour in {state.colour for state in worn}
    assert 0.4 < wrong_pair / len(denied) < 0.6
