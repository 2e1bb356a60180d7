"""Checkpoints that ask for 8 or 4 bits themselves, and those whose weights are stored so."""

import pytest
import torch

from tests.checkpoints.helpers import edit_config, same
from videollama2.checkpoints import cpu_integers, load_checkpoint, load_pretrained_model
from videollama2.checkpoints.quantisation import quantization_config
from videollama2.errors import ConfigError

pytest.importorskip("bitsandbytes", reason="optional extra 'quant'")

KINDS = {4: "Linear4bit", 8: "Linear8bitLt"}
FLAG = "Int8Linear"
"""What either flag gives on a CPU: the layers of this model are too narrow for 4 bits."""


def kind_of(model):
    return type(model.model.language_model.layers[0].mlp.down_proj).__name__


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:on a CPU, 4 bits need")
@pytest.mark.parametrize("bits", KINDS)
def test_a_whole_checkpoint_that_asks_for_few_bits_gets_them(folder, bits, monkeypatch):
    monkeypatch.setattr(cpu_integers, "SMALLEST_QUANTISED", 1)
    exact = load_checkpoint(folder, dtype=torch.float32)[0].state_dict()
    edit_config(folder, quantization_config={"quant_method": "bitsandbytes", f"load_in_{bits}bit": True})
    _, model, _, _ = load_pretrained_model(folder, device="cpu")
    assert kind_of(model) == KINDS[bits]
    assert torch.equal(model.lm_head.weight, exact["lm_head.weight"])
    # What trains, merges or converts takes the weights as they are stored.
    assert same(load_checkpoint(folder, dtype=torch.float32)[0].state_dict(), exact)
    # A flag comes before the file.
    _, model, _, _ = load_pretrained_model(folder, device="cpu", **{f"load_{12 - bits}bit": True})
    assert kind_of(model) == FLAG


@pytest.mark.slow
@pytest.mark.parametrize("bits", KINDS)
def test_weights_that_are_stored_in_few_bits_stay_as_they_are(tmp_path, bits):
    config = quantization_config(bits, torch.float32)
    model, processor = load_checkpoint("videollama2-tiny", device_map={"": "cpu"}, quantization_config=config)
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    for options in ({}, {f"load_{bits}bit": True}):
        _, again, _, _ = load_pretrained_model(tmp_path / "saved", device="cpu", **options)
        assert kind_of(again) == KINDS[bits]
        assert same(again.state_dict(), model.state_dict())
    with pytest.raises(ConfigError, match=f"stored in {bits} bits, they cannot be loaded in {12 - bits}"):
        load_pretrained_model(tmp_path / "saved", device="cpu", **{f"load_{12 - bits}bit": True})


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        ({"quant_method": "gptq", "bits": 4}, "not a setting of bitsandbytes"),
        ("4bit", "'4bit' is not a setting of bitsandbytes"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "one of load_in_4bit and load_in_8bit"),
        ({"load_in_4bit": "yes"}, "one of load_in_4bit and load_in_8bit"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "int4"}, "bnb_4bit_quant_type must be 'nf4' or 'fp4'"),
    ],
)
def test_other_wishes_are_refused_with_file_and_field(folder, asked, rule):
    edit_config(folder, quantization_config=asked)
    with pytest.raises(ConfigError, match=rf"config\.json: quantization_config.*{rule}"):
        load_pretrained_model(folder, device="cpu")
