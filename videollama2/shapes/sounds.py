"""Draws what a clip of the built-in world sounds like from its scene, and makes the samples of that sound.

A sounding scene is a scene of :mod:`.scene` with a soundtrack of 2 s, which tells one of these stories:

* ``tone``: one tone, which no object makes; ``hits``: one to four knocks; ``heard_first``: two tones, one after the
  other. What is seen says nothing about these sounds.
* ``maker``: of two objects, one slides early and the other late, and each comes to rest at the wall. The hit is heard
  at the end of one of the two slides.
* ``caller``: an object makes the tone of its shape (:data:`SHAPE_TONES`). The tone tells the shape, and the picture
  tells which colour that shape has.
* ``together``: an object changes, appears or disappears, early or late. A chime is heard, early or late. Both halves of
  the clip are equally likely for both, so neither the picture nor the sound tells whether they happen together.
* ``silent``: the file has no sound track.

In a ``together`` scene, the frame of the change is moved to one of the two halves. In everything else the pictures are
those of the scene without sound.
"""

import random
from dataclasses import dataclass, replace

import numpy as np

from videollama2.media.kinds import VIDEO
from videollama2.shapes.scene import CHANGES, FPS, FRAMES, SHAPES, SLIDE_FRAMES, SLIDES, VANISHING, Scene, ShapeObject

RATE = 16_000
"""Samples per second of a soundtrack."""
SECONDS = FRAMES / FPS

TONES = {"low": 330.0, "middle": 880.0, "high": 2200.0, "rough": 110.0}
"""The fundamental frequency of each tone in hertz. Only the rough one has overtones."""
SHAPE_TONES: dict[str, str] = dict(zip(SHAPES, TONES, strict=True))
"""The tone that objects of each shape make."""
PURE_TONES = ("low", "middle", "high")
OVERTONES = 24
"""Number of partials of the rough tone, the fundamental included."""

HIT, CHIME = "hit", "chime"
MOST_HITS = 4
STORIES = ("tone", "hits", "heard_first", "maker", "caller", "together", "silent")

EARLY_CHANGE, LATE_CHANGE = (2, 4), (20, 22)
"""First and last frame at which a change of a ``together`` scene may happen, in each half.

Of the eight frames that a model samples (1, 4, ..., 22), a connector joins two at a time. The change lies between the
first two or between the last two of them.
"""

OWN_STORIES = 0.6
"""How often a sounding scene whose objects allow a story of sight and sound (``maker``, ``together``) gets it."""

_SILENT_SHARE = 0.1
_HIT_SECONDS, _CHIME_SECONDS = 0.12, 0.25
_HIT_SLOT = 0.35
_NOISE = 0.001
_FADE_SECONDS = 0.02


@dataclass(frozen=True)
class SoundEvent:
    """One sound: a tone of :data:`TONES`, ``hit`` or ``chime``, with its start and length in seconds."""

    kind: str
    start: float
    seconds: float


@dataclass(frozen=True)
class Soundtrack:
    """The sound of one clip.

    ``source`` is the index of the object that makes the sound, or None. ``together`` tells whether the sound and the
    change of the first object coincide, and is None in other stories. ``seed`` decides on phases and noise.
    """

    story: str
    events: tuple[SoundEvent, ...] = ()
    source: int | None = None
    together: bool | None = None
    seed: int = 0


def add_sound(scene: Scene, own_stories: float = OWN_STORIES) -> tuple[Scene, Soundtrack]:
    """Return the scene as it is drawn with sound, and its soundtrack; both depend on the arguments alone.

    A picture is silent. ``own_stories`` is the share of sounding scenes whose objects allow a story of sight and sound
    that get it; the others get one of the remaining stories.
    """
    if scene.modality != VIDEO:
        return scene, Soundtrack("silent")
    rng = random.Random(f"sound:{scene.seed}:{scene.scenario}:{scene.index}:{len(scene.objects)}")
    story = _draw_story(scene, rng, own_stories)
    if story == "together":
        return _together(scene, rng)
    source, events = _draw_events(scene, story, rng)
    return scene, Soundtrack(story, tuple(events), source, seed=rng.getrandbits(32))


def _draw_story(scene: Scene, rng: random.Random, own_stories: float) -> str:
    if rng.random() < _SILENT_SHARE:
        return "silent"
    own = {"order": "maker", "recolour": "together", "reshape": "together", "appearance": "together"}
    if scene.scenario in own and rng.random() < own_stories:
        return own[scene.scenario]
    heard = ["tone", "hits", "heard_first"]
    if len(callers(scene)) > 1:
        heard += ["caller", "caller"]
    return rng.choice(heard)


def callers(scene: Scene) -> list[int]:
    """Return the indices of the objects that may call: those whose colour and shape stay the same."""
    return [index for index, item in enumerate(scene.objects) if item.steady]


def _together(scene: Scene, rng: random.Random) -> tuple[Scene, Soundtrack]:
    halves = {half: rng.randint(*bounds) for half, bounds in (("early", EARLY_CHANGE), ("late", LATE_CHANGE))}
    seen, heard = rng.choice(tuple(halves)), rng.choice(tuple(halves))
    lead = replace(scene.objects[0], event_frame=halves[seen])
    events = (SoundEvent(CHIME, halves[heard] / FPS, _CHIME_SECONDS),)
    track = Soundtrack("together", events, 0 if seen == heard else None, seen == heard, rng.getrandbits(32))
    return replace(scene, objects=(lead, *scene.objects[1:])), track


def _draw_events(scene: Scene, story: str, rng: random.Random) -> tuple[int | None, list[SoundEvent]]:
    """Return the index of the object that makes the sound, if one does, and the sounds."""
    if story == "tone":
        return None, [_tone(rng.choice(tuple(TONES)), rng)]
    if story == "hits":
        count = rng.randint(1, MOST_HITS)
        slots = sorted(rng.sample(range(5), count))
        return None, [SoundEvent(HIT, 0.1 + _HIT_SLOT * slot + rng.uniform(0, 0.1), _HIT_SECONDS) for slot in slots]
    if story == "heard_first":
        kinds = rng.sample(PURE_TONES, 2)
        starts = (rng.uniform(0.1, 0.3), rng.uniform(1.1, 1.3))
        return None, [SoundEvent(kind, start, rng.uniform(0.4, 0.6)) for kind, start in zip(kinds, starts, strict=True)]
    if story == "maker":
        # The first two objects of an 'order' scene slide, one early and one late.
        source = rng.randrange(2)
        rest = (scene.objects[source].event_frame + SLIDE_FRAMES) / FPS
        return source, [SoundEvent(HIT, rest, _HIT_SECONDS)]
    if story == "caller":
        source = rng.choice(callers(scene))
        return source, [_tone(SHAPE_TONES[scene.objects[source].shape], rng)]
    return None, []


def _tone(kind: str, rng: random.Random) -> SoundEvent:
    seconds = rng.uniform(0.5, 1.2)
    return SoundEvent(kind, rng.uniform(0.1, SECONDS - 0.1 - seconds), seconds)


def happening(item: ShapeObject) -> str:
    """Return what an object that changes, appears, disappears or slides does, as a verb phrase: 'changes colour'."""
    verbs = {"recolour": "changes colour", "reshape": "changes shape", "appear": "appears", "disappear": "disappears"}
    assert item.behaviour in CHANGES + VANISHING + SLIDES
    return verbs.get(item.behaviour, "moves")


def wave(track: Soundtrack) -> np.ndarray:
    """Return the samples of a soundtrack: float32 of shape (2 s * 16 kHz,), full scale 1, over faint noise."""
    rng = np.random.default_rng(track.seed)
    wave_S = rng.normal(0.0, _NOISE, round(SECONDS * RATE))
    for event in track.events:
        first = round(event.start * RATE)
        part_S = _samples(event, rng)[: len(wave_S) - first]
        wave_S[first : first + len(part_S)] += part_S
    return wave_S.clip(-1, 1).astype(np.float32)


def _samples(event: SoundEvent, rng: np.random.Generator) -> np.ndarray:
    count = round(event.seconds * RATE)
    time_S = np.arange(count) / RATE
    volume, pitch, phase = rng.uniform(0.2, 0.4), rng.uniform(0.97, 1.03), rng.uniform(0, 2 * np.pi)
    if event.kind == HIT:
        thud_S = np.sin(2 * np.pi * 160 * pitch * time_S) + 0.5 * rng.normal(size=count)
        return volume * thud_S * np.exp(-time_S / (event.seconds / 5))
    if event.kind == CHIME:
        # The pitch rises by two octaves.
        sounding_S = np.sin(phase + 2 * np.pi * 1000 * pitch * (time_S + 1.5 * time_S**2 / event.seconds))
    elif event.kind == "rough":
        # With phases of their own, the overtones do not add up to one sharp peak per period.
        overtones = enumerate(rng.uniform(0, 2 * np.pi, OVERTONES), start=1)
        sounding_S = sum(np.sin(own + 2 * np.pi * TONES["rough"] * pitch * k * time_S) for k, own in overtones)
        sounding_S = sounding_S / OVERTONES**0.5
    else:
        sounding_S = np.sin(phase + 2 * np.pi * TONES[event.kind] * pitch * time_S)
    fade = round(_FADE_SECONDS * RATE)
    ramp_S = np.minimum(np.minimum(np.arange(count), np.arange(count)[::-1]) / fade, 1.0)
    return volume * ramp_S * sounding_S
