"""The built-in world with sound: questions about a soundtrack.

Questions of SOUND_TYPES are about the sound alone. Those of BOTH_TYPES need sight and sound: either of the two
alone leaves all candidates equally likely. Those of HEARD_ORDER_TYPES may have another answer if the parts of the sound
change places.
"""

import random

from videollama2.shapes.questions import NUMBERS, Question, ask, name_facts, reference
from videollama2.shapes.scene import Scene
from videollama2.shapes.sounds import HIT, TONES, Soundtrack, callers, happening

SOUND_TYPES = ("tone", "hits", "heard_first")
BOTH_TYPES = ("maker", "caller", "together")
HEARD_TYPES = SOUND_TYPES + BOTH_TYPES
HEARD_ORDER_TYPES = ("heard_first", "maker", "together")


def sound_questions(scene: Scene, track: Soundtrack, rng: random.Random) -> list[Question]:
    """Return the questions that a soundtrack supports: one for each story, and none for a silent clip.

    Args:
        scene: the scene as it is drawn with this soundtrack, see :func:`.sounds.add_sound`.
        rng: decides on the wording and the order of the options.
    """
    if track.story == "silent":
        return []
    if track.story == "tone":
        return [ask(rng, "tone", (), track.events[0].kind, list(TONES))]
    if track.story == "hits":
        hits = sum(event.kind == HIT for event in track.events)
        return [ask(rng, "hits", (), NUMBERS[hits - 1], list(NUMBERS))]
    if track.story == "heard_first":
        kinds = [event.kind for event in track.events]
        return [ask(rng, "heard_first", tuple(rng.sample(kinds, len(kinds))), kinds[0], kinds)]
    if track.story == "together":
        lead = scene.objects[0]
        answer = "yes" if track.together else "no"
        return [ask(rng, "together", (reference(lead), happening(lead)), answer, ["yes", "no"], 0)]
    assert track.source is not None  # the objects of the remaining stories make their sounds themselves
    source = scene.objects[track.source]
    if track.story == "maker":
        names = [f"the {reference(item)}" for item in scene.objects[:2]]
        tells = name_facts(0, scene.objects[0]) | name_facts(1, scene.objects[1])
        asked = tuple(rng.sample(names, len(names)))
        return [ask(rng, "maker", asked, names[track.source], names, track.source, tells)]
    present = [scene.objects[index].colour for index in callers(scene)]
    return [ask(rng, "caller", (), source.colour, present, track.source)]
