"""LoRA folders: known by their content, merged as peft does, refused where weights are missing or have no place."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen2ForCausalLM

from tests.checkpoints.helpers import lora_folder
from videollama2.checkpoints import checkpoint_kind, load_pretrained_model
from videollama2.errors import CheckpointError


def test_lora_folder_is_known_by_its_content_and_merged(folder, base):
    lora, pair, connector = lora_folder(folder, base)
    _, model, _, _ = load_pretrained_model(lora)
    a, b = pair.values()
    weight = Qwen2ForCausalLM.from_pretrained(base).model.layers[0].self_attn.q_proj.weight
    merged = model.model.language_model.layers[0].self_attn.q_proj.weight
    torch.testing.assert_close(merged, weight + 2.0 * b @ a)
    for key, tensor in connector.items():
        assert torch.equal(model.get_parameter(key), tensor)


def test_lora_merge_equals_peft(folder, base):
    peft = pytest.importorskip("peft", reason="comparison only; loading LoRA needs no peft")
    lora, _, _ = lora_folder(folder, base)
    ours = load_pretrained_model(lora)[1].model.language_model
    adapter = json.loads((lora / "adapter_config.json").read_text())
    (lora / "adapter_config.json").write_text(
        json.dumps({**adapter, "task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "layers_to_transform": [0]})
    )
    theirs = peft.PeftModel.from_pretrained(Qwen2ForCausalLM.from_pretrained(base), lora).merge_and_unload().model
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor)


def test_a_folder_called_lora_is_what_it_holds(folder):
    renamed = folder.parent / "my-lora-model"
    folder.rename(renamed)
    assert checkpoint_kind(str(renamed)) == "full"
    load_pretrained_model(renamed)


def test_lora_weights_without_a_place_are_refused(folder, base):
    lora, pair, _ = lora_folder(folder, base)
    save_file({k.replace("layers.0", "layers.9"): v for k, v in pair.items()}, lora / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.9.*no place"):
        load_pretrained_model(lora)


def test_dora_without_the_lengths_of_rows_is_refused(folder, base):
    lora, _, _ = lora_folder(folder, base)
    path = lora / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_dora": True}))
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: LoRA weight .* is half of a pair"):
        load_pretrained_model(lora)


def test_lora_folder_without_connector_weights(folder, base):
    """On a bare language model they would stay random; on a whole model they are the model's."""
    lora, _, connector = lora_folder(folder, base)
    (lora / "non_lora_trainables.bin").unlink()
    with pytest.raises(CheckpointError, match=rf"{lora.name}: {len(connector)} connector weights are missing"):
        load_pretrained_model(lora)
    _, model, _, _ = load_pretrained_model(lora, model_base=folder)
    for key, tensor in connector.items():
        assert torch.equal(model.get_parameter(key), tensor)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"alpha_pattern": {"q_proj": 32}}, "sets alpha_pattern.*merge_and_unload"),
        ({"rank_pattern": {"q_proj": 2}}, "sets rank_pattern"),
        ({"peft_type": "LOHA"}, "this is LOHA"),
        ({"r": 0}, "r >= 1"),
        ({"lora_alpha": None}, "lora_alpha"),
    ],
)
def test_other_adapters_are_refused(folder, base, settings, rule):
    """Each would merge without complaint and be wrong."""
    lora, _, _ = lora_folder(folder, base)
    path = lora / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    with pytest.raises(CheckpointError, match=rf"adapter_config\.json: .*{rule}"):
        load_pretrained_model(lora)
