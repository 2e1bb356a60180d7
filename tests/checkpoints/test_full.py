"""Full checkpoints open with every weight in place; damaged ones are refused with names."""

import itertools
import pickle
import platform
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2Config

from tests.checkpoints.helpers import QWEN, edit_config, edit_weights, same
from tests.conftest import golden_dir
from videollama2.checkpoints import default_dtype, load_checkpoint, load_pretrained_model, placement
from videollama2.checkpoints.placement import as_dtype, bfloat16_feature, bfloat16_gain, fastest_dtype
from videollama2.checkpoints.quantisation import leave_out_misfits, quantization_config
from videollama2.errors import CheckpointError, ConfigError, MissingDependencyError


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
        return (exec, ("from tests.checkpoints.test_full import Trap; Trap.ran = True",))


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


# ------------------------------------------------------------------------------------------- 8 and 4 bits


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_loading(bits, golden):
    pytest.importorskip("bitsandbytes", reason="optional extra 'quant'")
    _, full, processor, _ = load_pretrained_model("videollama2-tiny", device="cpu")
    config = quantization_config(bits, torch.float32)
    model, _ = load_checkpoint("videollama2-tiny", device_map={"": "cpu"}, quantization_config=config)
    q_proj = model.model.language_model.layers[0].self_attn.q_proj
    assert type(q_proj).__name__ == {8: "Linear8bitLt", 4: "Linear4bit"}[bits]
    assert same(model.model.mm_projector.state_dict(), full.model.mm_projector.state_dict())
    assert same(model.model.vision_tower.state_dict(), full.model.vision_tower.state_dict())
    exact = full.model.language_model.layers[0].self_attn.q_proj
    with torch.no_grad():
        x = torch.randn(64, 128)
        error = (q_proj(x) - exact(x)).norm() / exact(x).norm()
        assert 0 < error < (0.05 if bits == 8 else 0.12), error
    inputs = processor(text="<video>\nWhat?", videos=golden / "media" / "landscape_30fps_90f.mp4")
    out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert out.shape[1] > inputs["input_ids"].shape[1]


def test_layers_that_the_cpu_decodes_wrongly_are_not_put_into_4_bits(folder):
    """bitsandbytes reads rows that are no whole number of blocks with the wrong scales, or fails on them."""
    pytest.importorskip("bitsandbytes", reason="optional extra 'quant'")
    _, full, _, _ = load_pretrained_model(folder, device="cpu")
    edit_config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.warns(UserWarning, match="64 n inputs and 32 m outputs: 12 of 14 layers stay as they are"):
        _, model, _, _ = load_pretrained_model(folder, device="cpu")
    layers = model.model.language_model.layers
    assert {type(layer.mlp.down_proj).__name__ for layer in layers} == {"Linear4bit"}
    for name, layer in layers.named_modules():
        if type(layer) is torch.nn.Linear:
            assert torch.equal(layer.weight, full.model.language_model.layers.get_parameter(f"{name}.weight"))
    x = torch.randn(5, 64)
    exact = full.model.language_model.layers[0].mlp.down_proj(x)
    assert (layers[0].mlp.down_proj(x) - exact).norm() / exact.norm() < 0.12


def test_a_decoder_without_a_layer_that_fits_is_refused(tmp_path):
    pytest.importorskip("bitsandbytes", reason="optional extra 'quant'")
    config = Qwen2Config(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(ConfigError, match="none of the qwen2 decoder's is"):
        leave_out_misfits(quantization_config(4, torch.float32), config, {"": "cpu"})


def test_only_linear_layers_of_the_decoder_are_quantised(golden):
    pytest.importorskip("bitsandbytes", reason="optional extra 'quant'")
    config = quantization_config(8, torch.float32)
    folder = golden / "models" / "llama-mlp2x_gelu-clip"
    model, _ = load_checkpoint(folder, device_map={"": "cpu"}, quantization_config=config)
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    quantised = {name for name, module in linear.items() if type(module) is not torch.nn.Linear}
    assert quantised == {name for name in linear if name.startswith("model.language_model.")}
    assert any("mm_projector" in name for name in linear)


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


def test_auto_is_bfloat16_where_it_is_faster(caplog):
    """The default stays float32; ``auto`` is a choice that says what it chose, once."""
    fastest_dtype.cache_clear()
    feature, gain = bfloat16_feature(), bfloat16_gain()
    assert gain == bfloat16_gain() and (gain > 0) is (feature is not None)
    expected = torch.bfloat16 if gain >= 1.2 else torch.float32
    _, model, _, _ = load_pretrained_model(golden_dir() / "models" / QWEN, dtype="auto", device="cpu")
    assert {weight.dtype for weight in model.parameters()} == {expected}
    assert as_dtype("auto", "cpu") == expected
    (record,) = [record for record in caplog.records if record.message.startswith("dtype auto: ")]
    assert str(expected).removeprefix("torch.") in record.message and (feature is None or feature in record.message)
    assert as_dtype(None, "cpu") == torch.float32 and as_dtype("auto", "mps") == default_dtype("mps")
    flags = Path("/proc/cpuinfo")
    if flags.exists() and platform.machine() == "x86_64":
        has = any(name in flags.read_text().split() for name in ("avx512_bf16", "amx_bf16"))
        assert has is (feature is not None), "the kernel sees the same processor"


@pytest.mark.parametrize(
    ("feature", "seconds", "dtype", "reason"),
    [
        ("avx512_bf16", {torch.float32: 1.0, torch.bfloat16: 1.6}, torch.float32, "0.6 times as fast"),
        ("avx512_bf16", {torch.float32: 1.0, torch.bfloat16: 0.9}, torch.float32, "1.1 times as fast"),
        ("amx_bf16", {torch.float32: 6.0, torch.bfloat16: 1.0}, torch.bfloat16, "6.0 times as fast"),
        (None, {}, torch.float32, "this CPU has none of amx_bf16, avx512_bf16, bf16"),
    ],
)
def test_auto_is_what_a_measurement_says(feature, seconds, dtype, reason, caplog, monkeypatch):
    """The least of three times counts: one that other work on the machine has stretched changes nothing."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {feature: True, "avx2": True})
    stretched = itertools.cycle((2.0, 1.0, 5.0))
    monkeypatch.setattr(placement, "_seconds_of_product", lambda rows, weight: seconds[rows.dtype] * next(stretched))
    try:
        for measured in (fastest_dtype, bfloat16_gain):
            measured.cache_clear()
        assert as_dtype("auto", "cpu") == dtype and reason in caplog.text
    finally:
        for measured in (fastest_dtype, bfloat16_gain):
            measured.cache_clear()


def test_default_numbers():
    assert default_dtype("cpu") == torch.float32
    assert default_dtype("mps") == torch.float16
