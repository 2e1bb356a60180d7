"""What the published code does with unusual inputs of a model that hears, and what is done here instead.

Each row of ``published_errors.json`` names one such input. Where the published code fails, there is a result or an
error of one line here; a row without a decision fails the last test.
"""

import json

import pytest
import torch

from tests.conftest import golden_audio_dir
from videollama2.checkpoints import load_checkpoint
from videollama2.checkpoints.audio_tower import add_hearing
from videollama2.errors import ConfigError, PromptError
from videollama2.inference.api import mm_infer
from videollama2.model.connectors.audio import build_audio_projector

GOLDEN = golden_audio_dir()
MEDIA = GOLDEN / "media"
ROWS = [
    row
    for row in json.loads((GOLDEN / "published_errors.json").read_text())
    if (GOLDEN / "models" / row["model"]).is_dir()
]
DECIDED = {}


@pytest.fixture(scope="module", params=sorted({row["model"] for row in ROWS}))
def hearing(request):
    model, processor = load_checkpoint(GOLDEN / "models" / request.param, dtype=torch.float32)
    return model.eval(), processor, {row["what"] for row in ROWS if row["model"] == request.param}


@pytest.fixture
def medium(hearing):
    """Function that reads one medium of the kind named."""
    _, processor, _ = hearing

    def short(sound):  # 2.56 of the 30 seconds, so that the tests do not take long
        return sound[:, :256]

    def seen_and_heard():
        both = processor["video"](MEDIA / "demo1_cut.mp4", va=True)
        return {**both, "audio": short(both["audio"])}

    read = {
        "audio": lambda: short(processor["audio"](MEDIA / "speech_mono_22k.wav")),
        "video": lambda: processor["video"](MEDIA / "demo1_cut.mp4"),
        "audio_video": seen_and_heard,
        "image": lambda: processor["image"](MEDIA / "still.jpg"),
    }
    return lambda kind: read[kind]()


def decides(*rows: str):
    """Mark a test as the decision on these rows; it runs for the models that have one of them."""
    DECIDED.update(dict.fromkeys(rows))
    return pytest.mark.parametrize("what", rows)


@pytest.fixture
def ask(hearing, what):
    model, processor, rows = hearing
    if what not in rows:
        pytest.skip("the reference has no such row for this model")

    def answer(media, modal):
        return mm_infer(media, "What is it?", model, processor.tokenizer, modal=modal, max_new_tokens=4)

    return answer


def logits(hearing, media, kinds):
    """Logits at the last position of one prompt for each list of media."""
    model, processor, _ = hearing
    prompts = [
        processor.prompt(
            [{"role": "user", "content": [*({"type": k} for k in kind), {"type": "text", "text": "Why?"}]}]
        )
        for kind in kinds
    ]
    with torch.no_grad():
        return model(**processor.prepare(prompts, media), logits_to_keep=1).logits[:, -1]


@decides("save_pretrained (safetensors) without DeepSpeed")
def test_a_model_is_saved_and_opens_again(hearing, ask, tmp_path):
    model, processor, _ = hearing
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    again, _ = load_checkpoint(tmp_path, dtype=torch.float32)
    weights = again.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


@decides("two audios of different length in one batch")
def test_sounds_of_two_lengths_in_a_batch_give_what_each_gives_alone(hearing, ask, medium):
    sound = medium("audio")
    media = [[sound], [sound[:, :128]]]
    together = logits(hearing, media, [["audio"]] * 2)
    for row, alone in zip(together, media, strict=True):
        torch.testing.assert_close(row[None], logits(hearing, [alone], [["audio"]]), atol=1e-4, rtol=1e-4)


@decides("audio + image in a batch without video")
def test_a_sound_and_a_picture_in_a_batch_give_what_each_gives_alone(hearing, ask, medium):
    kinds, media = [["audio"], ["image"]], [[medium("audio")], [medium("image")]]
    together = logits(hearing, media, kinds)
    for row, kind, alone in zip(together, kinds, media, strict=True):
        torch.testing.assert_close(row[None], logits(hearing, [alone], [kind]), atol=1e-4, rtol=1e-4)


@decides("two <audio> tags, one audio")
def test_a_prompt_with_more_sounds_than_there_are_is_refused(hearing, ask, medium):
    with pytest.raises(PromptError, match="the prompt names 2 media but 1 are given"):
        logits(hearing, [[medium("audio")]], [["audio", "audio"]])


@decides("two <audio> tags, two audios, one sample")
def test_two_sounds_are_heard_in_one_turn(hearing, ask, medium):
    sound = medium("audio")
    assert torch.isfinite(logits(hearing, [[sound, sound]], [["audio", "audio"]])).all()


@decides(
    "text without media, images None", "text-only sample with the blank image of the collator, no video in the batch"
)
def test_text_alone_needs_no_blank_picture(ask):
    assert isinstance(ask(None, "text"), str)


@decides("image alone while an audio tower is present")
def test_a_picture_is_seen_beside_an_audio_encoder(ask, medium):
    assert isinstance(ask(medium("image"), "image"), str)


@decides("initialize_audio_modules a second time (continue training)")
def test_an_audio_encoder_is_given_to_a_model_that_hears(hearing, ask):
    model, _, _ = hearing
    tower, projector = model.model.audio_tower, model.model.mm_projector_a
    add_hearing(model, tower, model.config.mm_audio_tower, "mlp2x_gelu")
    assert model.model.audio_tower is tower and model.model.mm_projector_a is not projector
    model.model.mm_projector_a = projector


@decides("unknown audio projector type")
def test_an_unknown_projector_is_refused_by_name(ask):
    with pytest.raises(ConfigError, match="unknown mm_projector_a_type 'none'; known: identity, linear, mlpNx_gelu"):
        build_audio_projector("none", 32, 32)


ABSENT = {"audio": ("audio_tower", "no audio encoder"), "vision": ("vision_tower", "no vision encoder")}


@decides(
    "audio tower set to None: video",
    "audio tower set to None: image",
    "audio tower set to None: {video, audio} input",
    "audio tower set to None: audio input",
    "vision tower set to None: audio",
    "vision tower set to None: {video, audio} input",
    "vision tower set to None: video pixels",
)
def test_without_one_tower_what_needs_the_other_is_answered_and_the_rest_refused(hearing, ask, medium, what):
    """The published script takes a tower away to choose a modality. Programs that still do so keep working."""
    sense, _, given = what.partition(" tower set to None: ")
    kind = {"{video, audio} input": "audio_video", "video pixels": "video", "audio input": "audio"}.get(given, given)
    modal = "video" if kind == "audio_video" else kind
    name, message = ABSENT[sense]
    media = medium(kind)
    inner = hearing[0].model
    tower = getattr(inner, name)
    setattr(inner, name, None)
    try:
        if kind == "audio_video" or (kind == "audio") == (sense == "audio"):
            with pytest.raises(PromptError, match=message):
                ask(media, modal)
        else:
            assert isinstance(ask(media, modal), str)
    finally:
        setattr(inner, name, tower)


def test_every_row_of_the_reference_is_decided():
    assert {row["what"] for row in ROWS} <= set(DECIDED)
