"""What the order of frames tells: clips backwards, fast and slow, and what eight sampled frames see."""

from collections import Counter
from dataclasses import replace

import pytest

from tests.shapes.helpers import SAMPLED, ask, states
from videollama2.shapes.questions import TEMPORAL_TYPES
from videollama2.shapes.scene import (
    FRAMES,
    SLIDE_FRAMES,
    ShapeObject,
)


def backwards(item: ShapeObject) -> ShapeObject:
    """The object of the same world that looks, in frame f, as this one does in frame 23 - f."""
    partner = {"slide_early": "slide_late", "appear": "disappear"}
    partner |= {late: early for early, late in partner.items()}
    moves = item.direction is not None or item.behaviour == "bounce_fast"
    slides = item.behaviour.startswith("slide")
    event = FRAMES - item.event_frame - (SLIDE_FRAMES if slides else 0)
    return replace(
        item,
        behaviour=partner.get(item.behaviour, item.behaviour),
        shape=item.shape_after,
        shape_after=item.shape,
        colour=item.colour_after,
        colour_after=item.colour,
        from_low=not item.from_low if moves else item.from_low,
        event_frame=event if item.event_frame else 0,
    )


def test_a_clip_played_backwards_asks_for_another_answer_among_the_candidates(videos):
    """No reader of the frames as a set can answer: both clips show the same set, and both are equally likely."""
    assert {FRAMES - 1 - frame for frame in SAMPLED} == set(SAMPLED)
    tried = Counter()
    for scene in videos[:600]:
        mirror = replace(scene, objects=tuple(map(backwards, scene.objects)))
        for item, mirrored in zip(scene.objects, mirror.objects, strict=True):
            for then, now in zip(states(scene, item), reversed(states(mirror, mirrored)), strict=True):
                assert (then is None) == (now is None)
                if then is not None:
                    assert (then.shape, then.colour) == (now.shape, now.colour)
                    assert (then.x, then.y) == pytest.approx((now.x, now.y))
        reversed_answers = {}
        for question in ask(mirror):
            key = frozenset(question.candidates) if question.type == "order" else question.subject
            reversed_answers[question.type, key] = question.answer
        for question in ask(scene):
            if question.type in TEMPORAL_TYPES and question.type != "speed":
                key = frozenset(question.candidates) if question.type == "order" else question.subject
                other = reversed_answers.get((question.type, key))
                if other is not None:
                    assert other != question.answer and other in question.candidates
                    tried[question.type] += 1
    assert set(tried) == {"direction", "order", "change", "appearance"} and min(tried.values()) > 30, tried


def test_fast_and_slow_visit_the_same_places_in_another_order(videos):
    tried = 0
    for scene in videos:
        for item in scene.objects:
            if item.behaviour == "bounce_fast":
                slow = replace(item, behaviour="bounce_slow")
                of_fast, of_slow = (
                    [(round(look.x, 6), round(look.y, 6)) for look in map(each.state, SAMPLED)] for each in (item, slow)
                )
                assert sorted(of_fast) == sorted(of_slow) and len(set(of_fast)) == 8
                assert of_fast not in (of_slow, of_slow[::-1])
                tried += 1
    assert tried > 300


def test_sampled_frames_see_every_event(videos):
    """Eight uniform frames are enough for every question: they see both sides of each change and slide."""
    for scene in videos:
        for item in scene.objects:
            if item.behaviour != "still":
                assert len({item.state(frame) for frame in SAMPLED}) >= 2
        moves = [i.event_frame for i in scene.objects if i.behaviour == "slide_early"]
        late = [i.event_frame for i in scene.objects if i.behaviour == "slide_late"]
        if moves and late:
            assert any(max(moves) + SLIDE_FRAMES <= frame < min(late) for frame in SAMPLED)
