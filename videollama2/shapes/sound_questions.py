"""Asks questions about a soundtrack of the built-in world.

Questions of SOUND_TYPES are about the sound alone. Those of BOTH_TYPES need sight and sound: either of the two
alone leaves all candidates equally likely. Those of HEARD_ORDER_TYPES may have another answer if the parts of the sound
change places.

Those of TRAINING_TYPES are asked in training only. They are steps on the way to BOTH_TYPES. Answers of yes and no alone
hardly teach a model whether two things coincide, because knowing when one of the two happens makes neither answer more
likely. A model learns it after it has learnt when each of them happens, and which of them is sooner.
"""

import random

from videollama2.shapes.questions import NUMBERS, Question, make_question, name_facts, reference
from videollama2.shapes.scene import FPS, Scene
from videollama2.shapes.sounds import HIT, SECONDS, TONES, Soundtrack, callers, happening

SOUND_TYPES = ("tone", "hits", "heard_first")
BOTH_TYPES = ("maker", "caller", "together")
HEARD_TYPES = SOUND_TYPES + BOTH_TYPES
HEARD_ORDER_TYPES = ("heard_first", "maker", "together")
TRAINING_TYPES = ("heard_when", "seen_when", "sooner", "noise")


def sound_questions(scene: Scene, track: Soundtrack, rng: random.Random) -> list[Question]:
    """Return the questions that a soundtrack supports: one for each story, and none for a silent clip.

    Args:
        scene: the scene as it is drawn with this soundtrack, see :func:`.sounds.add_sound`.
        rng: decides on the wording and the order of the options.
    """
    if track.story == "silent":
        return []
    if track.story == "tone":
        return [make_question(rng, "tone", (), track.events[0].kind, list(TONES))]
    if track.story == "hits":
        hits = sum(event.kind == HIT for event in track.events)
        return [make_question(rng, "hits", (), NUMBERS[hits - 1], list(NUMBERS))]
    if track.story == "heard_first":
        kinds = [event.kind for event in track.events]
        return [make_question(rng, "heard_first", tuple(rng.sample(kinds, len(kinds))), kinds[0], kinds)]
    if track.story == "together":
        lead = scene.objects[0]
        answer = "yes" if track.together else "no"
        return [make_question(rng, "together", (reference(lead), happening(lead)), answer, ["yes", "no"], 0)]
    assert track.source is not None  # the objects of the remaining stories make their sounds themselves
    source = scene.objects[track.source]
    if track.story == "maker":
        names = [f"the {reference(item)}" for item in scene.objects[:2]]
        tells = name_facts(0, scene.objects[0]) | name_facts(1, scene.objects[1])
        asked = tuple(rng.sample(names, len(names)))
        return [make_question(rng, "maker", asked, names[track.source], names, track.source, tells)]
    present = [scene.objects[index].colour for index in callers(scene)]
    return [make_question(rng, "caller", (), source.colour, present, track.source)]


def training_questions(scene: Scene, track: Soundtrack, rng: random.Random) -> list[Question]:
    """Return the questions of TRAINING_TYPES about a ``maker``, ``caller`` or ``together`` clip, none about another.

    ``heard_when`` asks for the half of the clip in which the sound is heard, ``seen_when`` for the one in which an
    object changes or moves (of the two movers, one drawn at random), and ``sooner`` for which comes first. ``noise``
    asks for the object that makes the sound without naming any.
    """
    noise = []
    if track.story in ("maker", "caller"):
        assert track.source is not None
        names = [f"the {reference(item)}" for item in scene.objects if item.steady]
        noise = [make_question(rng, "noise", (), f"the {reference(scene.objects[track.source])}", names, track.source)]
    if track.story not in ("maker", "together"):
        return noise
    index = 0 if track.story == "together" else rng.randrange(2)
    item = scene.objects[index]
    happens = (reference(item), happening(item))
    heard, seen = _half(track.events[0].start), _half(item.event_frame / FPS)
    found = [
        make_question(rng, "heard_when", (), heard, list(_HALVES)),
        make_question(rng, "seen_when", happens, seen, list(_HALVES), index),
        *noise,
    ]
    if track.story == "together":
        answer = "when" if heard == seen else "before" if heard == "early" else "after"
        found.append(make_question(rng, "sooner", happens, answer, ["before", "when", "after"], index))
    return found


_HALVES = ("early", "late")


def _half(seconds: float) -> str:
    return _HALVES[seconds >= SECONDS / 2]
