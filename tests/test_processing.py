"""Prompts and media meet: image lists per text, one function for counts, pixels that do not fit together."""

import pytest
import torch
from PIL import Image

from tests.conftest import golden_dir
from videollama2.checkpoints import load_checkpoint
from videollama2.constants import IMAGE_TOKEN_INDEX
from videollama2.errors import ConfigError, PromptError
from videollama2.inference.api import embed_prompts
from videollama2.processing import VideoLlama2Processor, check_medium, collate, expand_prompts, media_tokens

QWEN = golden_dir() / "models" / "qwen2-stc_connector-clip"


@pytest.fixture(scope="module")
def loaded():
    return load_checkpoint(QWEN, dtype=torch.float32)


@pytest.fixture(scope="module")
def processor(loaded):
    return loaded[1]


def pictures(count):
    return [Image.new("RGB", (40, 30), (60 * number, 90, 200)) for number in range(count)]


# --------------------------------------------------------------------------------------------- lists of images


def test_one_list_of_images_per_text(processor):
    """As transformers' processors take them; the same batch as from one flat list."""
    first, second, third = pictures(3)
    texts = ["<image>\n<image>\nWhich is brighter?", "Hello.", "<image>\nWhat?"]
    flat = processor(text=texts, images=[first, second, third])
    nested = processor(text=texts, images=[[first, second], [], [third]])
    assert nested.keys() == flat.keys()
    assert all(torch.equal(nested[name], flat[name]) for name in flat)
    assert nested["pixel_values"].shape[0] == 3
    tuples = processor(text=texts, images=((first, second), (), (third,)))
    assert torch.equal(tuples["pixel_values"], flat["pixel_values"])


def test_one_text_may_have_its_list_in_a_list(processor):
    images = pictures(2)
    text = "<image>\n<image>\nWhich?"
    nested, flat = processor(text=text, images=[images]), processor(text=text, images=images)
    assert torch.equal(nested["pixel_values"], flat["pixel_values"])
    pixels = [processor["image"](image) for image in images]
    assert torch.equal(processor(text=text, images=[pixels])["pixel_values"], flat["pixel_values"])


def test_lists_that_do_not_match_the_texts(processor):
    first, second, third = pictures(3)
    texts = ["<image>\n<image>\nWhich?", "<image>\nWhat?"]
    with pytest.raises(PromptError, match="text 0 holds 2 <image> .* but 1 are given"):
        processor(text=texts, images=[[first], [second, third]])
    with pytest.raises(PromptError, match=r"one flat list, or one list per text; got 1 items, 1 of them lists, for 2"):
        processor(text=texts, images=[[first, second, third]])
    with pytest.raises(PromptError, match=r"got 2 items, 1 of them lists"):
        processor(text=texts, images=[[first, second], third])


# ------------------------------------------------------------------------------------------ counts in one place


def test_counts_are_made_in_one_place(loaded):
    """What the processor prepares is what mm_infer embeds."""
    model, processor = loaded
    config = processor.model_config
    prompt = processor.prompt([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}])
    pixels = processor["image"](pictures(1)[0])
    rows, media = expand_prompts([prompt], [[pixels]], processor.tokenizer, config)
    count = media_tokens(config, "image")
    ids = prompt.token_ids(processor.tokenizer)
    place = ids.index(IMAGE_TOKEN_INDEX)
    assert rows == [[*ids[:place], *[config.image_token_id] * count, *ids[place + 1 :]]]
    assert media == [[("image", pixels)]]
    inputs = processor.prepare([prompt], [[pixels]])
    assert inputs["input_ids"].tolist() == rows
    embeds, mask = embed_prompts([prompt], [[pixels]], model, processor.tokenizer)
    assert embeds.shape[:2] == mask.shape == inputs["input_ids"].shape


def test_one_of_several_prompts_is_named(processor):
    prompts = [processor.prompt([{"role": "user", "content": "Hello."}]) for _ in range(2)]
    pixels = processor["image"](pictures(1)[0])
    with pytest.raises(PromptError, match="^request 1: the prompt names 0 media but 1 are given"):
        processor.prepare(prompts, [[], [pixels]])
    with pytest.raises(PromptError, match="^the prompt names 0 media"):
        processor.prepare(prompts[:1], [[pixels]])


# ---------------------------------------------------------------------------------------------- pixels that fit


def test_pixels_of_another_size(processor):
    """torch would say that tensors cannot be stacked."""
    config = processor.model_config
    size = config.vision_config.image_size
    fits, small = torch.zeros(1, 3, size, size), torch.zeros(1, 3, size // 2, size)
    with pytest.raises(PromptError, match=rf"the image is {size // 2}x{size} pixels, the vision encoder takes {size}x"):
        processor(text="<image>\n<image>\nWhich?", images=[fits, small])
    with pytest.raises(PromptError, match=rf"the video is {size // 2}x{size} pixels"):
        processor(text="<video>\nWhat?", videos=[small])
    with pytest.raises(PromptError, match=rf"one size, got {size // 2}x{size} and {size}x{size}"):
        collate([[1], [2]], [[("image", fits)], [("video", small)]], 0, "right")
    with pytest.raises(PromptError, match="pixels made by processor"):
        check_medium(torch.zeros(1, 3, size, size, dtype=torch.uint8), "image", config)
    with pytest.raises(PromptError, match="pixels made by processor.*got str"):
        check_medium("clip.mp4", "video", config)


def test_the_model_names_frames_of_another_size(loaded):
    model, processor = loaded
    size = processor.model_config.vision_config.image_size
    videos = [torch.zeros(4, 3, size, size), torch.zeros(4, 3, size // 2, size // 2)]
    with pytest.raises(ConfigError, match=rf"frames are {size // 2}x{size // 2} pixels"):
        model.get_video_features(videos)


@pytest.mark.parametrize("part", [{"type": "text"}, {"type": "text", "text": None}, "What?", {"text": 3}])
def test_a_text_part_without_text(processor, part):
    conversation = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Well?"}, part]}]
    with pytest.raises(PromptError, match="message 0"):
        processor.prompt(conversation)
    with pytest.raises(PromptError, match="message 0"):
        processor.apply_chat_template(conversation, tokenize=True)


def test_padding_side_and_placeholders_are_the_configurations():
    processor = VideoLlama2Processor.from_pretrained(QWEN)
    assert processor.image_token_id == processor.model_config.image_token_id
    batch = processor(text=["Hello.", "Hello, you there."], padding_side="right")
    assert batch["attention_mask"][0, 0] == 1
    assert batch["attention_mask"][0, -1] == 0
