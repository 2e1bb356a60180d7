"""The built-in world with sound as a benchmark: what its controls change, and the table that they fill."""

import math

import pytest
import torch

from tests.eval.helpers.reference import unpadded
from tests.eval.helpers.samples import sample
from videollama2.errors import ConfigError
from videollama2.eval.benchmarks import benchmark
from videollama2.eval.benchmarks.sounding_shapes import BOTH, SOUND
from videollama2.eval.controls import CONTROL_OPTIONS, WINDOWS, altered, shuffled_order
from videollama2.eval.items import Item
from videollama2.eval.samples import Reading
from videollama2.shapes.sets import write_set
from videollama2.shapes.sound_questions import BOTH_TYPES, SOUND_TYPES

pytestmark = pytest.mark.usefixtures("without_charts")


@pytest.fixture(scope="module")
def heard(tmp_path_factory):
    """A small set with sound."""
    folder = tmp_path_factory.mktemp("heard")
    write_set(folder, videos=8, seed=3, sound=True, questions_per_item=3)
    return folder


def test_types_are_those_of_the_world():
    assert (SOUND, BOTH) == (SOUND_TYPES, BOTH_TYPES)


def test_every_control_asks_every_question_again(heard):
    plain = benchmark("sounding_shapes").load(heard)
    assert plain and all(item.use_audio and not item.control for item in plain)
    found = benchmark("sounding_shapes").configure(**dict.fromkeys(CONTROL_OPTIONS, True))
    again = found.load(heard)
    names = ["", *(f"-{name}" for name in CONTROL_OPTIONS.values())]
    assert [item.id for item in again] == [item.id + end for item in plain for end in names]
    assert all(item.id.endswith(item.control) for item in again)
    assert len({item.clip for item in again}) == len({item.clip for item in plain})
    assert found.settings() == {"prompt": "question", **dict.fromkeys(CONTROL_OPTIONS, True)}
    assert benchmark("sounding_shapes").configure(muted=None).settings() == {"prompt": "question"}
    with pytest.raises(ConfigError, match="sounding_shapes has no option split"):
        benchmark("sounding_shapes").configure(split="test")
    with pytest.raises(ConfigError, match="moving_shapes has no option muted"):
        benchmark("moving_shapes").configure(muted=True)


def test_a_control_changes_one_side_alone():
    pixels_TCHW, fbank_1TF = torch.rand(8, 3, 4, 4), torch.rand(1, 101, 5)
    clip = {"video": pixels_TCHW, "audio": fbank_1TF}
    muted = altered(clip, "muted", "a.mp4")
    assert muted["video"] is pixels_TCHW and muted["audio"].shape == fbank_1TF.shape
    assert torch.allclose(muted["audio"], torch.tensor(math.log(torch.finfo(torch.float32).eps)))
    blank = altered(clip, "blank", "a.mp4")
    assert blank["audio"] is fbank_1TF and blank["video"].shape == pixels_TCHW.shape and not blank["video"].any()
    frames = altered(clip, "shuffled", "a.mp4")
    assert frames["audio"] is fbank_1TF
    assert torch.equal(frames["video"], pixels_TCHW[shuffled_order(8, "a.mp4")])
    windows = altered(clip, "windows", "a.mp4")["audio"]
    assert windows.shape == fbank_1TF.shape and not torch.equal(windows, fbank_1TF)
    assert torch.equal(windows.sort(dim=1).values, fbank_1TF.sort(dim=1).values)
    first = fbank_1TF.tensor_split(WINDOWS, dim=1)[shuffled_order(WINDOWS, "a.mp4")[0]]
    assert torch.equal(windows[:, : first.shape[1]], first)
    # A clip without sound has nothing to mute.
    assert altered(pixels_TCHW, "muted", "a.mp4") is pixels_TCHW
    assert torch.equal(altered(pixels_TCHW, "shuffled", "a.mp4"), frames["video"])


def test_the_table_by_hand():
    found = benchmark("sounding_shapes").configure(muted=True, shuffle_frames=True)
    items, samples = [], []
    for number, (kind, right, shuffled, muted) in enumerate(
        [
            ("colour", True, True, True),
            ("tone", True, True, False),
            ("caller", True, True, False),
            ("tone", False, True, False),
        ]
    ):
        for end, correct in (("", right), ("-shuffled", shuffled), ("-muted", muted)):
            options = ("a", "b") if kind == "caller" else ("a", "b", "c", "d")
            items.append(Item(f"{number}{end}", "a.mp4", "?", "?", options=options))
            samples.append(sample(id=f"{number}{end}", category=kind, reading=Reading(0, False, correct)))
    rows = unpadded(found.own_table(items, samples, "strict")).splitlines()
    assert rows[2] == "| type | questions | accuracy | chance | shuffle frames | muted |"
    assert rows[-7:] == [
        "| colour | 1 | 100.0 | 25.0 | 100.0 | 100.0 |",
        "| tone | 2 | 50.0 | 25.0 | 100.0 | 0.0 |",
        "| caller | 1 | 100.0 | 50.0 | 100.0 | 0.0 |",
        "| static | 1 | 100.0 | 25.0 | 100.0 | 100.0 |",
        "| sound | 2 | 50.0 | 25.0 | 100.0 | 0.0 |",
        "| both | 1 | 100.0 | 50.0 | 100.0 | 0.0 |",
        "| overall | 4 | 75.0 | 31.2 | 100.0 | 25.0 |",
    ]
    assert benchmark("sounding_shapes").own_table(items, samples, "strict") == ""
