"""``cls_patch`` keeps CLIP's class token: one visual token more where features are taken one by one."""

import pytest
import torch
from transformers import AutoConfig, Qwen2Config

from tests.conftest import decoder_sizes, golden_dir
from videollama2.config import VideoLlama2Config
from videollama2.errors import ConfigError
from videollama2.model.connectors import CONNECTORS, num_visual_tokens
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.processing import media_tokens

ONE_BY_ONE = ["linear", "identity", "mlp2x_gelu"]
GRIDS = sorted(set(CONNECTORS) - set(ONE_BY_ONE))


def config(connector, feature="cls_patch", encoder="clip", layer=-2):
    vision = AutoConfig.from_pretrained(golden_dir() / f"{encoder}-tiny")
    return VideoLlama2Config(
        text_config=Qwen2Config(**decoder_sizes(vocab_size=64)),
        vision_config=vision.to_dict(),
        mm_projector_type=connector,
        num_frames=4,
        mm_vision_select_feature=feature,
        mm_vision_select_layer=layer,
    )


@torch.no_grad()
@pytest.mark.parametrize("connector", ONE_BY_ONE)
@pytest.mark.parametrize(("encoder", "extra"), [("clip", 1), ("siglip", 0)])
def test_count_is_what_comes_out(connector, encoder, extra):
    torch.manual_seed(0)
    settings = config(connector, encoder=encoder)
    model = VideoLlama2ForConditionalGeneration(settings).eval()
    size, patches = settings.vision_config.image_size, settings.patches_per_side**2
    pixels = torch.randn(4, 3, size, size)
    video = model.get_video_features(pixels[None]).pooler_output[0]
    image = model.get_image_features(pixels[:1]).pooler_output[0]
    assert media_tokens(settings, "video", 4) == len(video) == patches + extra
    assert media_tokens(settings, "image") == len(image) == patches + extra
    ids = torch.tensor([[3, *[settings.video_token_id] * len(video), 4]])
    assert model(input_ids=ids, pixel_values_videos=pixels[None]).logits.shape[1] == ids.shape[1]
    # Beams repeat media with their sequences, which counts tokens once more.
    out = model.generate(
        input_ids=ids.repeat(2, 1),
        pixel_values_videos=pixels[None].repeat(2, 1, 1, 1, 1),
        num_beams=2,
        max_new_tokens=2,
        do_sample=False,
    )
    assert out.shape[0] == 2


@torch.no_grad()
def test_the_class_token_is_the_first_of_all(golden):
    settings = config("identity")
    model = VideoLlama2ForConditionalGeneration(settings).eval()
    pixels = torch.randn(1, 3, settings.vision_config.image_size, settings.vision_config.image_size)
    hidden = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(model.get_image_features(pixels).pooler_output[0], hidden[0])


@pytest.mark.parametrize("connector", GRIDS)
def test_grids_refuse_it(connector):
    rule = f"'cls_patch' keeps the class token, but {connector} needs a square patch grid: use 'patch'"
    with pytest.raises(ConfigError, match=rule):
        VideoLlama2ForConditionalGeneration(config(connector))
    with pytest.raises(ConfigError, match=rule):
        media_tokens(config(connector), "image")
    with pytest.raises(ConfigError, match=rule):
        num_visual_tokens(connector, 4, 24, class_token=True)
    # SigLIP has no class token to keep.
    assert media_tokens(config(connector, encoder="siglip"), "image") > 0
