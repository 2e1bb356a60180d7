"""The three stages with sound: what learns, what is written, and what each stage begins with."""

from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from videollama2.checkpoints import load_pretrained_model

from .conftest import difference
from .hearing import TOKENS, stages, write_beats, write_records, write_seeing


@pytest.fixture(scope="module")
def beats(tmp_path_factory):
    return write_beats(tmp_path_factory.mktemp("beats") / "beats.pt")


@pytest.fixture(scope="module")
def seeing(tmp_path_factory, parts):
    return write_seeing(tmp_path_factory.mktemp("seeing"), parts)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_records(tmp_path_factory.mktemp("records"))


def test_each_stage_goes_on_from_the_one_before(run, seeing, beats, files):
    first, second, third = stages(run, seeing, beats, files)
    assert {path.name for path in first.folder.glob("*.bin")} == {"mm_projector_a.bin"}
    assert {path.name for path in second.folder.glob("*.bin")} == {"mm_projector_a.bin", "audio_tower.bin"}
    assert not list(third.folder.glob("*.bin"))
    results = [stage.weights for stage in (first, second, third)]
    for before, after in pairwise(results):
        shared = before.keys() & after.keys()
        assert shared == before.keys()
        pair = [{name: weights[name] for name in shared} for weights in (before, after)]
        assert 0 < difference(*pair) < 2 * 2 * 2e-3  # two steps of Adam, whose largest is about the learning rate
    start = load_file(seeing / "model.safetensors")
    moved = {name for name, tensor in start.items() if not torch.equal(tensor, results[2][name])}
    assert not any("vision_tower" in name for name in moved)
    assert {"model.embed_tokens.weight", "model.norm.weight", "model.mm_projector.readout.0.weight"} <= moved
    # The folders of the audio stages open as whole models.
    given = torch.load(beats, weights_only=True)["model"]
    for stage, tower in ((first, given), (second, second.weights)):
        _, model, processor, _ = load_pretrained_model(stage.folder, device="cpu")
        assert processor.model_config.audio_config.tokens_of(98) == TOKENS
        named = {name.removeprefix("model.audio_tower."): tensor for name, tensor in tower.items()}
        own = model.model.audio_tower.state_dict()
        assert all(torch.equal(own[name], tensor) for name, tensor in named.items() if name in own)
        projector = model.model.mm_projector_a.state_dict()
        assert all(torch.equal(projector[name], stage.weights[f"model.mm_projector_a.{name}"]) for name in projector)
