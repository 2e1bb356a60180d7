"""The built-in world: scenes, drawing and questions, checked against what the frames themselves show."""

from collections import Counter
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest

from tests.shapes.helpers import ask, states, visible
from videollama2.errors import ConfigError
from videollama2.shapes.scene import (
    COLOURS,
    SCENARIOS,
    SHAPES,
    make_scene,
    render_scene,
)

WORLD = "46fa0c1843658c17"


# ---- scenes


def test_a_scene_depends_on_its_three_numbers_alone():
    later = [make_scene(9, index) for index in (7, 3)]
    assert later == [make_scene(9, index) for index in range(8)][7:2:-4]
    assert len({make_scene(*key).fingerprint for key in [(9, 3), (9, 4), (8, 3), (9, 3, "image")]}) == 4
    with pytest.raises(ConfigError, match="audio"):
        make_scene(0, 0, "audio")


def test_the_world_stays_what_it_was():
    """Shipped weights and written sets rely on it: another value here calls for another WORLD_VERSION."""
    digest = sha256()
    for scene in [make_scene(1, index) for index in range(50)] + [make_scene(1, 0, "image")]:
        digest.update(scene.fingerprint.encode())
        digest.update(repr([(q.question, q.answer, q.candidates) for q in ask(scene)]).encode())
    assert digest.hexdigest()[:16] == WORLD


def test_sets_of_two_seeds_share_no_scene(videos, images):
    mine = {scene.fingerprint for scene in videos + images}
    other = {make_scene(6, index).fingerprint for index in range(2000)}
    other |= {make_scene(6, index, "image").fingerprint for index in range(500)}
    assert len(mine) == len(other) == 2500
    assert not mine & other


def test_attributes_name_one_object_and_everything_stays_in_its_quadrant(videos, images):
    for scene in videos + images:
        assert 1 <= len(scene.objects) <= 4
        assert len({item.quadrant for item in scene.objects}) == len(scene.objects)
        for kind in ("colour", "shape"):
            worn = [{getattr(state, kind) for state in visible(scene, item)} for item in scene.objects]
            assert sum(map(len, worn)) == len(set().union(*worn))
        for item in scene.objects:
            left, top = 64 * (item.quadrant % 2), 64 * (item.quadrant // 2)
            for state in visible(scene, item):
                assert left + 2 <= state.x - item.radius and state.x + item.radius <= left + 62
                assert top + 2 <= state.y - item.radius and state.y + item.radius <= top + 62


def test_every_behaviour_and_number_occurs(videos, images):
    behaviours = Counter(item.behaviour for scene in videos for item in scene.objects)
    assert len(behaviours) == 10 and min(behaviours.values()) > 100
    assert {item.behaviour for scene in images for item in scene.objects} == {"still"}
    assert set(Counter(len(scene.objects) for scene in images)) == {1, 2, 3, 4}


# ---- drawing


def test_frames_show_what_the_states_say(videos, images):
    for scene in videos[:60] + images[:30]:
        frames_THWC = render_scene(scene)
        assert frames_THWC.shape == (scene.frames, 128, 128, 3) and frames_THWC.dtype == np.uint8
        some = [0, scene.frames - 1, scene.frames // 2]
        assert (render_scene(scene, some) == frames_THWC[some]).all()
        free = np.ones((128, 128), bool)
        for item in scene.objects:
            left, top = 64 * (item.quadrant % 2), 64 * (item.quadrant // 2)
            free[top + 1 : top + 63, left + 1 : left + 63] = False
            for frame, state in enumerate(states(scene, item)):
                quadrant = frames_THWC[frame, top : top + 64, left : left + 64]
                if state is None:
                    assert (quadrant == scene.background).all()
                else:
                    assert tuple(frames_THWC[frame, int(state.y), int(state.x)]) == COLOURS[state.colour]
                    painted = (quadrant != scene.background).any(-1).mean()
                    assert 0.08 < painted < 0.25
        assert (frames_THWC[:, free] == scene.background).all()


def test_shapes_look_different(images):
    """Colour, place and background taken away, the four outlines still differ in a tenth of their pixels."""
    base = next(scene for scene in images if len(scene.objects) == 1)
    item = replace(base.objects[0], quadrant=0, radius=15.0, offset_x=0.0, offset_y=0.0, colour_after="white")
    masks = [
        render_scene(replace(base, background=40, objects=(replace(item, shape_after=shape),)))[0, :, :, 0] > 140
        for shape in SHAPES
    ]
    for first in range(4):
        for second in range(first):
            assert (masks[first] != masks[second]).sum() > 0.1 * masks[first].sum()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_set_about_one_thing(scenario):
    """Every clip of a scenario supports the question it is for."""
    kind = {"recolour": "change", "reshape": "change"}.get(scenario, scenario)
    for index in range(50):
        scene = make_scene(9, index, scenario=scenario)
        assert scene.scenario == scenario
        assert kind in {question.type for question in ask(scene)}
    with pytest.raises(ConfigError, match="nonsense"):
        make_scene(9, 0, scenario="nonsense")


def test_scenes_of_few_objects():
    """As many as the scenario needs, but no others; without a limit the world is the one it always was."""
    for scenario in SCENARIOS:
        scenes = [make_scene(9, index, scenario=scenario, objects=1) for index in range(30)]
        assert {len(scene.objects) for scene in scenes} == {2 if scenario == "order" else 1}
    assert {len(make_scene(9, index, "image", objects=2).objects) for index in range(30)} == {1, 2}
    assert make_scene(9, 3, objects=4) == make_scene(9, 3)
    for wrong in (0, 5):
        with pytest.raises(ConfigError, match=f"objects {wrong} is not between 1 and 4"):
            make_scene(9, 0, objects=wrong)
