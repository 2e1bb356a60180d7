"""Files of weights are mapped where a model keeps their bytes, and tensor by tensor where it does not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig
from transformers.modeling_utils import LoadStateDictConfig
from transformers.quantizers.quantizer_bnb_8bit import Bnb8BitHfQuantizer

from videollama2.checkpoints import load_checkpoint
from videollama2.checkpoints.files import TINY_FOLDER
from videollama2.model.weight_files import read_apart

MAPS = Path("/proc/self/maps")


@pytest.fixture
def files(tmp_path):
    """Two files of weights in bfloat16; the second also has whole numbers."""
    paths = [tmp_path / f"{name}.safetensors" for name in ("one", "two")]
    save_file({"a": torch.arange(6, dtype=torch.bfloat16).view(2, 3)}, paths[0])
    more = {"b": torch.ones(2, dtype=torch.bfloat16), "empty": torch.empty(0, 4, dtype=torch.bfloat16)}
    save_file({**more, "ids": torch.arange(2)}, paths[1])
    return [str(path) for path in paths]


def settings(**changes: Any) -> LoadStateDictConfig:
    return LoadStateDictConfig(**{"dtype": torch.float32, **changes})


def quantizer() -> Bnb8BitHfQuantizer:
    return Bnb8BitHfQuantizer(BitsAndBytesConfig(load_in_8bit=True))


def mapped(files):
    return MAPS.is_file() and any(path in MAPS.read_text() for path in files)


def test_tensors_are_mapped_as_long_as_they_are_kept(files):
    with read_apart(files, settings()) as slices:
        assert sorted(slices) == ["a", "b", "empty", "ids"]
        assert slices["a"].get_shape() == [2, 3] and slices["a"].get_dtype() == "BF16"
        assert torch.equal(slices["a"][1:], torch.arange(3, 6, dtype=torch.bfloat16).view(1, 3))
        assert slices["empty"][...].shape == (0, 4) and torch.equal(slices["ids"][...], torch.arange(2))
        assert not mapped(files)
        kept = slices["b"][...]
        assert mapped(files) is MAPS.is_file()
    kept += 1  # in memory only
    assert torch.equal(load_file(files[1])["b"], torch.ones(2, dtype=torch.bfloat16)) and kept.tolist() == [2, 2]
    del kept
    assert not mapped(files)


@pytest.mark.parametrize(
    ("changes", "read"),
    [
        ({}, True),
        ({"dtype": torch.bfloat16}, False),  # a mapped file is the weights
        ({"dtype": torch.bfloat16, "hf_quantizer": quantizer()}, True),
        ({"device_map": {"": torch.device("cpu")}}, True),
        ({"device_map": {"": "cuda:0"}}, False),
        ({"device_map": {"vision": "cpu", "": "cuda:0"}}, False),
        ({"disable_mmap": True}, False),  # transformers then reads whole files
    ],
)
def test_when_files_are_read_so(files, changes, read):
    with read_apart(files, settings(**changes)) as slices:
        assert (slices is not None) == read


def test_other_files_and_none_are_left_to_transformers(files, tmp_path):
    for given in (None, [], [*files, str(tmp_path / "more.bin")]):
        with read_apart(given, settings()) as slices:
            assert slices is None


def test_a_model_gets_the_stored_values_in_its_dtype():
    stored, _ = load_checkpoint(TINY_FOLDER, dtype=torch.float32)
    rounded, _ = load_checkpoint(TINY_FOLDER, dtype=torch.bfloat16)
    values = rounded.state_dict()
    for name, value in stored.state_dict().items():
        assert torch.equal(value.to(torch.bfloat16), values[name]), name
