"""Every reference model: load, features, tokens, logits, batch, loss, gradients, greedy tokens, names on disk."""

import json

import pytest
import torch

from tests.conftest import golden_dir
from tests.model.helpers import close, open_case, save_again
from videollama2.checkpoints import load_checkpoint
from videollama2.config import VideoLlama2Config
from videollama2.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX, VIDEO_TOKEN_INDEX
from videollama2.model.weight_names import to_memory
from videollama2.processing import collate, expand_placeholders, media_tokens

NAMES = [row["model"] for row in json.loads((golden_dir() / "summary.json").read_text())]


@pytest.fixture(scope="module", params=NAMES)
def case(request):
    return open_case(golden_dir() / "models" / request.param)


def expand(ids, config, labels=None):
    count = media_tokens(config, "image")
    sentinels = [i for i in ids if i in (IMAGE_TOKEN_INDEX, VIDEO_TOKEN_INDEX)]
    return expand_placeholders(ids, [count] * len(sentinels), config, labels)


@torch.no_grad()
def test_features_and_visual_tokens(case):
    _, model, _, ref = case
    close(model.model.encode_vision(ref["video"]), ref["vision_features"])
    close(model.get_video_features(ref["video"][None]).pooler_output[0], ref["video_tokens"][0])
    close(model.get_image_features(ref["image"]).pooler_output[0], ref["image_tokens"][0])


@torch.no_grad()
def test_logits_of_one_prompt(case):
    _, model, _, ref = case
    ids, _ = expand(ref["single.input_ids"][0].tolist(), model.config)
    logits = model(input_ids=torch.tensor([ids]), pixel_values_videos=ref["video"][None]).logits
    close(logits, ref["single.logits"])


def test_greedy_tokens(case):
    _, model, _, ref = case
    ids, _ = expand(ref["single.input_ids"][0].tolist(), model.config)
    out = model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        pixel_values_videos=ref["video"][None],
        do_sample=False,
        max_new_tokens=24,
        eos_token_id=None,
    )
    assert out[0, len(ids) :].tolist() == ref["single.greedy"][0].tolist()


def padded_batch(ref, config):
    """The three samples (video, image, text), without the blank image published code adds to the text."""
    rows, labels, media = [], [], []
    kinds = [[("video", ref["video"])], [("image", ref["image"])], []]
    for ids, lab, mask, sample in zip(
        ref["batch.input_ids"], ref["batch.labels"], ref["batch.attention_mask"], kinds, strict=True
    ):
        new_ids, new_labels = expand(ids[mask].tolist(), config, lab[mask].tolist())
        rows.append(new_ids)
        labels.append(new_labels)
        media.append(sample)
    return collate(rows, media, 0, "right", labels)


def test_padded_batch_loss_and_gradients(case):
    folder, model, _, ref = case
    batch = padded_batch(ref, model.config)
    mask = ref["batch.out_attention_mask"]
    assert torch.equal(batch["attention_mask"].bool(), mask)
    assert torch.equal(batch["labels"].masked_fill(~mask, IGNORE_INDEX), ref["batch.out_labels"])
    with torch.no_grad():
        encoded = model.get_video_features(batch["pixel_values_videos"]).pooler_output
        images = model.get_image_features(batch["pixel_values"]).pooler_output
        embeds = model.model.embed(batch["input_ids"], images, encoded)
        close(embeds[mask], ref["batch.inputs_embeds"][mask])
        out = model(**batch)
        close(out.logits[mask], ref["batch.logits"][mask])
        close(out.loss, ref["batch.loss"][0])
    model.train()
    model.requires_grad_(True)
    model.model.vision_tower.requires_grad_(False)
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    close(loss.detach(), ref["batch.loss"][0])
    parameters = dict(model.named_parameters())
    names = [key.removeprefix("grad.") for key in ref if key.startswith("grad.")]
    assert names
    for name in names:
        reference = ref[f"grad.{name}"]
        gradient = parameters[to_memory(name)].grad
        close(gradient, reference, atol=1e-4 * reference.abs().max().item())
    model.zero_grad()
    model.eval()


def test_saved_names_and_tensors_are_the_published_ones(case, tmp_path):
    _, model, _, ref = case
    published, saved = save_again(case, tmp_path)
    assert published.keys() == saved.keys()
    assert all(torch.equal(published[name], saved[name]) for name in published)
    config = json.loads((tmp_path / "config.json").read_text())
    assert {"text_config", "vision_config"} <= config.keys()
    again, _ = load_checkpoint(tmp_path, dtype=torch.float32)
    ids, _ = expand(ref["single.input_ids"][0].tolist(), model.config)
    with torch.no_grad():
        logits = again.eval()(input_ids=torch.tensor([ids]), pixel_values_videos=ref["video"][None]).logits
    close(logits, ref["single.logits"])


def test_flat_form_tells_the_same_model():
    """Flat dict -> config -> flat dict: everything the published file says about the network is said again."""
    for name in NAMES:
        folder = golden_dir() / "models" / name
        published = json.loads((folder / "config.json").read_text())
        flat = VideoLlama2Config.from_pretrained(folder).to_flat_dict()
        unsaid = {"transformers_version", "use_cache"}
        if published.get("use_sliding_window") is False:
            unsaid.add("sliding_window")  # switched off: its width has no effect
        told = {k: v for k, v in published.items() if k not in unsaid}
        assert {k: flat.get(k) for k in told} == told, name
