"""Every reference model that hears: features, tokens, logits, batches, loss, gradients, greedy tokens, saving."""

import json

import pytest
import torch

from tests.conftest import golden_audio_dir
from tests.model.helpers import ATOL, close, open_case, save_again
from videollama2.audio_config import AudioConfig
from videollama2.checkpoints import load_checkpoint
from videollama2.constants import AUDIO_TOKEN_INDEX, IGNORE_INDEX, IMAGE_TOKEN_INDEX, VIDEO_TOKEN_INDEX
from videollama2.errors import PromptError
from videollama2.media.audio import read_sound, sound_features
from videollama2.model.weight_names import to_memory

GOLDEN = golden_audio_dir()
MODELS = [row["model"] for row in json.loads((GOLDEN / "summary.json").read_text()) if "model" in row]
MODELS = [name for name in MODELS if (GOLDEN / "models" / name).is_dir()]
BIAS = "relative_attention_bias"


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    return open_case(GOLDEN / "models" / request.param)


def as_exact(model, exact_model, inputs, position, reference):
    """Compare logits: within 5e-5, or within a few times what separates the reference from exact arithmetic where that
    is more. (These models let rounding grow: float64 differs from some reference logits by 2e-4.)"""
    sample, position = position.long().T
    ours = model(**inputs)
    doubled = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    exact = exact_model(**doubled).logits[sample, position]
    close(ours.logits[sample, position], reference, atol=max(ATOL, 4 * (exact - reference).abs().max().item()))
    close(exact.float(), reference, atol=3e-4)
    return ours


@pytest.fixture(scope="module")
def exact_model(case):
    return load_checkpoint(case[0], dtype=torch.float64)[0].eval()


def media_of(ref):
    """Name of each batch -> media per sample in the order of the file's description; an AV sample is two media."""
    sounds_BTF = ref["audio"].float()
    rows = {
        "batch_audio": [[("audio", sounds_BTF[i])] for i in range(3)],
        "batch_audio_text": [[("audio", sounds_BTF[0])], []],
    }
    if "video" in ref:
        video_TCHW, image_1CHW = ref["video"], ref["image"]
        with_sound = [("video", video_TCHW), ("audio", sounds_BTF[2])]
        rows["batch_av"] = [
            [("video", video_TCHW), ("audio", sounds_BTF[0])],
            [("video", video_TCHW.flip(0)), ("audio", sounds_BTF[1])],
            [("audio", sounds_BTF[2])],
            [("video", video_TCHW * 0.5)],
        ]
        rows["batch_video_only"] = [[("video", video_TCHW)], [("image", image_1CHW)], []]
        rows["batch_all"] = [[], with_sound, [("image", image_1CHW)], [("audio", sounds_BTF[1])]]
    return {name: media for name, media in rows.items() if f"{name}.input_ids" in ref}


def tokens_of(model, kind, medium):
    features = {
        "image": model.get_image_features,
        "video": lambda video: model.get_video_features(video[None]),
        "audio": lambda sound: model.get_audio_features(sound[None]),
    }
    return features[kind](medium).pooler_output[0].shape[0]


@torch.no_grad()
def expanded(model, ids, media, labels=None):
    """Ids and labels with one placeholder per token of a medium; a video's sound follows at the video's sentinel."""
    config, media = model.config, list(media)
    placeholder = {"image": config.image_token_id, "video": config.video_token_id, "audio": config.audio_token_id}
    kinds = {IMAGE_TOKEN_INDEX: ["image"], VIDEO_TOKEN_INDEX: ["video", "audio"], AUDIO_TOKEN_INDEX: ["audio"]}
    out, out_labels = [], []
    for position, token in enumerate(ids):
        if token not in kinds:
            out.append(token)
            out_labels.append(IGNORE_INDEX if labels is None else labels[position])
        for kind in kinds.get(token, ()):
            if media and media[0][0] == kind:
                count = tokens_of(model, *media.pop(0))
                out += [placeholder[kind]] * count
                out_labels += [IGNORE_INDEX] * count
    assert not media
    return out, out_labels


def model_inputs(media):
    """Media of all samples as keyword arguments of the model."""
    flat = [medium for sample in media for medium in sample]
    of_kind = {kind: [medium for k, medium in flat if k == kind] for kind in ("image", "video", "audio")}
    inputs = {}
    if of_kind["image"]:
        inputs["pixel_values"] = torch.cat(of_kind["image"])
    if of_kind["video"]:
        inputs["pixel_values_videos"] = torch.stack(of_kind["video"])
    if of_kind["audio"]:
        inputs["input_features"] = torch.stack(of_kind["audio"])
    return inputs


def test_models_are_here():
    assert MODELS
    if len(MODELS) > 1:
        assert len(MODELS) == 3


@torch.no_grad()
def test_features_and_tokens(case):
    _, model, _, ref = case
    sounds_BTF = ref["audio"].float()
    close(model.model.encode_audio(sounds_BTF), ref["audio_features"])
    close(torch.stack(model.get_audio_features(sounds_BTF).pooler_output), ref["audio_tokens"])
    uneven = model.get_audio_features([sounds_BTF[0], sounds_BTF[1, :64], sounds_BTF[2]]).pooler_output
    close(uneven[0], ref["audio_tokens"][0])
    close(uneven[2], ref["audio_tokens"][2])
    assert [len(tokens_ND) for tokens_ND in uneven] == [48, 32, 48]
    if "video" in ref:
        close(model.model.encode_vision(ref["video"]), ref["vision_features"])
        close(model.get_video_features(ref["video"][None]).pooler_output[0], ref["video_tokens"].flatten(0, -2))


@torch.no_grad()
def test_a_whole_sound(case):
    _, model, _, ref = case
    fbank_1TF = sound_features(read_sound(GOLDEN / "media" / "speech_mono_22k.wav"), AudioConfig()).float()
    features_BND = model.model.encode_audio(fbank_1TF)
    assert features_BND.shape[1] == 1496
    # Rounding to bfloat16 turns the last digit of a logarithm into steps of 0.06 in a few values of the filter bank.
    close(features_BND[0, ::7], ref["audio_long.features_every_7"].view(-1, features_BND.shape[-1]), atol=5e-3)
    tokens_ND = model.get_audio_features(fbank_1TF).pooler_output[0][::7]
    close(tokens_ND, ref["audio_long.tokens_every_7"].view_as(tokens_ND), atol=5e-3)


def singles(ref):
    sounds_BTF = ref["audio"].float()
    rows = {"single_audio": [("audio", sounds_BTF[0])]}
    if "video" in ref:
        rows["single_av"] = [("video", ref["video"]), ("audio", sounds_BTF[1])]
        rows["single_video"] = [("video", ref["video"])]
    return {name: media for name, media in rows.items() if f"{name}.input_ids" in ref}


def test_single_prompts(case, exact_model):
    _, model, _, ref = case
    found = singles(ref)
    assert len(found) == (3 if "video" in ref else 1)
    for name, media in found.items():
        ids, _ = expanded(model, ref[f"{name}.input_ids"][0].tolist(), media)
        assert len(ids) == ref[f"{name}.length"].item()
        inputs = model_inputs([media])
        with torch.no_grad():
            whole = {"input_ids": torch.tensor([ids]), **inputs}
            as_exact(model, exact_model, whole, ref[f"{name}.logits_position"], ref[f"{name}.logits"])
        out = model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            **inputs,
            do_sample=False,
            max_new_tokens=24,
            eos_token_id=None,
        )
        assert out[0, len(ids) :].tolist() == ref[f"{name}.greedy"].flatten().tolist()


def batch_of(model, ref, name, media):
    rows, labels = [], []
    for ids, own_labels, mask, sample in zip(
        ref[f"{name}.input_ids"], ref[f"{name}.labels"], ref[f"{name}.attention_mask"].bool(), media, strict=True
    ):
        new = expanded(model, ids[mask].tolist(), sample, own_labels[mask].tolist())
        rows.append(torch.tensor(new[0]))
        labels.append(torch.tensor(new[1]))
    pad = torch.nn.utils.rnn.pad_sequence
    lengths = torch.tensor([len(row) for row in rows])
    return {
        "input_ids": pad(rows, batch_first=True),
        "labels": pad(labels, batch_first=True, padding_value=IGNORE_INDEX),
        "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
        **model_inputs(media),
    }


@torch.no_grad()
def test_batches(case, exact_model):
    _, model, _, ref = case
    batches = media_of(ref)
    assert len(batches) == (5 if "video" in ref else 2)
    for name, media in batches.items():
        batch = batch_of(model, ref, name, media)
        # The published batch may be wider than its longest row.
        width = batch["input_ids"].shape[1]
        whole_mask = ref[f"{name}.out_attention_mask"].bool()
        mask, beyond = whole_mask[:, :width], whole_mask[:, width:]
        assert torch.equal(batch["attention_mask"].bool(), mask) and not beyond.any()
        out_labels = ref[f"{name}.out_labels"][:, :width]
        assert torch.equal(batch["labels"].masked_fill(~mask, IGNORE_INDEX), out_labels)
        flat = [medium for sample in media for medium in sample]
        tokens = {
            "image": [t for k, m in flat if k == "image" for t in model.get_image_features(m).pooler_output],
            "video": [t for k, m in flat if k == "video" for t in model.get_video_features(m[None]).pooler_output],
            "audio": [t for k, m in flat if k == "audio" for t in model.get_audio_features(m[None]).pooler_output],
        }
        embeds_BLD = model.model.embed(batch["input_ids"], *tokens.values())
        close(embeds_BLD[mask], ref[f"{name}.inputs_embeds"][:, :width][mask])
        out = as_exact(model, exact_model, batch, ref[f"{name}.logits_position"], ref[f"{name}.logits"])
        close(out.loss, ref[f"{name}.loss"].squeeze())


@pytest.mark.parametrize("name", ["batch_audio", "batch_av"])
def test_gradients(case, exact_model, name):
    _, model, _, ref = case
    media = media_of(ref).get(name)
    if media is None:
        pytest.skip("this model does not see")
    batch = batch_of(model, ref, name, media)
    for learner in (model, exact_model):
        learner.requires_grad_(True)
        learner.zero_grad()
        learner(**{k: v.to(learner.dtype) if v.is_floating_point() else v for k, v in batch.items()}).loss.backward()
    parameters, exact = dict(model.named_parameters()), dict(exact_model.named_parameters())
    prefix = f"{name}.grad."
    names = [key.removeprefix(prefix) for key in ref if key.startswith(prefix)]
    assert any("audio_tower" in n for n in names) and any("mm_projector_a" in n for n in names)
    for key in names:
        expected = ref[prefix + key]
        distance = (exact[to_memory(key)].grad - expected).abs().max().item()
        atol = max(1e-4 * expected.abs().max().item(), 4 * distance)
        close(parameters[to_memory(key)].grad, expected, atol=atol)
        assert distance <= 5e-4 * expected.abs().max().item()
    model.zero_grad()


def test_every_trainable_weight_has_a_gradient_whatever_the_batch(case):
    _, model, _, ref = case
    model.requires_grad_(True)
    model.train()
    try:
        for name, media in media_of(ref).items():
            model.zero_grad()
            model(**batch_of(model, ref, name, media)).loss.backward()
            without = [n for n, p in model.named_parameters() if p.grad is None]
            # The vision encoder's layers above the selected one never run, and their gradients are never waited for.
            assert not [n for n in without if "vision_tower" not in n], name
    finally:
        model.zero_grad()
        model.eval()


def test_saved_names_and_tensors_are_the_published_ones(case, tmp_path):
    _, model, _, ref = case
    published, saved = save_again(case, tmp_path)
    copies = {name for name in published if BIAS in name and ".layers.0." not in name}
    assert len(copies) == 2 and published.keys() - copies == saved.keys()
    assert all(torch.equal(published[name], saved[name]) for name in saved)
    again, _ = load_checkpoint(tmp_path, dtype=torch.float32)
    assert again.config.to_dict() == {
        **model.config.to_dict(),
        "_name_or_path": again.config.to_dict()["_name_or_path"],
    }
    sounds_BTF = ref["audio"].float()
    with torch.no_grad():
        close(torch.stack(again.get_audio_features(sounds_BTF).pooler_output), ref["audio_tokens"])


@torch.no_grad()
def test_media_a_model_cannot_take(case):
    _, model, _, ref = case
    audio_tower, model.model.audio_tower = model.model.audio_tower, None
    try:
        with pytest.raises(PromptError, match="has no audio encoder"):
            model.get_audio_features(ref["audio"].float())
    finally:
        model.model.audio_tower = audio_tower
    if "video" not in ref:
        with pytest.raises(PromptError, match="has no vision encoder"):
            model.get_video_features(torch.zeros(1, 2, 3, 70, 70))
