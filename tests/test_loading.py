"""Every kind of checkpoint opens with every weight in place; everything else is refused with names."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPVisionModel, Qwen2Config, Qwen2ForCausalLM

from tests.conftest import golden_dir
from videollama2.config import VideoLlama2Config
from videollama2.errors import CheckpointError, CheckpointNotFoundError, ConfigError, MissingDependencyError
from videollama2.loading import (
    build_from_parts,
    checkpoint_kind,
    default_dtype,
    load_checkpoint,
    load_pretrained_model,
)
from videollama2.model.connectors import build_connector

QWEN = "qwen2-stc_connector-clip"


@pytest.fixture
def folder(tmp_path):
    """A writable copy of a published checkpoint, its vision encoder beside it."""
    for name in (f"models/{QWEN}", "clip-tiny"):
        shutil.copytree(golden_dir() / name, tmp_path / name, copy_function=shutil.copyfile)
    target = tmp_path / "models" / QWEN
    for path in [tmp_path, *tmp_path.rglob("*")]:
        path.chmod(0o755)
    return target


@pytest.fixture
def base(tmp_path):
    """A bare language model of the same sizes, with weights of its own."""
    torch.manual_seed(5)
    config = Qwen2Config(
        vocab_size=483, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=False, eos_token_id=2,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(golden_dir() / "tokenizers" / "qwen2").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def edit_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def edit_weights(folder, edit):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ------------------------------------------------------------------------------------------------ full models


def test_load_pretrained_model_returns_what_published_callers_unpack():
    tokenizer, model, processor, context = load_pretrained_model(golden_dir() / "models" / QWEN, None, "any-name")
    assert context == 512
    assert not model.training
    assert model.dtype == torch.float32
    assert processor.tokenizer is tokenizer


def test_sharded_safetensors(folder):
    model, processor = load_checkpoint(folder, dtype=torch.float32)
    sharded = folder.parent / "sharded"
    model.save_pretrained(sharded, max_shard_size="150KB")
    processor.save_pretrained(sharded)
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert same(load_checkpoint(sharded, dtype=torch.float32)[0].state_dict(), model.state_dict())


def test_bin_weights(folder):
    expected = load_checkpoint(folder, dtype=torch.float32)[0].state_dict()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert same(load_checkpoint(folder, dtype=torch.float32)[0].state_dict(), expected)


class Trap:
    ran = False

    def __reduce__(self):
        return (exec, ("from tests.test_loading import Trap; Trap.ran = True",))


def test_pickles_are_not_executed(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Trap()}))
    with pytest.raises(CheckpointError):
        load_checkpoint(folder)
    assert not Trap.ran


def test_missing_surplus_and_misshapen_weights_are_listed(folder):
    edit_weights(folder, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(CheckpointError, match=r"1 weights missing: model\.language_model\.layers\.1\.mlp\.up_proj"):
        load_checkpoint(folder)
    edit_weights(folder, lambda t: t.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(64, 31)}))
    with pytest.raises(CheckpointError, match=r"of another shape: .*up_proj\.weight \(64, 31\) instead of \(64, 32\)"):
        load_checkpoint(folder)
    edit_weights(folder, lambda t: t.update({"model.layers.7.mlp.up_proj.weight": torch.zeros(64, 32)}))
    with pytest.raises(CheckpointError, match="1 weights unexpected"):
        load_checkpoint(folder)


def test_truncated_weight_file(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=QWEN):
        load_checkpoint(folder)


def test_mixtral_experts_are_the_files(golden):
    """Without its conversion transformers leaves Mixtral's experts random and only logs it."""
    folder = golden / "models" / "mixtral-stc_connector-clip"
    model, _ = load_checkpoint(folder, dtype=torch.float32)
    stored = load_file(folder / "model.safetensors")
    experts = model.model.language_model.layers[1].mlp.experts
    for number in range(4):
        prefix = f"model.layers.1.block_sparse_moe.experts.{number}."
        assert torch.equal(experts.down_proj[number], stored[prefix + "w2.weight"])
        gate_up = torch.cat([stored[prefix + "w1.weight"], stored[prefix + "w3.weight"]])
        assert torch.equal(experts.gate_up_proj[number], gate_up)


# ------------------------------------------------------------------------------------- connector on a base


def connector_folder(folder, base, name="mm_projector.bin"):
    stage1 = folder.parent / "stage1"
    stage1.mkdir()
    stored = load_file(folder / "model.safetensors")
    connector = {k: v for k, v in stored.items() if "mm_projector" in k}
    if name.endswith(".bin"):
        torch.save(connector, stage1 / name)
    else:
        save_file(connector, stage1 / name)
    shutil.copyfile(folder / "config.json", stage1 / "config.json")
    edit_config(stage1, tune_mm_mlp_adapter=True, _name_or_path=str(base))
    return stage1, connector


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


# ----------------------------------------------------------------------------------------------------- LoRA


def lora_folder(folder, base, name="exploration-run"):
    """As published fine-tuning writes it; its name says nothing."""
    stage1, connector = connector_folder(folder, base)
    lora = folder.parent / name
    lora.mkdir()
    shutil.copyfile(stage1 / "config.json", lora / "config.json")
    torch.manual_seed(9)
    target = "model.layers.0.self_attn.q_proj"
    pair = {
        f"base_model.model.{target}.lora_A.weight": torch.randn(4, 32),
        f"base_model.model.{target}.lora_B.weight": torch.randn(32, 4),
    }
    save_file(pair, lora / "adapter_model.safetensors")
    adapter = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": str(base)}
    (lora / "adapter_config.json").write_text(json.dumps(adapter))
    torch.save({f"base_model.model.{k}": v for k, v in connector.items()}, lora / "non_lora_trainables.bin")
    return lora, pair, connector


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


# ------------------------------------------------------------------------------------------- 8 and 4 bits


@pytest.mark.parametrize("bits", ["load_8bit", "load_4bit"])
def test_quantised_loading(bits, golden):
    pytest.importorskip("bitsandbytes", reason="optional extra 'quant'")
    path = golden / "models" / QWEN
    _, full, processor, _ = load_pretrained_model(path, device="cpu")
    _, model, _, _ = load_pretrained_model(path, device="cpu", **{bits: True})
    q_proj = model.model.language_model.layers[0].self_attn.q_proj
    assert type(q_proj).__name__ == {"load_8bit": "Linear8bitLt", "load_4bit": "Linear4bit"}[bits]
    assert same(model.model.mm_projector.state_dict(), full.model.mm_projector.state_dict())
    assert same(model.model.vision_tower.state_dict(), full.model.vision_tower.state_dict())
    exact = full.model.language_model.layers[0].self_attn.q_proj
    with torch.no_grad():
        x = torch.randn(64, 32)
        error = (q_proj(x) - exact(x)).norm() / exact(x).norm()
        assert 0 < error < (0.05 if bits == "load_8bit" else 0.2), error
    inputs = processor(text="<video>\nWhat?", videos=golden / "media" / "landscape_30fps_90f.mp4")
    out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert out.shape[1] > inputs["input_ids"].shape[1]


def test_contradictory_options(golden):
    path = golden / "models" / QWEN
    with pytest.raises(ConfigError, match="exclude each other"):
        load_pretrained_model(path, load_8bit=True, load_4bit=True)
    with pytest.raises(ConfigError, match="dtype"):
        load_pretrained_model(path, dtype="int8")
    with pytest.raises(ConfigError, match="no option colour"):
        load_pretrained_model(path, colour="red")


def test_missing_flash_attention_says_what_to_install(golden):
    try:
        import flash_attn  # noqa: F401
    except ImportError:
        with pytest.raises(MissingDependencyError, match="pip install"):
            load_pretrained_model(golden / "models" / QWEN, attn_implementation="flash_attention_2")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_reaches_every_part(golden, attention):
    _, model, _, _ = load_pretrained_model(golden / "models" / QWEN, attn_implementation=attention)
    parts = (model, model.model.language_model, model.model.vision_tower)
    assert {part.config._attn_implementation for part in parts} == {attention}


def test_default_numbers():
    assert default_dtype("cpu") == torch.float32
    assert default_dtype("mps") == torch.float16


# ------------------------------------------------------------------------------------------- nothing there


def test_unknown_path():
    with pytest.raises(CheckpointNotFoundError, match="/no/such/folder"):
        load_pretrained_model("/no/such/folder")


def test_folder_without_config(folder):
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_pretrained_model(folder)


def test_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_pretrained_model(folder)


def test_file_instead_of_folder(folder):
    with pytest.raises(CheckpointNotFoundError, match="is a file"):
        load_pretrained_model(folder / "config.json")


def test_damaged_config(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="no JSON"):
        load_pretrained_model(folder)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"mm_projector_type": "magic"}, "unknown mm_projector_type 'magic'"),
        ({"model_type": "videollama2_gpt9"}, "model_type 'videollama2_gpt9'"),
        ({"mm_vision_tower": "no-such-tower"}, "no-such-tower"),
        ({"mm_vision_tower": None}, "names no vision encoder"),
        ({"num_frames": 0}, "num_frames"),
        ({"mm_vision_select_layer": -9}, "mm_vision_select_layer -9"),
        ({"mm_vision_select_feature": "all"}, "mm_vision_select_feature"),
    ],
)
def test_bad_configurations(folder, changes, rule):
    edit_config(folder, **changes)
    with pytest.raises((ConfigError, CheckpointError), match=rule):
        load_pretrained_model(folder)


def test_the_encoder_is_told_by_its_config_not_its_name(folder):
    """Published code takes a path with 'clip' in it for CLIP, whatever lies there."""
    shutil.copytree(golden_dir() / "siglip-tiny", folder.parent / "clips-siglip", copy_function=shutil.copyfile)
    edit_config(folder, mm_vision_tower="clips-siglip")
    config = VideoLlama2Config.from_pretrained(folder)
    assert config.vision_config.model_type == "siglip_vision_model"
