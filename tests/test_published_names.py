"""Names that programs written for the published code import: they are there and do what the published ones did."""

import runpy
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from videollama2 import constants, mm_utils
from videollama2.checkpoints import load_pretrained_model
from videollama2.errors import ConfigError
from videollama2.media.kinds import TAGS

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


def test_load_pretrained_model_is_in_the_model_package():
    import videollama2.model

    assert videollama2.model.load_pretrained_model is load_pretrained_model
    with pytest.raises(AttributeError, match="no attribute 'load_model'"):
        _ = videollama2.model.load_model


def test_constants_have_the_published_values():
    published = {"NUM_FRAMES": 8, "MAX_FRAMES": 32, "IGNORE_INDEX": -100, "IMAGE_TOKEN_INDEX": -200}
    published |= {f"DEFAULT_{kind}_TOKEN": f"<{kind.lower()}>" for kind in ("IMAGE", "VIDEO", "AUDIO")}
    assert {name: getattr(constants, name) for name in published} == published
    assert constants.MODAL_INDEX_MAP == {"<image>": -200, "<video>": -201, "<audio>": -202}


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
