"""The audio encoder against the published one: every stage, masks, lengths, gradients, files, training."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import golden_audio_dir
from tests.model.helpers import close
from videollama2.audio_config import AudioConfig
from videollama2.checkpoints.audio_tower import load_beats
from videollama2.errors import CheckpointError, CheckpointNotFoundError, ConfigError, MediaError
from videollama2.model.connectors.audio import build_audio_projector
from videollama2.model.encoders.beats import BeatsModel, distance_buckets, token_mask

FOLDER = golden_audio_dir() / "beats-tiny"
BIAS = "encoder.layers.{}.self_attn.relative_attention_bias.weight"


@pytest.fixture(scope="module")
def reference():
    return load_file(FOLDER / "reference.safetensors")


@pytest.fixture
def beats():
    return load_beats(FOLDER / "beats-tiny.pt")


@pytest.fixture(scope="module")
def sounds(reference):
    return reference["input"].float()


@torch.no_grad()
def test_every_stage(beats, reference, sounds):
    stages = {}

    def keep(name):
        return lambda module, args, output: stages.__setitem__(name, output)

    for name in ("layer_norm", "post_extract_proj"):
        getattr(beats, name).register_forward_hook(keep(name))
    beats.encoder.pos_conv[0].register_forward_hook(keep("pos_conv"))
    beats.encoder.layer_norm.register_forward_hook(keep("encoder_layer_norm"))
    for number, layer in enumerate(beats.encoder.layers):
        layer.register_forward_hook(keep(f"layer{number}"))
        layer.self_attn.register_forward_hook(keep(f"attn{number}"))
    stages["output"] = beats(sounds).last_hidden_state
    patches_BLD = reference["stage.patch_embedding"].flatten(2).transpose(1, 2)
    close(beats.embed_patches(sounds), patches_BLD)
    assert len(stages) == 5 + 2 * len(beats.encoder.layers)
    stages["pos_conv"] = stages["pos_conv"].transpose(1, 2)  # stored with channels first
    for name, value in stages.items():
        close(value, reference[name if name == "output" else f"stage.{name}"])
    close(beats.encoder.position_bias(48), reference["stage.position_bias"], atol=0)
    close(beats.encoder.pos_conv[0].weight, reference["pos_conv_weight"], atol=1e-6)
    close(beats.class_probabilities(stages["output"]), reference["class_probabilities"], atol=1e-6)


@torch.no_grad()
def test_padding_mask(beats, reference, sounds):
    mask_BT = reference["masked.padding_mask"]
    kept = sounds.clone()
    output = beats(sounds, mask_BT).last_hidden_state
    close(output, reference["masked.output"])
    assert torch.equal(sounds, kept)
    is_padding_BL = token_mask(mask_BT, 48)
    assert torch.equal(is_padding_BL, reference["masked.token_mask"])
    assert torch.equal(token_mask(mask_BT[:, :, None].expand(-1, -1, 128), 48), is_padding_BL)
    close(beats.class_probabilities(output, is_padding_BL), reference["masked.class_probabilities"], atol=1e-6)
    assert beats(sounds, torch.ones_like(mask_BT)).last_hidden_state.isfinite().all()


@torch.no_grad()
def test_lengths(beats, reference):
    sound_BTF = reference["length.input"].float()
    for row in json.loads((FOLDER / "lengths.json").read_text()):
        frames = row["frames"]
        if row["published_error"]:
            with pytest.raises(MediaError, match="at least 16 frames"):
                beats(sound_BTF[:, :frames])
        elif frames <= sound_BTF.shape[1]:
            output = beats(sound_BTF[:, :frames]).last_hidden_state
            assert output.shape[1] == row["tokens"] == beats.config.tokens_of(frames)
            if f"length{frames}.output" in reference:
                close(output, reference[f"length{frames}.output"])
        else:
            assert beats.config.tokens_of(frames) == row["tokens"]
    assert beats.config.clip_frames == 2998 and beats.config.tokens_of(2998) == 1496
    with pytest.raises(MediaError, match=r"\(1, 32, 64\).*128"):
        beats(torch.zeros(1, 32, 64))


def test_gradients(beats, reference, sounds):
    (beats(sounds).last_hidden_state * reference["grad.weighting"]).sum().backward()
    parameters = dict(beats.named_parameters())
    names = [name[5:] for name in reference if name.startswith("grad.") and name[5:] in parameters]
    assert len(names) == 13
    for name in names:
        expected = reference[f"grad.{name}"]
        close(parameters[name].grad, expected, atol=1e-4 * expected.abs().max().item())
    without = [name for name, parameter in parameters.items() if parameter.grad is None]
    assert without == ["predictor.weight", "predictor.bias"]


def test_gradient_multiplier_is_configured(beats, reference, sounds):
    plain = load_beats(FOLDER / "beats-tiny.pt")
    for layer in plain.encoder.layers:
        layer.gradient_scale = 1
    for model in (beats, plain):
        (model(sounds).last_hidden_state * reference["grad.weighting"]).sum().backward()
    scaled, full = beats.encoder.layers, plain.encoder.layers
    for number in range(3):
        expected = 0.6 ** (2 - number) * full[number].fc1.weight.grad
        close(scaled[number].fc1.weight.grad, expected, atol=1e-5 * expected.abs().max().item())
    expected = 0.6**3 * plain.patch_embedding.weight.grad
    close(beats.patch_embedding.weight.grad, expected, atol=1e-5 * expected.abs().max().item())


@torch.no_grad()
def test_bfloat16(beats, reference):
    output = beats.bfloat16()(reference["input"]).last_hidden_state
    assert output.dtype == torch.bfloat16
    close(output.float(), reference["output_bfloat16"].float(), atol=0.06)


def test_buckets(reference):
    ours = distance_buckets(reference["bucket.distance"], 320, 800)
    assert torch.equal(ours, reference["bucket.index"].long())


def test_layer_drop_is_seeded_by_torch(beats, sounds):
    beats.encoder.layer_drop = 0.5
    assert torch.equal(beats(sounds).last_hidden_state, beats(sounds).last_hidden_state)
    beats.train()

    def run(seed):
        torch.manual_seed(seed)
        return beats(sounds).last_hidden_state

    assert torch.equal(run(0), run(0))
    assert len({run(seed).sum().item() for seed in range(8)}) > 1
    beats.encoder.layer_drop = 1 - 1e-9
    run(0).sum().backward()
    skipped = [p.grad for p in beats.encoder.layers.parameters()]
    assert all(grad is not None and not grad.any() for grad in skipped)


def test_gradient_checkpointing_changes_nothing(beats, sounds):
    beats.encoder.layer_drop = 0.0
    beats.train()
    gradients = []
    for enabled in (False, True):
        if enabled:
            beats.gradient_checkpointing_enable()
        beats.zero_grad()
        beats(sounds).last_hidden_state.square().sum().backward()
        gradients.append({n: p.grad.clone() for n, p in beats.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        close(gradients[1][name], expected, atol=1e-5 * max(expected.abs().max().item(), 1e-3))


def test_the_shared_table_is_saved_once_and_read_in_every_form(beats, sounds, tmp_path):
    beats.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert [name for name in saved if "relative_attention_bias" in name] == [BIAS.format(0)]
    again, info = BeatsModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        assert torch.equal(again(sounds).last_hidden_state, beats(sounds).last_hidden_state)
    tables = {id(layer.self_attn.relative_attention_bias.weight) for layer in again.encoder.layers}
    assert len(tables) == 1
    prefixed = {f"model.audio_tower.{name}": tensor for name, tensor in saved.items()}
    every_copy = prefixed | {f"model.audio_tower.{BIAS.format(i)}": saved[BIAS.format(0)].clone() for i in (1, 2)}
    for content in (prefixed, every_copy, saved):
        torch.save(content, tmp_path / "audio_tower.bin")
        loaded = load_beats(tmp_path / "audio_tower.bin", beats.config)
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), beats.parameters(), strict=True))


def test_files_that_do_not_fit(beats, tmp_path):
    path = tmp_path / "a.pt"
    with pytest.raises(CheckpointNotFoundError, match="no such file"):
        load_beats(path)
    path.write_bytes(b"text")
    with pytest.raises(CheckpointError, match=r"a\.pt: cannot be read"):
        load_beats(path)
    torch.save([1], path)
    with pytest.raises(CheckpointError, match="holds no weights but a list"):
        load_beats(path)
    weights = dict(beats.state_dict())
    weights["surplus"] = weights.pop("layer_norm.weight")
    torch.save({"cfg": beats.config.to_dict() | {"activation_fn": "gelu"}, "model": weights}, path)
    with pytest.raises(CheckpointError, match=r"missing: layer_norm\.weight; unexpected: surplus"):
        load_beats(path)
    torch.save({"cfg": {"deep_norm": False}, "model": weights}, path)
    with pytest.raises(ConfigError, match="deep_norm must be True"):
        load_beats(path)
    torch.save(dict(beats.state_dict()), path)
    with pytest.raises(CheckpointError, match="do not fit this audio encoder"):
        load_beats(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("encoder_layers", 0, "encoder_layers must be a positive number"),
        ("encoder_layerdrop", 1.0, "at least 0 and below 1"),
        ("layer_wise_gradient_decay_ratio", 0.0, "above 0 and at most 1"),
        ("encoder_attention_heads", 7, "multiple of encoder_attention_heads 7"),
        ("num_buckets", 30, "num_buckets must be a multiple of 4"),
        ("max_distance", 80, "max_distance 80 must be above"),
        ("clip_seconds", 0.1, "less than one patch"),
    ],
)
def test_configuration_rules(field, value, message):
    with pytest.raises(ConfigError, match=message):
        AudioConfig(**{field: value})


def test_published_size():
    real = json.loads((golden_audio_dir() / "beats_real_state_dict.json").read_text())
    config = AudioConfig(**real["config_defaults"])
    assert config.to_dict() == AudioConfig().to_dict()
    with torch.device("meta"):
        model = BeatsModel(config)
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == real["state_dict"]
    assert sum(parameter.numel() for parameter in model.parameters()) == real["parameters"]


def test_projectors():
    reference = load_file(golden_audio_dir() / "audio_projectors.safetensors")
    names = sorted({key.split(".")[0] for key in reference} - {"input"})
    assert names == ["identity", "linear", "mlp2x_gelu", "mlp3x_gelu"]
    for name in names:
        prefix = f"{name}.weights."
        width = reference[f"{name}.output"].shape[-1]
        projector = build_audio_projector(name, reference["input"].shape[-1], width)
        weights = {key.removeprefix(prefix): tensor for key, tensor in reference.items() if key.startswith(prefix)}
        projector.load_state_dict(weights)
        close(projector(reference["input"]), reference[f"{name}.output"], atol=1e-6)
    for name, message in (("stc_connector", "unknown mm_projector_a_type"), ("mlp0x_gelu", "at least 1")):
        with pytest.raises(ConfigError, match=message):
            build_audio_projector(name, 48, 32)
    with pytest.raises(ConfigError, match="equal widths"):
        build_audio_projector("identity", 48, 32)
