"""One map of weight names: what it says is what transformers does, and it goes both ways."""

import pytest
import torch
from safetensors import safe_open

from tests.conftest import golden_dir
from videollama2.checkpoints import load_checkpoint
from videollama2.model.weight_names import (
    connector_weights,
    from_adapter_file,
    to_adapter_file,
    to_disk,
    to_memory,
)

MODELS = sorted(path.name for path in (golden_dir() / "models").iterdir())


@pytest.mark.parametrize("name", MODELS)
def test_names_in_files_are_names_of_parameters(name, golden):
    folder = golden / "models" / name
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        stored = {key for key in file.keys() if ".experts." not in key}  # noqa: SIM118 - it is no dict
    model, _ = load_checkpoint(folder, dtype=torch.float32)
    own = {key for key in model.state_dict() if ".experts." not in key}
    if "mixtral" in name:  # its router is renamed with its experts
        stored, own = ({key for key in keys if ".gate." not in key} for keys in (stored, own))
    assert {to_memory(key) for key in stored} == own
    assert {to_disk(key) for key in own} == stored


def test_names_of_an_adapter_go_both_ways():
    layer = "model.language_model.layers.3.mlp.up_proj"
    own = [
        f"{layer}.base_layer.weight",
        f"{layer}.lora_A.default.weight",
        f"{layer}.lora_B.default.weight",
        "model.language_model.norm.weight",
        "model.language_model.embed_tokens.weight",
        "model.vision_tower.encoder.layers.0.mlp.fc1.weight",
        "model.mm_projector.readout.0.bias",
        "lm_head.weight",
    ]
    files = [to_adapter_file(name) for name in own]
    published = "base_model.model.model."
    assert files == [
        f"{published}layers.3.mlp.up_proj.weight",
        f"{published}layers.3.mlp.up_proj.lora_A.weight",
        f"{published}layers.3.mlp.up_proj.lora_B.weight",
        f"{published}norm.weight",
        f"{published}embed_tokens.weight",
        f"{published}vision_tower.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
        f"{published}mm_projector.readout.0.bias",
        "base_model.model.lm_head.weight",
    ]
    assert [from_adapter_file(name, own) for name in files] == own
    assert to_memory(files[0]) == f"{layer}.weight"


def test_connector_weights_are_told_by_their_name_whatever_stands_before_it():
    names = ["model.mm_projector.0.weight", "base_model.model.model.mm_projector.0.bias", "model.mm_projector_a.0.bias"]
    assert connector_weights(names) == {names[0]: "0.weight", names[1]: "0.bias"}
