"""Draws and paints scenes of the built-in world: what a scene is, and how a seed decides it.

A scene is a 128 x 128 picture, or a clip of 24 such frames at 12 frames per second, divided into 2 x 2 quadrants. It
has one to four objects, at most one per quadrant, each with one behaviour. No two objects of a scene have the same
colour or the same shape at any time, so either attribute alone identifies an object.

The world is symmetric under reversal of time: a clip played backwards is another clip that it could have drawn.
Therefore questions about time cannot be answered without the order of the frames. Speed follows the same idea: a slow
object crosses its quadrant once and a fast one three times, along a triangular wave, so that eight frames sampled
uniformly (1, 4, ..., 22) show both at the same eight places, in a different order.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from videollama2.errors import ConfigError
from videollama2.media.kinds import IMAGE, VIDEO

SIZE = 128
FRAMES = 24
FPS = 12

COLOURS = {
    "red": (222, 44, 44),
    "green": (40, 176, 64),
    "blue": (44, 84, 232),
    "yellow": (240, 214, 40),
    "purple": (164, 52, 196),
    "white": (240, 240, 240),
}
"""The RGB value of each colour name; they are far enough apart to stay distinct after 4:2:0 chroma subsampling."""

SHAPES = ("circle", "square", "triangle", "cross")
QUADRANTS = ("top left", "top right", "bottom left", "bottom right")
MODALITIES = (VIDEO, IMAGE)

SLIDE_FRAMES = 6
"""Number of frames that a slide takes."""

CROSSINGS = {"travel": 1, "bounce_slow": 1, "bounce_fast": 3}
SLIDES = ("slide_early", "slide_late")
CHANGES = ("recolour", "reshape")
VANISHING = ("appear", "disappear")

_HALF = SIZE // 4
_MARGIN = 2
_REACH = 13.0
"""Largest distance in pixels of a moving centre from its quadrant's centre: a path is 26 pixels long."""
_RADII = (14.0, 16.0)
_BACKGROUND = (34, 56)

# The behaviours that a scenario needs: a scene gets one of these tuples, drawn at random. Two scenarios lead to
# 'change' questions, so each of them has half the weight of the others.
_LEADS: dict[str, tuple[tuple[str, ...], ...]] = {
    "direction": (("travel",),),
    "order": (SLIDES,),
    "recolour": (("recolour",),),
    "reshape": (("reshape",),),
    "speed": (("bounce_slow",), ("bounce_fast",)),
    "appearance": (("appear",), ("disappear",)),
}
_WEIGHTS = {"direction": 2, "order": 2, "recolour": 1, "reshape": 1, "speed": 2, "appearance": 2}
_FILL = ("still", "still", *CROSSINGS, *SLIDES, *CHANGES)

COUNTABLE = frozenset({"direction", "recolour", "speed", "still"})
"""Scenarios whose number of objects is uniform over one to four and does not change within the clip."""


@dataclass(frozen=True)
class ObjectState:
    """One object in one frame: its centre (x, y) in pixels from the top left corner, and its look."""

    shape: str
    colour: str
    x: float
    y: float


@dataclass(frozen=True)
class ShapeObject:
    """One object: its quadrant, its look and its behaviour.

    ``event_frame`` is the first frame of a slide, or the first frame after a change. ``offset_x`` and ``offset_y`` are
    the distance in pixels of the resting object from the quadrant's centre; a moving object does not use the one along
    its ``axis``.
    """

    quadrant: int
    radius: float
    shape: str
    colour: str
    shape_after: str
    colour_after: str
    behaviour: str
    axis: str
    from_low: bool
    event_frame: int
    offset_x: float
    offset_y: float

    @property
    def steady(self) -> bool:
        """Whether colour, shape and presence stay the same throughout the clip."""
        return self.behaviour not in CHANGES and self.behaviour not in VANISHING

    @property
    def direction(self) -> str | None:
        """'left', 'right', 'up' or 'down' for an object that crosses its quadrant exactly once, else None."""
        if self.behaviour not in SLIDES and CROSSINGS.get(self.behaviour) != 1:
            return None
        low_to_high, high_to_low = ("right", "left") if self.axis == "x" else ("down", "up")
        return low_to_high if self.from_low else high_to_low

    def progress(self, frame: int) -> float | None:
        """Return the share of the path (0 to 1) covered by the middle of a frame, or None if the object never moves."""
        if self.behaviour in SLIDES:
            return min(max((frame + 0.5 - self.event_frame) / SLIDE_FRAMES, 0.0), 1.0)
        if self.behaviour in CROSSINGS:
            phase = CROSSINGS[self.behaviour] * (frame + 0.5) / FRAMES % 2
            return phase if phase <= 1 else 2 - phase
        return None

    def state(self, frame: int) -> ObjectState | None:
        """Return the object's state in one frame (0 to 23), or None if the frame does not show it."""
        after = frame >= self.event_frame
        if (self.behaviour == "appear" and not after) or (self.behaviour == "disappear" and after):
            return None
        offsets = {"x": self.offset_x, "y": self.offset_y}
        progress = self.progress(frame)
        if progress is not None:
            offsets[self.axis] = _REACH * (2 * progress - 1) * (1 if self.from_low else -1)
        return ObjectState(
            shape=self.shape_after if after else self.shape,
            colour=self.colour_after if after else self.colour,
            x=_HALF * (1 + 2 * (self.quadrant % 2)) + offsets["x"],
            y=_HALF * (1 + 2 * (self.quadrant // 2)) + offsets["y"],
        )


@dataclass(frozen=True)
class Scene:
    """A scene: its objects, the grey value of its background (0 to 255), and the values that it was drawn from."""

    seed: int
    index: int
    modality: str
    scenario: str
    background: int
    objects: tuple[ShapeObject, ...]

    @property
    def frames(self) -> int:
        return FRAMES if self.modality == VIDEO else 1

    @property
    def fingerprint(self) -> str:
        """Return a hash of what is drawn, without the seed: two scenes that look alike have the same hash."""
        return sha256(repr((self.modality, self.background, self.objects)).encode()).hexdigest()


SCENARIOS = tuple(_LEADS)
MOST_OBJECTS = 4
"""Largest number of objects in a scene: one per quadrant."""


def make_scene(
    seed: int, index: int, modality: str = VIDEO, scenario: str | None = None, objects: int | None = None
) -> Scene:
    """Draw scene number ``index`` of a seed; the scene depends on the arguments alone.

    Sets of different seeds share no scene, because positions and sizes are continuous. ``scenario`` (one of
    :data:`SCENARIOS`) decides what a clip is about; without it the scenario is drawn at random, and a picture has none.
    ``objects`` lowers the limit of four objects, though not below the number that the scenario needs. Raises
    ConfigError for an unknown modality or scenario, and for a limit outside 1 to 4.
    """
    if modality not in MODALITIES:
        raise ConfigError(f"modality {modality!r} is none of {', '.join(MODALITIES)}")
    if scenario is not None and scenario not in SCENARIOS:
        raise ConfigError(f"scenario {scenario!r} is none of {', '.join(SCENARIOS)}")
    most = MOST_OBJECTS if objects is None else objects
    if not 1 <= most <= MOST_OBJECTS:
        raise ConfigError(f"objects {most} is not between 1 and {MOST_OBJECTS}")
    rng = random.Random(f"{seed}:{modality}:{index}")
    if modality == IMAGE:
        scenario = "still"
    else:
        drawn = rng.choices(list(_WEIGHTS), weights=list(_WEIGHTS.values()))[0]
        scenario = scenario or drawn
    behaviours = _draw_behaviours(rng, scenario, most)
    colours = iter(rng.sample(list(COLOURS), len(COLOURS)))
    shapes = iter(rng.sample(SHAPES, len(SHAPES)))
    looks = [(next(shapes), next(colours)) for _ in behaviours]
    drawn_objects = []
    for behaviour, quadrant, (shape, colour) in zip(
        behaviours, rng.sample(range(4), len(behaviours)), looks, strict=True
    ):
        drawn_objects.append(
            _draw_object(
                rng,
                quadrant=quadrant,
                shape=shape,
                colour=colour,
                shape_after=next(shapes) if behaviour == "reshape" else shape,
                colour_after=next(colours) if behaviour == "recolour" else colour,
                behaviour=behaviour,
            )
        )
    return Scene(seed, index, modality, scenario, rng.randint(*_BACKGROUND), tuple(drawn_objects))


def _draw_behaviours(rng: random.Random, scenario: str, most: int) -> list[str]:
    if scenario == "still":
        return ["still"] * rng.randint(1, most)
    behaviours = list(rng.choice(_LEADS[scenario]))
    # An object that changes its shape takes up two of the four shapes, which leaves two for other objects.
    most = min(most, 3) if scenario == "reshape" else most
    count = rng.randint(len(behaviours), max(len(behaviours), most))
    choices = _FILL + VANISHING if scenario == "appearance" else _FILL
    # Each object takes up one colour and one shape, and a second one if it changes it. ``spare`` counts what is left.
    spare = {"recolour": len(COLOURS) - count, "reshape": len(SHAPES) - count}
    for lead in behaviours:
        if lead in spare:
            spare[lead] -= 1
    while len(behaviours) < count:
        behaviour = rng.choice([b for b in choices if spare.get(b, 1) > 0])
        if behaviour in spare:
            spare[behaviour] -= 1
        behaviours.append(behaviour)
    return behaviours


def _draw_object(rng: random.Random, behaviour: str, **look: Any) -> ShapeObject:
    """Draw the size, motion and place of an object whose quadrant, shapes and colours (``look``) are given."""
    radius = rng.uniform(*_RADII)
    room = _HALF - _MARGIN - radius
    early = rng.randint(3, 4)
    events = {
        "slide_early": early,
        "slide_late": FRAMES - SLIDE_FRAMES - early,
        **dict.fromkeys(CHANGES + VANISHING, rng.randint(9, 15)),
    }
    return ShapeObject(
        radius=radius,
        behaviour=behaviour,
        axis=rng.choice("xy"),
        from_low=rng.random() < 0.5,
        event_frame=events.get(behaviour, 0),
        offset_x=rng.uniform(-room, room),
        offset_y=rng.uniform(-room, room),
        **look,
    )


def render_scene(scene: Scene, frames: Sequence[int] | None = None) -> np.ndarray:
    """Paint a scene: uint8 RGB of shape (T, 128, 128, 3).

    Args:
        frames: numbers of the T frames; None paints them all, which are 24 of a video and 1 of an image.
    """
    numbers = range(scene.frames) if frames is None else frames
    frames_THWC = np.full((len(numbers), SIZE, SIZE, 3), scene.background, np.uint8)
    for item in scene.objects:
        for patch_HWC, top, left, shown in _patches(scene, item, numbers):
            height, width = patch_HWC.shape[:2]
            frames_THWC[shown, top : top + height, left : left + width] = patch_HWC
    return frames_THWC


def _patches(
    scene: Scene, item: ShapeObject, numbers: Sequence[int]
) -> Iterator[tuple[np.ndarray, int, int, list[int]]]:
    """Yield the distinct states of one object: a small picture, its place (top, left), and which of the frames show it.

    Objects never overlap, so each picture is painted once, over the plain background, and copied into its frames.
    """
    # Collect the frames of each distinct state. States of one shape then differ only in colour and centre, so the
    # coverage of their pixels (0 to 1, smooth at the outline) is computed for all G of them at once, each on a grid
    # around the whole-pixel part of its centre.
    seen: dict[ObjectState, list[int]] = {}
    for place, frame in enumerate(numbers):
        state = item.state(frame)
        if state is not None:
            seen.setdefault(state, []).append(place)
    reach = int(item.radius) + 2
    grid = np.arange(-reach, reach + 1, dtype=np.float32) + 0.5
    for shape in {state.shape for state in seen}:
        states = [state for state in seen if state.shape == shape]
        corners = np.array([(state.x, state.y) for state in states], np.float32)
        whole = np.floor(corners).astype(int)
        x_GW = grid - (corners - whole)[:, :1]
        y_GH = grid - (corners - whole)[:, 1:]
        mask_GHW = np.clip(0.5 - _distance(shape, x_GW[:, None, :], y_GH[:, :, None], item.radius), 0, 1)
        for state, (x, y), mask_HW in zip(states, whole.tolist(), mask_GHW, strict=True):
            step = np.array(COLOURS[state.colour], np.float32) - scene.background
            patch_HWC = (scene.background + 0.5 + mask_HW[..., None] * step).astype(np.uint8)
            yield _cut(patch_HWC, y - reach, x - reach, seen[state])


def _cut(patch_HWC: np.ndarray, top: int, left: int, shown: list[int]) -> tuple[np.ndarray, int, int, list[int]]:
    """Cut off the background rim of a patch that extends beyond the edge of the picture."""
    height, width = patch_HWC.shape[:2]
    rows = slice(max(0, -top), min(height, SIZE - top))
    columns = slice(max(0, -left), min(width, SIZE - left))
    return patch_HWC[rows, columns], max(0, top), max(0, left), shown


def _distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Return the signed distance in pixels to a shape's outline, negative inside; x grows to the right, y downwards."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    across, down = np.abs(x), np.abs(y)
    if shape == "square":
        return np.maximum(across, down) - 0.88 * radius
    if shape == "cross":
        arm = 0.36 * radius
        return np.minimum(np.maximum(across - radius, down - arm), np.maximum(across - arm, down - radius))
    # The triangle's tip is at (0, -r) and its base reaches from (-r, 0.85 r) to (r, 0.85 r).
    sides = (1.85 * across - y - radius) / np.float32(np.hypot(1.85, 1.0))
    return np.maximum(sides, y - 0.85 * radius)
