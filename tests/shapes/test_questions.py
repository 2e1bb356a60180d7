"""Dialogues about scenes of the built-in world: no turn answers a later one, and the answers stay balanced."""

import random

from tests.shapes.helpers import ask, assert_balanced, names_in
from videollama2.shapes.questions import choose_dialogue
from videollama2.shapes.scene import COLOURS, SHAPES, make_scene


def test_no_turn_gives_a_later_answer_away(videos):
    for scene in videos:
        turns = choose_dialogue(ask(scene), random.Random(scene.index), 8)
        assert len(turns) <= 8
        assert len({(question.type, question.subject) for question in turns}) == len(turns)
        known: set[tuple[str, str]] = set()
        for place, question in enumerate(turns):
            if question.type == "count":
                assert place < 2
            colours, shapes = names_in(question.question)
            if question.type in ("shape", "colour"):
                assert not any(colour in colours or shape in shapes for colour, shape in known), turns
            if question.type == "existence":
                pair = (*colours, *shapes)
                assert not any(pair[0] == colour or pair[1] == shape for colour, shape in known), turns
            if question.type != "change" and question.answer != "no":
                known |= pairs_in(f"{question.question} {question.answer}")


def pairs_in(text: str) -> set[tuple[str, str]]:
    words = text.replace("?", "").replace(",", "").split()
    found = {pair for pair in zip(words, words[1:], strict=False) if pair[0] in COLOURS and pair[1] in SHAPES}
    colours, shapes = names_in(text)
    if len(colours) == len(shapes) == 1:
        found.add((*colours, *shapes))
    return found


def test_a_short_dialogue_has_many_types(videos):
    rich = [scene for scene in videos if len({q.type for q in ask(scene)}) >= 6]
    for scene in rich[:200]:
        turns = choose_dialogue(ask(scene), random.Random(1), 3)
        assert len({question.type for question in turns}) == 3


def test_guessing_gives_chance(videos):
    """Leaving out what earlier turns give away must not tilt the answers that remain."""
    kept = []
    for scene in videos + [make_scene(5, index, "image") for index in range(500)]:
        kept += choose_dialogue(ask(scene), random.Random(scene.index), 8)
    assert_balanced(kept, slack=0.05)
