"""Names that programs written for the published code import: they are there and do what the published ones did."""

import runpy
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import videollama2.model
from tests.conftest import golden_audio_dir
from videollama2 import constants, mm_infer, mm_utils
from videollama2.checkpoints import load_pretrained_model
from videollama2.config import VideoLlama2Config
from videollama2.errors import ConfigError, PromptError
from videollama2.media.kinds import TAGS
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration

# The example of the published README, with the built-in model and media of the reference data.
EXAMPLE = """
import sys
sys.path.append('./')
from videollama2 import model_init, mm_infer
from videollama2.utils import disable_torch_init

def inference():
    disable_torch_init()

    # Video Inference
    modal = 'video'
    modal_path = {video!r}
    instruct = 'What colour is the object?'

    model_path = 'videollama2-tiny'
    model, processor, tokenizer = model_init(model_path)
    output = mm_infer(processor[modal](modal_path), instruct, model=model, tokenizer=tokenizer, do_sample=False, modal=modal)

    print(output)

if __name__ == "__main__":
    inference()
"""  # noqa: E501 - a line of the published text


@pytest.fixture(scope="module")
def tiny():
    return load_pretrained_model("videollama2-tiny", device="cpu")


def test_the_published_example_runs_unchanged(golden, tmp_path, monkeypatch, capsys):
    script = tmp_path / "inference.py"
    script.write_text(EXAMPLE.format(video=str(golden / "media" / "landscape_30fps_90f.mp4")))
    monkeypatch.setattr(sys, "path", [*sys.path])
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.strip()


CLASSES = ("Videollama2LlamaForCausalLM", "Videollama2LlamaConfig", "Videollama2MistralForCausalLM") + (
    *("Videollama2MistralConfig", "Videollama2MixtralForCausalLM", "Videollama2MixtralConfig"),
    *("Videollama2Qwen2ForCausalLM", "Videollama2Qwen2Config"),
)
PUBLISHED = {
    "videollama2": ("mm_infer", "model_init"),
    "videollama2.mm_utils": ("KeywordsStoppingCriteria", "expand2square", "frame_sample", "get_model_name_from_path")
    + ("process_image", "process_video", "tokenizer_multimodal_token"),
    "videollama2.model": ("load_pretrained_model", *CLASSES),
    "videollama2.utils": ("disable_torch_init",),
}
"""What the published modules offer to programs, besides :data:`CONSTANTS`."""


@pytest.mark.parametrize("module", PUBLISHED)
def test_every_published_name_can_be_imported(module):
    found: dict[str, object] = {}
    exec(f"from {module} import {', '.join(PUBLISHED[module])}", found)
    assert all(callable(found[name]) for name in PUBLISHED[module])


def test_the_model_package_has_one_class_for_all_published_ones():
    found: dict[str, object] = {}
    exec("from videollama2.model import *", found)
    assert found["load_pretrained_model"] is load_pretrained_model
    assert {found[name] for name in CLASSES} == {VideoLlama2ForConditionalGeneration, VideoLlama2Config}
    with pytest.raises(AttributeError, match="no attribute 'load_model'"):
        _ = videollama2.model.load_model


CONSTANTS = {
    "CONTROLLER_HEART_BEAT_EXPIRATION": 30,
    "WORKER_HEART_BEAT_INTERVAL": 15,
    "IGNORE_INDEX": -100,
    "IMAGE_TOKEN_INDEX": -200,
    "DEFAULT_IMAGE_TOKEN": "<image>",
    "DEFAULT_IMAGE_PATCH_TOKEN": "<im_patch>",
    "DEFAULT_IM_START_TOKEN": "<im_start>",
    "DEFAULT_IM_END_TOKEN": "<im_end>",
    "IMAGE_PLACEHOLDER": "<image-placeholder>",
    "VIDEO_TOKEN_INDEX": -201,
    "DEFAULT_VIDEO_TOKEN": "<video>",
    "NUM_FRAMES": 8,
    "MAX_FRAMES": 32,
    "NUM_FRAMES_PER_SECOND": 1,
    "AUDIO_TOKEN_INDEX": -202,
    "DEFAULT_AUDIO_TOKEN": "<audio>",
    "MODAL_INDEX_MAP": {"<image>": -200, "<video>": -201, "<audio>": -202},
}


def test_constants_have_the_published_values():
    assert {name: getattr(constants, name) for name in CONSTANTS} == CONSTANTS


def test_frame_sample_is_the_published_choice(golden):
    assert mm_utils.frame_sample(100, num_frames=8).tolist() == [6, 19, 31, 43, 56, 68, 80, 93]
    assert mm_utils.frame_sample(3, "uniform", 8).tolist() == [0, 0, 1, 1, 1, 1, 2, 2]
    assert mm_utils.frame_sample(90, "fps", fps=30.0).tolist() == [15, 45, 75]
    for wrong in ({"mode": "middle", "num_frames": 8}, {"mode": "uniform"}, {"mode": "fps"}):
        with pytest.raises(ConfigError, match="'uniform' with num_frames or 'fps' with fps"):
            mm_utils.frame_sample(90, **wrong)


@pytest.mark.parametrize("aspect_ratio", ["pad", None])
def test_pixels_are_those_of_the_processor(golden, tiny, aspect_ratio):
    _, _, processor, _ = tiny
    video = golden / "media" / "landscape_30fps_90f.mp4"
    for given in (processor, processor.image_processor):
        pixels_TCHW = mm_utils.process_video(str(video), given, 0.5, 2.5, aspect_ratio, num_frames=4)
        assert torch.equal(pixels_TCHW, processor["video"](video, 0.5, 2.5, aspect_ratio, 4))
    image = Image.fromarray(np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3))
    pixels_1CHW = mm_utils.process_image(image, processor.image_processor, aspect_ratio)
    assert torch.equal(pixels_1CHW, processor["image"](image, aspect_ratio))


def test_expand2square_puts_the_image_in_the_middle():
    square = mm_utils.expand2square(Image.new("RGB", (2, 5), (255, 0, 0)), (1, 2, 3))
    assert square.size == (5, 5)
    assert [square.getpixel((x, 2)) for x in range(5)] == [(1, 2, 3), (255, 0, 0), (255, 0, 0), (1, 2, 3), (1, 2, 3)]


def test_ids_with_sentinels(golden, tiny):
    tokenizer = tiny[0]
    ids = mm_utils.tokenizer_multimodal_token(f"{TAGS['image']}\nWhat?", tokenizer)
    assert ids == [-200, *tokenizer("\nWhat?", add_special_tokens=False).input_ids]
    tensor = mm_utils.tokenizer_multimodal_token("<video>\nWhat?", tokenizer, "<video>", return_tensors="pt")
    assert tensor.tolist() == [-201, *ids[1:]]
    assert tensor.dtype == torch.long
    assert mm_utils.tokenizer_multimodal_token("What?", tokenizer, None) == ids[2:]
    with pytest.raises(ConfigError, match="return_tensors"):
        mm_utils.tokenizer_multimodal_token("What?", tokenizer, None, "np")


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/b/VideoLLaMA2-7B/", "VideoLLaMA2-7B"), ("runs/lora/checkpoint-20", "lora_checkpoint-20"), ("one", "one")],
)
def test_model_name_of_a_path(path, name):
    assert mm_utils.get_model_name_from_path(path) == name


def test_generation_ends_at_a_keyword_wherever_the_prompt_is(tiny):
    tokenizer, model, _, _ = tiny
    prompt = tokenizer(["the circle moves"], return_tensors="pt").input_ids
    answer = tokenizer("the red square", add_special_tokens=False, return_tensors="pt").input_ids
    criterion = mm_utils.KeywordsStoppingCriteria(["square", tokenizer.eos_token], tokenizer, prompt)
    end = torch.tensor([[tokenizer.eos_token_id]])
    for start in (prompt, prompt[:, :0]):  # generate leaves out a prompt that was given as embeddings
        assert criterion(torch.cat([start, answer], 1), None).tolist() == [True]
        assert criterion(torch.cat([start, answer[:, :-1]], 1), None).tolist() == [False]
        assert criterion(torch.cat([start, answer[:, :1], end], 1), None).tolist() == [True]
    keyword = tokenizer.decode(prompt[0, -1:]).strip()
    in_prompt = mm_utils.KeywordsStoppingCriteria([keyword], tokenizer, prompt)
    output = model.generate(prompt, stopping_criteria=[in_prompt], max_new_tokens=3, do_sample=False)
    assert output.shape[1] > prompt.shape[1]


QUESTION = "What colour is the object?"


def published_answer(model, tokenizer, medium, modal):
    """The answer as the published ``mm_infer`` computes it, and programs that copied its body."""
    tag = "" if modal == "text" else f"<{modal}>"
    turns = [{"role": "user", "content": f"{tag}\n{QUESTION}"}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = mm_utils.tokenizer_multimodal_token(prompt, tokenizer, tag, return_tensors="pt").unsqueeze(0).long()
    stopping_criteria = mm_utils.KeywordsStoppingCriteria([tokenizer.eos_token], tokenizer, ids)
    with torch.inference_mode():
        output_ids = model.generate(
            ids,
            attention_mask=ids.ne(tokenizer.pad_token_id).long(),
            images=None if medium is None else [(medium, modal)],
            do_sample=False,
            temperature=0.0,
            max_new_tokens=16,
            top_p=0.9,
            use_cache=True,
            stopping_criteria=[stopping_criteria],
            pad_token_id=tokenizer.eos_token_id,
        )
    return tokenizer.batch_decode(output_ids, skip_special_tokens=True)[0].strip()


@pytest.mark.parametrize("modal", ["video", "image", "text"])
def test_generate_takes_ids_with_sentinels_and_images(golden, tiny, modal):
    tokenizer, model, processor, _ = tiny
    path = {"video": golden / "media" / "landscape_30fps_90f.mp4", "image": golden / "media" / "wide.png"}
    medium = None if modal == "text" else processor[modal](path[modal])
    answer = published_answer(model, tokenizer, medium, modal)
    assert answer == mm_infer(medium, QUESTION, model, tokenizer, modal=modal, max_new_tokens=16) != ""


def test_generate_takes_a_video_with_its_sound():
    folder = golden_audio_dir()
    path = folder / "models" / "qwen2-stc_connector_v35-siglip-beats"
    tokenizer, model, processor, _ = load_pretrained_model(str(path), device="cpu")
    medium = processor["video"](folder / "media" / "demo1_cut.mp4", va=True)
    answer = published_answer(model, tokenizer, medium, "video")
    assert answer == mm_infer(medium, QUESTION, model, tokenizer, modal="video", max_new_tokens=16)
    assert answer != published_answer(model, tokenizer, medium["video"], "video")


def test_images_that_do_not_fit_the_prompt_are_refused(golden, tiny):
    tokenizer, model, _, _ = tiny
    ids = mm_utils.tokenizer_multimodal_token("<video>\nWhat?", tokenizer, "<video>", return_tensors="pt")[None]
    pixels_TCHW = torch.zeros(1, 3, 8, 8)
    for given, images, words in (
        (ids, None, r"has 1 sentinel\(s\) for media but 0 are given"),
        (ids, [(pixels_TCHW, "film")], "of kind 'film'; the kinds are image, video, audio"),
        (ids.repeat(2, 1), [(pixels_TCHW, "video")] * 2, r"takes ids of shape \(1, length\), got ids of shape \(2, "),
    ):
        with pytest.raises(PromptError, match=words):
            model.generate(given, images=images, max_new_tokens=1)
