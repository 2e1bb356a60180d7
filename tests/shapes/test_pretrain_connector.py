"""Pretraining of the tiny model's connector: what each token is told to say, and that it learns to."""

import pytest
import torch

from videollama2.media.pixels import PixelTransform
from videollama2.model.connectors import build_connector
from videollama2.shapes import parts as tiny
from videollama2.shapes import pretrain_connector as tiny_connector
from videollama2.shapes.pretrain_connector import WORD_FORMS, token_words, word_vectors
from videollama2.shapes.scene import QUADRANTS, make_scene

NAMES = [forms[0] for forms in WORD_FORMS]


def said(scene, frames, quadrant):
    return {NAMES[number] for number in token_words(scene, frames)[quadrant].nonzero().flatten().tolist()}


def scenes(scenario, count=40):
    return [make_scene(3, index, scenario=scenario) for index in range(count)]


def test_words_of_place_and_look():
    for scene in scenes("speed", 10):
        for item in scene.objects:
            words = said(scene, (1, 4), item.quadrant)
            assert {item.colour, item.shape} <= words
            assert {f" {word}" for word in QUADRANTS[item.quadrant].split()} <= words
        empty = set(range(4)) - {item.quadrant for item in scene.objects}
        assert all(not said(scene, (1, 4), quadrant) for quadrant in empty)


def test_words_of_motion_and_pace():
    paces = set()
    for scene in scenes("direction"):
        for item in scene.objects:
            if item.behaviour == "travel":
                words = said(scene, (7, 10), item.quadrant)
                assert {item.direction, "slowly"} <= words
                assert not words & ({"left", "right", "up", "down"} - {item.direction})
            if item.behaviour == "still":
                assert not said(scene, (7, 10), item.quadrant) & {"left", "right", "up", "down", "slowly", "fast"}
    for scene in scenes("speed"):
        for item in scene.objects:
            if item.behaviour in ("bounce_slow", "bounce_fast"):
                pace = said(scene, (1, 4), item.quadrant) & {"slowly", "fast"}
                assert pace == {{"bounce_slow": "slowly", "bounce_fast": "fast"}[item.behaviour]}
                paces |= pace
    assert paces == {"slowly", "fast"}


def test_words_of_events():
    found = set()
    for scene in scenes("appearance"):
        for item in scene.objects:
            if item.behaviour in ("appear", "disappear"):
                frames = (item.event_frame - 1, item.event_frame)
                words = said(scene, frames, item.quadrant)
                assert words & {"appears", "disappears"} == {f"{item.behaviour}s"}
                found |= words
    for scene in scenes("recolour"):
        for item in scene.objects:
            if item.behaviour == "recolour":
                frames = (item.event_frame - 1, item.event_frame)
                assert {item.colour, item.colour_after} <= said(scene, frames, item.quadrant)
    assert {"appears", "disappears"} <= found


@pytest.mark.slow
def test_word_vectors_are_those_of_the_embeddings():
    tokenizer = tiny.build_tokenizer(1024)
    embeddings_VD = torch.eye(1024)
    vectors = word_vectors(tokenizer, embeddings_VD)
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(len(WORD_FORMS)))
    red = vectors[NAMES.index("red")]
    ids = [tokenizer("red").input_ids, tokenizer(" red").input_ids]
    assert set(red.nonzero().flatten().tolist()) == {token for row in ids for token in row}
    # A place and a direction of the same letters are different words.
    assert not torch.equal(vectors[NAMES.index("left")], vectors[NAMES.index(" left")])


@pytest.fixture(scope="module")
def encoder():
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    sizes = tiny.TinySizes(vision_layers=2)
    return CLIPVisionModel(CLIPVisionConfig(**sizes.vision_config())).eval(), sizes


@pytest.mark.slow
def test_tokens_come_to_point_at_their_words(encoder, monkeypatch):
    """Even behind a random encoder, a few steps bring words forward; none are told at the start."""
    encoder, sizes = encoder
    monkeypatch.setattr(tiny_connector, "BATCH", 8)
    transform = PixelTransform.from_preprocessor_config(sizes.preprocessor())
    torch.manual_seed(0)
    connector = build_connector(tiny.CONNECTOR, sizes.vision_width, sizes.width)
    vectors = torch.nn.functional.normalize(torch.randn(len(WORD_FORMS), sizes.width), dim=-1)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    reached = tiny_connector.pretrain_connector(encoder, connector, vectors, transform, -2, 8, steps=60, progress=False)
    assert reached["words"] > 0.2, reached
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    frames, truth = tiny_connector.draw_clips(10_000, 4, 8)
    assert truth["words"].shape == (4, 4, 4, len(WORD_FORMS))
    with torch.no_grad():
        tokens = connector(encoder(transform(frames, None)).last_hidden_state[:, 1:].unflatten(0, (4, 8)))
    assert 0.02 < tokens.square().mean().sqrt() < 0.5


def test_narrow_decoders_are_drawn_wider():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    decoder = Qwen2ForCausalLM(Qwen2Config(**tiny.TinySizes().text_config()))
    before = decoder.get_input_embeddings().weight.detach().clone()
    tiny.widen(decoder)
    assert torch.allclose(decoder.get_input_embeddings().weight, before * tiny.EMBEDDING_STD / 0.02)
    layer = decoder.model.layers[0]
    assert layer.self_attn.q_proj.weight.std().item() == pytest.approx(128**-0.5, rel=0.05)
    assert layer.mlp.down_proj.weight.std().item() == pytest.approx(0.5 * 384**-0.5, rel=0.05)
    assert torch.equal(layer.input_layernorm.weight, torch.ones(128))
