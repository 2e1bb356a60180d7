"""Asks questions about a scene of the built-in world: the questions, their answers and the options to choose from.

There are ten types of question. Half of them can be answered from one frame (STATIC_TYPES). The others cannot
(TEMPORAL_TYPES): the clip played backwards or with its frames shuffled would have another answer, and that answer is
always among the candidates. Questions name an object by its colour and shape or, if one of these changes, by the other.
"""

import random
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from itertools import product

from videollama2.shapes.scene import COLOURS, COUNTABLE, QUADRANTS, SHAPES, Scene, ShapeObject

STATIC_TYPES = ("shape", "colour", "count", "position", "existence")
TEMPORAL_TYPES = ("direction", "order", "change", "speed", "appearance")
QUESTION_TYPES = STATIC_TYPES + TEMPORAL_TYPES

NUMBERS = ("one", "two", "three", "four")
DIRECTIONS = ("left", "right", "up", "down")
OPTIONS = 4

_WORDING = {
    "shape": ("What shape is the {0} object?", "What is the shape of the {0} object?"),
    "colour": ("What colour is the {0}?", "What is the colour of the {0}?"),
    "count": ("How many objects are there?", "How many objects can be seen?"),
    "position": ("Where is the {0}?", "In which part of the picture is the {0}?"),
    "existence": ("Is there a {0}?", "Can a {0} be seen?"),
    "direction": ("In which direction does the {0} move?", "Which way does the {0} move?"),
    "order": ("What moves first, the {0} or the {1}?", "Which object moves first, the {0} or the {1}?"),
    "recolour": ("What colour does the {0} become?", "Which colour does the {0} change to?"),
    "reshape": ("What shape does the {0} object become?", "Which shape does the {0} object change to?"),
    "speed": ("Does the {0} move fast or slowly?", "Does the {0} move slowly or fast?"),
    "appearance": ("Does the {0} appear or disappear?", "Does the {0} disappear or appear?"),
    "tone": ("Which tone is heard?", "Which tone can be heard?"),
    "hits": ("How many hits are heard?", "How many hits can be heard?"),
    "heard_first": ("Which tone is heard first, {0} or {1}?", "Which is the first tone, {0} or {1}?"),
    "maker": ("What makes the sound, {0} or {1}?", "Which object makes the sound, {0} or {1}?"),
    "caller": ("What colour is the object that makes the sound?", "What is the colour of the object that is heard?"),
    "together": ("Is the sound heard when the {0} {1}?", "Can the sound be heard when the {0} {1}?"),
    "heard_when": ("Is the sound heard early or late?", "When is the sound heard, early or late?"),
    "seen_when": ("When is it that the {0} {1}, early or late?", "Is it early or late that the {0} {1}?"),
    "noise": ("What made the noise?", "What makes the sound?"),
    "sooner": (
        "Is the sound heard before, after or when the {0} {1}?",
        "When is the sound heard: before, after or when the {0} {1}?",
    ),
}
"""Two ways to ask each question; the types from 'tone' on are those of :mod:`.sound_questions`."""


@dataclass(frozen=True)
class Question:
    """One question with its answer and its options, one of which is the answer.

    ``subject`` is the index of the object asked about, or None for a question about the whole scene. ``tells`` holds
    the facts that a reader of the question and its answer knows. ``told_by`` holds the facts each of which gives the
    answer away: after a turn that tells one of them, a dialogue does not ask the question.
    """

    type: str
    question: str
    answer: str
    candidates: tuple[str, ...]
    subject: int | None = None
    tells: frozenset[str] = frozenset()
    told_by: frozenset[str] = frozenset()

    @property
    def balance_key(self) -> str:
        """The value to balance so that no constant strategy beats chance: the answer, or its place in the question."""
        if self.type not in ("order", "heard_first", "maker"):
            return self.answer
        named_first = self.question.split(", ")[1].startswith(self.answer + " or ")
        return "named first" if named_first else "named last"


def reference(item: ShapeObject) -> str:
    """Return a name that fits an object throughout the clip: 'red circle', 'circle' or 'red object'."""
    if item.behaviour == "recolour":
        return item.shape
    if item.behaviour == "reshape":
        return f"{item.colour} object"
    return f"{item.colour} {item.shape}"


def questions(scene: Scene, rng: random.Random) -> list[Question]:
    """Return the questions that the scene supports, at most one per type and object, in a fixed order of types.

    ``rng`` decides on the wording, the options and their order, and whether a question about existence asks for an
    object that is there.
    """
    found: list[Question] = []
    for make in _MAKERS:
        found.extend(make(scene, rng))
    return found


def choose_dialogue(
    found: list[Question], rng: random.Random, limit: int, kept_types: Collection[str] = ()
) -> list[Question]:
    """Return up to ``limit`` questions in random order, such that no turn gives the answer of a later one away.

    If there are more than ``limit``, questions of ``kept_types`` are kept first, and of the others, the first question
    of every type before the second of any. The number of objects is asked for in the first or second turn, because the
    objects named in later turns could be counted.
    """
    # ``told`` collects the facts that earlier turns tell. Each kept question is noted with its number within its type
    # and its place in the dialogue: sorting by the first fills the limit, sorting by the second restores the order.
    told: set[str] = set()
    asked: dict[str, int] = {}
    order: list[tuple[int, int, Question]] = []
    for question in _speed_first(rng.sample(found, len(found))):
        if told & question.told_by:
            continue
        told |= question.tells
        rank = -1 if question.type in kept_types else asked.get(question.type, 0)
        order.append((rank, len(order), question))
        asked[question.type] = asked.get(question.type, 0) + 1
    kept = [question for _, _, question in sorted(sorted(order)[:limit], key=lambda row: row[1])]
    counts = [question for question in kept if question.type == "count"]
    others = [question for question in kept if question.type != "count"]
    place = min(rng.randint(0, 1), len(others))
    return others[:place] + counts + others[place:]


def _speed_first(pool: list[Question]) -> list[Question]:
    """Move the question about an object's speed before the one about its direction, by exchanging their places.

    Only a slow object has a direction to ask for, so the direction gives the speed away. If such questions about speed
    were dropped instead, those that are left would be mostly about fast objects.
    """
    ordered = list(pool)
    places = {(question.type, question.subject): place for place, question in enumerate(pool)}
    for (kind, subject), place in places.items():
        other = places.get(("direction", subject), -1)
        if kind == "speed" and 0 <= other < place:
            ordered[other], ordered[place] = pool[place], pool[other]
    return ordered


def make_question(
    rng: random.Random,
    kind: str,
    names: tuple[str, ...],
    answer: str,
    candidates: list[str],
    item: int | None = None,
    tells: Iterable[str] = (),
    told_by: Iterable[str] = (),
) -> Question:
    """Return a question of a kind (a key of the wordings) about objects with these names.

    The wording and the order of the candidates are drawn at random. ``item`` is the question's ``subject``.
    """
    return Question(
        type="change" if kind in ("recolour", "reshape") else kind,
        question=rng.choice(_WORDING[kind]).format(*names),
        answer=answer,
        candidates=tuple(rng.sample(candidates, len(candidates))),
        subject=item,
        tells=frozenset(tells),
        told_by=frozenset(told_by),
    )


def name_facts(index: int, item: ShapeObject) -> set[str]:
    """Return the fact that a mention of this object reveals: which colour goes with which shape."""
    return {f"name {index}"} if item.behaviour not in ("recolour", "reshape") else set()


def _options(rng: random.Random, answer: str, likely: list[str], every: tuple[str, ...]) -> list[str]:
    """Return four different options: the answer, then the likely wrong ones, then others drawn at random."""
    rest = [value for value in every if value != answer and value not in likely]
    wrong = [value for value in likely if value != answer] + rng.sample(rest, len(rest))
    return [answer, *wrong[: OPTIONS - 1]]


def _looks(scene: Scene, rng: random.Random) -> list[Question]:
    """Ask for the shape and for the colour of each object that keeps both."""
    found = []
    for index, item in enumerate(scene.objects):
        if not item.steady:
            continue
        facts = name_facts(index, item)
        found.append(make_question(rng, "shape", (item.colour,), item.shape, list(SHAPES), index, facts, facts))
        present = [other.colour for other in scene.objects if other is not item]
        options = _options(rng, item.colour, present, tuple(COLOURS))
        found.append(make_question(rng, "colour", (item.shape,), item.colour, options, index, facts, facts))
    return found


def _count(scene: Scene, rng: random.Random) -> list[Question]:
    if scene.scenario not in COUNTABLE:
        return []
    return [make_question(rng, "count", (), NUMBERS[len(scene.objects) - 1], list(NUMBERS), None, set(), set())]


def _position(scene: Scene, rng: random.Random) -> list[Question]:
    return [
        make_question(
            rng,
            "position",
            (reference(item),),
            QUADRANTS[item.quadrant],
            list(QUADRANTS),
            index,
            name_facts(index, item) | {f"place {index}"},
            {f"place {index}"},
        )
        for index, item in enumerate(scene.objects)
        if item.behaviour not in ("appear", "disappear")
    ]


def _existence(scene: Scene, rng: random.Random) -> list[Question]:
    """Ask whether something can be seen: in half of the cases a steady object, else one that resembles it."""
    found = []
    for index, item in enumerate(scene.objects):
        if not item.steady:
            continue
        name = f"name {index}"
        if rng.random() < 0.5:
            # The name of a second object gives half of the 'no' answers away. Half of the 'yes' answers count as given
            # away by a second name as well, although it does not tell them: otherwise dialogues would keep more
            # questions with the answer 'yes' than with 'no'.
            second = f"name {(index + 1) % len(scene.objects)}" if item.quadrant % 2 else name
            told_by = {name, second}
            found.append(
                make_question(rng, "existence", (reference(item),), "yes", ["yes", "no"], index, {name}, told_by)
            )
            continue
        wrong, owners = _absent(scene, rng, index)
        found.append(make_question(rng, "existence", (wrong,), "no", ["yes", "no"], index, set(), owners))
    return found


def _absent(scene: Scene, rng: random.Random, index: int) -> tuple[str, set[str]]:
    """Return the name of an object that the scene never shows, and the facts that give this away.

    In half of the cases the name has the colour of object ``index`` and another shape (that of another object, if there
    is one), else its shape and a colour that no object has.
    """
    item = scene.objects[index]
    used = {colour for other in scene.objects for colour in (other.colour, other.colour_after)}
    unused = [colour for colour in COLOURS if colour not in used]
    if unused and rng.random() < 0.5:
        return f"{rng.choice(unused)} {item.shape}", {f"name {index}"}
    others = [(n, other.shape) for n, other in enumerate(scene.objects) if n != index]
    if not others:
        shape = rng.choice([shape for shape in SHAPES if shape != item.shape])
        return f"{item.colour} {shape}", {f"name {index}"}
    owner, shape = rng.choice(others)
    return f"{item.colour} {shape}", {f"name {index}", f"name {owner}"}


def _direction(scene: Scene, rng: random.Random) -> list[Question]:
    # An object with one direction crosses its quadrant once, so the direction also tells that it is slow.
    return [
        make_question(
            rng,
            "direction",
            (reference(item),),
            item.direction,
            list(DIRECTIONS),
            index,
            name_facts(index, item) | {f"speed {index}"},
            set(),
        )
        for index, item in enumerate(scene.objects)
        if item.direction is not None
    ]


def _order(scene: Scene, rng: random.Random) -> list[Question]:
    numbered = list(enumerate(scene.objects))
    early = [pair for pair in numbered if pair[1].behaviour == "slide_early"]
    late = [pair for pair in numbered if pair[1].behaviour == "slide_late"]
    found = []
    for (first, item), (second, other) in list(product(early, late))[:1]:
        names = (reference(item), reference(other)) if rng.random() < 0.5 else (reference(other), reference(item))
        answer = f"the {reference(item)}"
        tells = name_facts(first, item) | name_facts(second, other)
        options = [answer, f"the {reference(other)}"]
        found.append(make_question(rng, "order", names, answer, options, first, tells, set()))
    return found


def _change(scene: Scene, rng: random.Random) -> list[Question]:
    found = []
    for index, item in enumerate(scene.objects):
        if item.behaviour == "recolour":
            options = _options(rng, item.colour_after, [item.colour], tuple(COLOURS))
            found.append(make_question(rng, "recolour", (item.shape,), item.colour_after, options, index, set(), set()))
        elif item.behaviour == "reshape":
            found.append(
                make_question(rng, "reshape", (item.colour,), item.shape_after, list(SHAPES), index, set(), set())
            )
    return found


def _speed(scene: Scene, rng: random.Random) -> list[Question]:
    words = {"bounce_slow": "slowly", "bounce_fast": "fast"}
    return [
        make_question(
            rng,
            "speed",
            (reference(item),),
            words[item.behaviour],
            ["fast", "slowly"],
            index,
            name_facts(index, item),
            {f"speed {index}"},
        )
        for index, item in enumerate(scene.objects)
        if item.behaviour in words
    ]


def _appearance(scene: Scene, rng: random.Random) -> list[Question]:
    words = {"appear": "appears", "disappear": "disappears"}
    return [
        make_question(
            rng,
            "appearance",
            (reference(item),),
            words[item.behaviour],
            ["appears", "disappears"],
            index,
            name_facts(index, item),
            set(),
        )
        for index, item in enumerate(scene.objects)
        if item.behaviour in words
    ]


_MAKERS: tuple[Callable[[Scene, random.Random], list[Question]], ...] = (
    _looks,
    _count,
    _position,
    _existence,
    _direction,
    _order,
    _change,
    _speed,
    _appearance,
)
