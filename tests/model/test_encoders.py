"""The table of vision encoders: every line can be built, run, partly frozen and given its preprocessing."""

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from videollama2.config import VideoLlama2Config
from videollama2.errors import ConfigError
from videollama2.model.encoders import (
    KNOWN_TOWERS,
    VISION_ENCODERS,
    encode_frames,
    known_vision_config,
    vision_encoder,
    vision_fields,
)

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


@pytest.fixture(params=VISION_ENCODERS)
def encoder(request):
    return VISION_ENCODERS[request.param]


@pytest.fixture
def tower(encoder):
    torch.manual_seed(0)
    return encoder.build(CONFIG_MAPPING[encoder.model_type](**SIZES)).eval()


def test_features_are_the_hidden_state_of_the_selected_layer(encoder, tower):
    pixels_BCHW = torch.randn(2, 3, 28, 28)
    expected_BND = tower(pixels_BCHW, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(encode_frames(tower, pixels_BCHW, -2, "cls_patch"), expected_BND)
    patches_BND = encode_frames(tower, pixels_BCHW, -2)
    assert patches_BND.shape == (2, 4, 16)
    torch.testing.assert_close(patches_BND, expected_BND[:, -4:])


def test_layers_above_the_selected_one_do_not_run(encoder, tower):
    for layer in tower.encoder.layers[3:]:
        layer.register_forward_hook(lambda *_: pytest.fail("the layer ran"))
    encode_frames(tower, torch.randn(1, 3, 28, 28), -2)
    learning = {id(p) for module in encoder.runs(tower, -2) for p in module.parameters()}
    encode_frames(tower, torch.randn(1, 3, 28, 28), -2).sum().backward()
    assert learning == {id(p) for p in tower.parameters() if p.grad is not None}


def test_layer_class_is_one_that_the_encoder_has(encoder, tower):
    assert encoder.layer_class in {type(module).__name__ for module in tower.modules()}


@pytest.mark.parametrize("name", KNOWN_TOWERS)
def test_a_published_encoder_is_known_with_its_preprocessing(name):
    fields = known_vision_config(name)
    encoder = vision_encoder(fields["model_type"])
    size = encoder.image_processor(KNOWN_TOWERS[name].preprocessor).size
    assert (size.shortest_edge or size.height) == fields["image_size"]
    config = VideoLlama2Config(
        text_config={"model_type": "qwen2", "hidden_size": 16, "num_attention_heads": 2}, mm_vision_tower=name
    )
    assert config.vision_config.hidden_size == fields["hidden_size"] == config.mm_hidden_size


def test_a_pair_with_a_text_encoder_is_read_as_its_vision_half(encoder):
    pair = {"model_type": encoder.pair_type, "text_config": {}, "vision_config": SIZES}
    assert vision_fields(pair) == {"model_type": encoder.model_type, **SIZES}


def test_an_unknown_encoder_is_refused_with_the_known_names():
    with pytest.raises(ConfigError, match="'vit' is not supported; known: clip_vision_model, siglip_vision_model"):
        vision_encoder("vit")
