"""A connector or nothing at all on a bare language model and a pretrained encoder."""

import json
import shutil

import pytest
import torch
from transformers import (
    AutoConfig,
    CLIPConfig,
    CLIPModel,
    CLIPVisionModel,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipModel,
)

from tests.checkpoints.helpers import connector_folder, edit_config, same
from tests.conftest import golden_dir
from videollama2.checkpoints import build_from_parts, checkpoint_kind, load_checkpoint, load_pretrained_model
from videollama2.errors import CheckpointError
from videollama2.model.connectors import build_connector


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mm_projector.bin", "mm_projector.safetensors"])
@pytest.mark.parametrize("named", ["argument", "config"])
def test_connector_on_a_base_model(folder, base, name, named):
    stage1, connector = connector_folder(folder, base, name)
    assert checkpoint_kind(str(stage1)) == "connector"
    _, model, processor, _ = load_pretrained_model(stage1, model_base=base if named == "argument" else None)
    for key, tensor in connector.items():
        assert torch.equal(model.get_parameter(key), tensor)
    # The published code forgets these two and runs a random encoder.
    tower = CLIPVisionModel.from_pretrained(golden_dir() / "clip-tiny").state_dict()
    assert same(model.model.vision_tower.state_dict(), tower)
    decoder = Qwen2ForCausalLM.from_pretrained(base)
    assert same(model.model.language_model.state_dict(), decoder.model.state_dict())
    assert torch.equal(model.lm_head.weight, decoder.lm_head.weight)
    assert processor.model_config.mm_projector_type == "stc_connector"


def test_connector_without_a_base_says_so(folder, base):
    stage1, _ = connector_folder(folder, base)
    edit_config(stage1, _name_or_path=...)
    with pytest.raises(CheckpointError, match="model_base"):
        load_pretrained_model(stage1)


def test_connector_of_another_shape_is_refused(folder, base):
    stage1, connector = connector_folder(folder, base)
    torch.save({k: v for k, v in connector.items() if "b2" not in k}, stage1 / "mm_projector.bin")
    with pytest.raises(CheckpointError, match="missing"):
        load_pretrained_model(stage1)


def test_new_connector_starts_as_torch_draws_it(folder, base):
    """transformers would draw it again with deviation 0.02 and zero biases."""
    torch.manual_seed(3)
    model, processor = build_from_parts(base, golden_dir() / "clip-tiny", mm_projector_type="stc_connector")
    torch.manual_seed(3)
    expected = build_connector("stc_connector", 32, 32).state_dict()
    assert same(model.model.mm_projector.state_dict(), expected)
    out = folder.parent / "whole"
    model.save_pretrained(out)
    processor.save_pretrained(out)
    assert same(load_checkpoint(out, dtype=torch.float32)[0].state_dict(), model.state_dict())


def test_base_language_model_alone_is_refused(base):
    with pytest.raises(CheckpointError, match="not VideoLLaMA 2"):
        load_pretrained_model(base)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_encoder_inside_a_whole_repository(folder, base, kind):
    """openai/clip-* and google/siglip-* hold a text half beside the encoder."""
    torch.manual_seed(7)
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    alone = golden_dir() / f"{kind}-tiny"
    vision = AutoConfig.from_pretrained(alone).to_dict()
    config_class, model_class = {"clip": (CLIPConfig, CLIPModel), "siglip": (SiglipConfig, SiglipModel)}[kind]
    whole = model_class(config_class(text_config={**text, "vocab_size": 50}, vision_config=vision))
    repository = folder.parent / f"whole-{kind}"
    whole.save_pretrained(repository)
    shutil.copyfile(alone / "preprocessor_config.json", repository / "preprocessor_config.json")
    model, processor = build_from_parts(base, repository, mm_projector_type="linear")
    weights = model.model.vision_tower.state_dict()
    assert weights
    assert same(weights, {k: v for k, v in whole.vision_model.state_dict().items() if k in weights})
    assert model.config.vision_config.model_type == f"{kind}_vision_model"
    out = folder.parent / "saved"
    model.save_pretrained(out)
    processor.save_pretrained(out)
    assert same(load_checkpoint(out, dtype=torch.float32)[0].state_dict(), model.state_dict())


def test_a_flat_checkpoint_may_name_a_whole_repository(folder):
    tower = folder.parent.parent / "clip-tiny" / "config.json"
    vision = json.loads(tower.read_text())
    tower.write_text(json.dumps({"model_type": "clip", "vision_config": vision}))
    model, _ = load_checkpoint(folder, dtype=torch.float32)
    assert model.config.vision_config.model_type == "clip_vision_model"
    assert model.config.mm_hidden_size == vision["hidden_size"]
