"""LoRA and QLoRA: what learns, what is written, that it opens again and can be merged."""

import json
import re

import pytest
import torch

from videollama2 import train
from videollama2.checkpoints import load_checkpoint, load_pretrained_model
from videollama2.checkpoints.merge import merge_adapter
from videollama2.checkpoints.write import save_lora
from videollama2.data.collator import TrainingCollator
from videollama2.data.dataset import VideoInstructionDataset
from videollama2.errors import CheckpointError, ConfigError
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.training.model.build import base_name, describe_trainable

from .helpers.runs import FEW_PARTS, LORA, copy_checkpoint, difference, flags


def opened(folder, **options):
    _, model, processor, _ = load_pretrained_model(folder, device="cpu", **options)
    return model, processor


def logits(model, processor, records):
    samples = [VideoInstructionDataset(records[:3], processor, 400)[i] for i in range(3)]
    with torch.no_grad():
        return model.eval()(**TrainingCollator(processor.pad_token_id)(samples)).logits


@pytest.mark.slow
def test_writes_the_published_files_under_published_names(run_once, parts):
    result = run_once(**LORA)
    folder = result.folder
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(parts / "llm")
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 8, "LORA")
    names = set(result.weights)
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in names
    assert "base_model.model.model.mm_projector.readout.0.weight" in names
    assert not any("vision_tower" in name or "language_model" in name for name in names)
    assert {"tokenizer.json", "preprocessor_config.json", "config.json"} <= {p.name for p in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        {"lora_bias": "none"},
        {"lora_bias": "all"},
        {"lora_bias": "lora_only"},
        {"lora_dora": True},
        {"lora_rslora": True, "lora_dora": True},
        {"lora_rslora": True, "lora_target": r"layers\.\d+\.self_attn\.[qv]_proj"},
        {"lora_parts": ["language_model", "vision_tower"], "lora_bias": "all"},
        {"lora_parts": ["vision_tower"], "lora_dora": True, "lora_rslora": True, "freeze_mm_mlp_adapter": True},
    ],
)
def test_opens_with_the_logits_it_was_trained_to(built, records, tmp_path, parts, kind):
    """Before merging, as peft computes it, and after, as the loader adds the matrices."""
    model, processor = built(**LORA, **FEW_PARTS, **kind)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    save_lora(model, processor, tmp_path / "adapter", str(parts / "llm"))
    expected = logits(model, processor, records)
    found, again = opened(tmp_path / "adapter")
    torch.testing.assert_close(logits(found, again, records), expected, rtol=0, atol=2e-4)
    merged = merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    whole, again = opened(merged)
    torch.testing.assert_close(logits(whole, again, records), expected, rtol=0, atol=2e-4)
    untouched, _ = built(**FEW_PARTS)
    assert (logits(untouched, processor, records) - expected).abs().max() > 1e-2


@pytest.mark.slow
def test_dora_names_are_those_of_peft_and_a_run_goes_on_from_them(run, tmp_path):
    options = {**LORA, "lora_dora": True, "save_strategy": "steps", "save_steps": 1}
    whole = run(**options)
    names = set(whole.weights)
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector" in names
    copy_checkpoint(whole.folder / "checkpoint-1", tmp_path / "begun" / "checkpoint-1")
    resumed = run(folder=tmp_path / "begun", **options)
    assert difference(whole.weights, resumed.weights) == 0


def test_target_chooses_the_layers_that_learn(built):
    model, _ = built(**LORA, lora_target=r"layers\.1\.self_attn\.[qv]_proj")
    learning = {name for name, p in model.model.language_model.named_parameters() if p.requires_grad}
    names = {f"layers.1.self_attn.{leaf}.lora_{m}.default.weight" for leaf in ("q_proj", "v_proj") for m in "AB"}
    assert learning == names


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (
            "layers.9.*",
            "matches no layer of the language model; a linear layer is, for example, layers.0.mlp.down_proj",
        ),
        ("layers.0.mlp", "matches layers.0.mlp, which is not a linear layer of the language model"),
        ("layers.(", "'layers.(' is not a regular expression: missing )"),
    ],
)
def test_targets_that_are_refused(built, target, words):
    with pytest.raises(ConfigError) as told:
        built(**LORA, lora_target=target)
    assert words in str(told.value)


BOTH = {**LORA, "lora_parts": ["language_model", "vision_tower"]}


@pytest.mark.slow
def test_the_encoder_learns_through_matrices_and_a_run_goes_on_from_them(run, built, tmp_path):
    """Its own weights stay, and layers that never run get no matrices."""
    options = {**BOTH, "gradient_checkpointing": True, "save_strategy": "steps", "save_steps": 1, "lora_bias": "all"}
    whole = run(**options, vision_tower_lr=4e-3)
    model, _ = opened(whole.folder)
    before = built()[0].state_dict()
    stem = "base_model.model.model.vision_tower.vision_tower.vision_model.encoder.layers."
    assert {name.removeprefix(stem)[0] for name in whole.weights if name.startswith(stem)} == {"0", "1"}
    for name, tensor in model.state_dict().items():
        if name.startswith("model.vision_tower.encoder.layers.") and name.endswith("proj.weight"):
            assert torch.equal(tensor, before[name]) == (".layers.2." in name), name
    copy_checkpoint(whole.folder / "checkpoint-1", tmp_path / "begun" / "checkpoint-1")
    resumed = run(folder=tmp_path / "begun", **options, vision_tower_lr=4e-3)
    assert difference(whole.weights, resumed.weights) == 0


def test_a_target_is_looked_for_in_every_part(built):
    model, _ = built(**BOTH, lora_target=r"(encoder\.)?layers\.\d\.self_attn\.[qv]_proj", lora_dora=True)
    learning = {name for name, p in model.named_parameters() if p.requires_grad and ".lora_A." in name}
    owners = [f"model.language_model.layers.{i}" for i in (0, 1)] + [
        f"model.vision_tower.encoder.layers.{i}" for i in (0, 1)
    ]
    assert learning == {
        f"{owner}.self_attn.{leaf}.lora_A.default.weight" for owner in owners for leaf in ("q_proj", "v_proj")
    }
    with pytest.raises(
        ConfigError, match=r"matches no layer of the vision tower; a linear layer is, for example, encoder\.layers\.0"
    ):
        built(**BOTH, lora_target=r"layers\.\d\.self_attn\.q_proj")
    with pytest.raises(ConfigError, match="--lora_parts audio_tower names a part that this model does not have"):
        built(**LORA, lora_parts=["audio_tower"])


def test_the_encoder_of_a_quantised_model_learns_through_matrices(built, records):
    model, processor = built(**BOTH, bits=4)
    batch = TrainingCollator(processor.pad_token_id)([VideoInstructionDataset(records[:1], processor, 400)[0]])
    model.train()(**batch).loss.backward()
    for part in ("language_model", "vision_tower"):
        matrices = [p for n, p in getattr(model.model, part).named_parameters() if ".lora_B." in n]
        assert matrices and all(p.grad.abs().sum() > 0 for p in matrices)


def test_names_choose_what_stays_frozen(run, built):
    upper = r"model\.language_model\.layers\.1\..*|lm_head\.weight"
    folder = run(max_steps=1, freeze_vision_tower=True, freeze_regex=upper).folder
    before, after = built()[0].state_dict(), opened(folder)[0].state_dict()
    for name, tensor in before.items():
        # The embeddings of this model are its head too.
        stays = "vision_tower" in name or "embed_tokens" in name or re.fullmatch(upper, name)
        assert torch.equal(after[name], tensor) == bool(stays), name


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("layers.*", "'layers.*' matches the name of no parameter that learns, such as "),
        (r"model\.vision_tower\..*", "matches the name of no parameter that learns"),
        ("layers.(", "'layers.(' is not a regular expression: missing )"),
        (".*", "nothing would learn"),
    ],
)
def test_names_that_freeze_nothing_or_all_are_refused(built, pattern, words):
    with pytest.raises(ConfigError) as told:
        built(freeze_vision_tower=True, freeze_regex=pattern)
    assert words in str(told.value)


def test_frozen_means_frozen(run_once, built):
    before = {name: p.clone() for name, p in built(**LORA)[0].named_parameters()}
    model, processor = opened(run_once(**LORA).folder)
    after = model.state_dict()
    for name, tensor in before.items():
        plain = name.replace(".base_layer.", ".")
        if plain not in after or "lora_" in name:
            continue
        adapted = ".base_layer." in name and name.endswith("weight")
        changed = not torch.equal(tensor, after[plain])
        assert changed == (adapted or "mm_projector" in name), name


def test_count_of_what_learns_is_printed(run, capsys):
    run(**LORA, max_steps=1)
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if "," in line[:40]}
    assert lines["vision_tower"][1] == "0"
    assert 0 < int(lines["language_model"][1].replace(",", "")) < int(lines["language_model"][0].replace(",", "")) / 2
    assert lines["mm_projector"][0] == lines["mm_projector"][1]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"bits": 4}, {"bits": 4, "double_quant": False, "quant_type": "fp4"}])
def test_quantised_decoder_learns_through_its_adapter(run, built, records, options):
    import bitsandbytes

    model, _ = built(**LORA, **options)
    layer = model.model.language_model.layers[0].mlp.down_proj  # others are too narrow for 4 bits on a CPU
    assert isinstance(layer.base_layer, bitsandbytes.nn.Linear4bit)
    state = layer.base_layer.weight.quant_state
    assert (state.nested, state.quant_type) == (options.get("double_quant", True), options.get("quant_type", "nf4"))
    assert not isinstance(model.lm_head, bitsandbytes.nn.Linear4bit)
    result = run(**LORA, **options, max_steps=12, learning_rate=1e-2, per_device_train_batch_size=8)
    assert result.losses[-1] < 0.95 * result.losses[0]
    model, processor = opened(result.folder)
    assert torch.isfinite(logits(model, processor, records)).all()


@pytest.mark.slow
@pytest.mark.parametrize("bits", [16, 4])
def test_adapter_on_a_whole_checkpoint(run, run_once, records, tmp_path, bits):
    base = run_once().folder
    changes = {"model_path": base, "vision_tower": None, "mm_projector_type": None, "bits": bits}
    adapter = run(**LORA, **changes).folder
    model, processor = opened(merge_adapter(adapter, tmp_path / "merged"))
    before, _ = load_checkpoint(base)
    assert (logits(model, processor, records) - logits(before, processor, records)).abs().max() > 1e-4
    tower = "model.vision_tower.encoder.layers.0.mlp.fc1.weight"
    assert torch.equal(model.state_dict()[tower], before.state_dict()[tower])


@pytest.mark.slow
def test_fused_experts_get_no_matrices_and_the_rest_does(run, golden, tmp_path):
    """Mixtral's experts are one tensor, not linear layers."""
    base = next((golden / "models").glob("mixtral*"))
    changes = {"model_path": base, "vision_tower": None, "mm_projector_type": None, "model_type": None}
    result = run(**LORA, **changes, model_max_length=1000, num_frames=None, max_steps=1)
    leaves = {name.split(".lora_")[0].rpartition(".")[2] for name in result.weights if ".lora_" in name}
    assert leaves == {"q_proj", "k_proj", "v_proj", "o_proj"}
    model, _ = opened(result.folder)
    plain, _ = load_checkpoint(base)
    experts = "model.language_model.layers.0.mlp.experts.gate_up_proj"
    assert torch.equal(model.state_dict()[experts], plain.state_dict()[experts])


def test_experts_that_stay_unquantised_are_told(built, golden, tmp_path):
    """A quantised Mixtral is nearly as large as before."""
    _, processor = load_checkpoint(next((golden / "models").glob("mixtral*")))
    config = processor.model_config
    config.text_config.hidden_size = 64  # wide enough for 4 bits on a CPU
    base = tmp_path / "mixtral"
    VideoLlama2ForConditionalGeneration(config).save_pretrained(base)
    processor.save_pretrained(base)
    changes = {"model_path": base, "vision_tower": None, "mm_projector_type": None, "model_type": None, "bits": 4}
    with pytest.warns(UserWarning, match="--bits 4 quantises only linear layers: .* weights of fused experts keep"):
        model, _ = built(**LORA, **changes, num_frames=None)
    experts = model.model.language_model.layers[0].mlp.experts.gate_up_proj
    assert experts.dtype == torch.float32 and experts.ndim == 3


def test_quantised_layers_pass_gradients_on_after_an_evaluation(built, records):
    """On processors with AVX512_BF16, bitsandbytes packs weights in evaluation so that they pass none."""
    model, processor = built(**LORA, bits=4)
    before = next(p for name, p in model.named_parameters() if "layers.0.mlp.gate_proj.lora_B" in name)
    logits(model.eval(), processor, records)
    model.train()
    ids = torch.arange(5).unsqueeze(0)
    model(input_ids=ids, labels=ids).loss.backward()
    assert before.grad.abs().sum() > 0  # reaches it through the quantised down_proj alone


def test_quantised_weights_are_counted_as_weights(built):
    assert describe_trainable(built(**LORA)[0]) == describe_trainable(built(**LORA, bits=4)[0])


def test_adapter_of_the_built_in_model_finds_it_again(built, tmp_path):
    """Its name is no folder and on no hub; where it lies on this machine is written nowhere."""
    changes = {"model_path": "videollama2-tiny", "vision_tower": "", "mm_projector_type": "", "tf32": True}
    model, processor = built(**LORA, **changes)
    save_lora(model, processor, tmp_path / "adapter", base_name("videollama2-tiny"))
    names = [("adapter_config.json", "base_model_name_or_path"), ("config.json", "_name_or_path")]
    for file, field in names:
        assert json.loads((tmp_path / "adapter" / file).read_text())[field] == "videollama2-tiny"
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_merging_refuses_what_it_must(run_once, tmp_path):
    whole = run_once().folder
    with pytest.raises(CheckpointError, match="full checkpoint"):
        merge_adapter(whole, tmp_path / "out")
    with pytest.raises(ConfigError, match="not empty"):
        merge_adapter(whole, whole)


@pytest.mark.slow
def test_merged_weights_are_written_in_the_type_asked_for(run_once, tmp_path):
    adapter = run_once(**LORA).folder
    merge_adapter(adapter, tmp_path / "half", dtype="bfloat16")
    model, _ = opened(tmp_path / "half", dtype="bfloat16")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    whole, _ = opened(adapter)
    for name, tensor in whole.state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(model.state_dict()[name], tensor.bfloat16()), name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bits": 4}, ["--bits 4", "--lora_enable"]),
        ({"lora_enable": True, "freeze_backbone": True}, ["--lora_enable", "--freeze_backbone"]),
        ({"lora_enable": True, "tune_mm_mlp_adapter": True, "freeze_vision_tower": True}, ["--tune_mm_mlp_adapter"]),
        ({"lora_r": 8}, ["--lora_r 8", "--lora_enable"]),
        ({"quant_type": "fp4"}, ["--quant_type fp4", "--bits 4"]),
        ({"lora_enable": True, "lora_r": 0}, ["--lora_r 0"]),
        ({"lora_parts": ["vision_tower"]}, ["--lora_parts ['vision_tower']", "--lora_enable"]),
        ({"lora_enable": True, "lora_parts": ["mm_projector"]}, ["--lora_parts mm_projector", "vision_tower"]),
        ({**BOTH, "freeze_vision_tower": False}, ["--lora_parts vision_tower", "--freeze_vision_tower False"]),
        ({**BOTH, "features": "somewhere"}, ["--features", "--lora_parts vision_tower trains them"]),
    ],
)
def test_contradictions(world, parts, tmp_path, capsys, changes, words):
    assert train.main(flags(world, parts, tmp_path / "out", **changes)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert all(word in line for word in words), line


@pytest.mark.parametrize(("package", "changes"), [("bitsandbytes", {"bits": 4}), ("peft", {})])
def test_missing_packages_are_named(world, parts, tmp_path, capsys, monkeypatch, package, changes):
    monkeypatch.setitem(__import__("sys").modules, package, None)  # what Python itself notes for a failed import
    assert train.main(flags(world, parts, tmp_path / "out", **LORA, **changes)) == 2
    assert f"pip install {package}" in capsys.readouterr().err
