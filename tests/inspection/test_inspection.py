"""``videollama2 inspect``: the weights against finite differences, the grid of every connector, and the page."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import ROOT
from videollama2.checkpoints import load_checkpoint
from videollama2.cli import main
from videollama2.errors import ConfigError, PromptError
from videollama2.inspection import weights
from videollama2.inspection.page import HEAT, SOUND_WIDTH, draw_slices, sheet, to_html
from videollama2.inspection.weights import CANDIDATES, Inspection, Step, inspect_answer
from videollama2.model.connectors import CONNECTORS, frames_of_slice, num_visual_tokens, token_grid

CLIP = ROOT / "videollama2" / "assets" / "demo" / "moving_shapes.mp4"
QUESTION = "What shape moves?"


@pytest.fixture(scope="module")
def tiny():
    return load_checkpoint("videollama2-tiny", dtype=torch.float32)


@pytest.fixture(scope="module")
def found(tiny):
    return inspect_answer(*tiny, "video", CLIP, QUESTION)


def test_the_answer_is_that_of_the_engine_and_its_words_the_likeliest(tiny, found):
    from videollama2.inference.api import mm_infer

    model, processor = tiny
    answer = mm_infer(
        processor["video"](str(CLIP)), QUESTION, model=model, tokenizer=processor.tokenizer, modal="video"
    )
    assert found.answer == answer
    for step in found.steps:
        assert len(step.candidates) == CANDIDATES and step.candidates[0][0] == step.text  # greedy
        shares = [share for _, share in step.candidates]
        assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1.0001


def test_weights_are_gradient_times_input(tiny, found):
    """The slope of the first word's log-probability along each token, measured by moving that token a little."""
    model, processor = tiny
    levels = processor.read_levels("video", CLIP, weights.ReadOptions())
    pixels = weights._pixels(levels, processor.transform.table)
    assert torch.equal(pixels, processor.read("video", CLIP, weights.ReadOptions()))
    prompt = processor.prompt(weights.user_messages(QUESTION, "video"))
    ids = processor.prepare([prompt], [[pixels]])["input_ids"]
    tokens_ND = weights._visual_tokens(model, "video", pixels)

    @torch.no_grad()
    def log_probs(scaled_ND):
        embeds = model.model.embed(ids, video_tokens=[scaled_ND])
        return model(inputs_embeds=embeds, logits_to_keep=1).logits[0, -1].double().log_softmax(-1)

    first = int(log_probs(tokens_ND).argmax())
    assert processor.tokenizer.decode([first]) == found.steps[0].text
    little = 0.05  # less drowns in the rounding of float32
    measured = []
    for number in range(len(tokens_ND)):
        step = torch.zeros(len(tokens_ND), 1)
        step[number] = little
        slope = (log_probs(tokens_ND * (1 + step)) - log_probs(tokens_ND * (1 - step)))[first] / (2 * little)
        measured.append(abs(slope.item()))
    shares = np.array(measured) / sum(measured)
    np.testing.assert_allclose(found.steps[0].weights_THW.ravel(), shares, rtol=0.05, atol=2e-3)


@pytest.mark.parametrize("name", [*CONNECTORS, "mlp2x_gelu"])
@pytest.mark.parametrize(("frames", "side"), [(8, 24), (16, 27), (5, 4), (2, 6)])
def test_the_grid_of_every_connector_holds_its_tokens_and_its_slices_all_frames(name, frames, side):
    time, rows, columns = token_grid(name, frames, side)
    assert time * rows * columns == num_visual_tokens(name, frames, side)
    slices = [frames_of_slice(name, number, frames) for number in range(time)]
    seen = [frame for each in slices for frame in each]
    assert seen == list(range(len(seen)))  # each frame once, in order
    assert frames - len(seen) < 2  # with a kernel of two, a last odd frame may be left out


def test_an_image_and_what_cannot_be_drawn(tiny):
    found = inspect_answer(*tiny, "image", ROOT / "videollama2" / "assets" / "demo" / "shapes.png", "What is seen?")
    assert len(found.pictures_THWC) == 1 and all(frames == range(1) for frames in found.frames_of)
    assert found.weights_THW.sum() == pytest.approx(1, abs=1e-4)
    with pytest.raises(PromptError, match="not a sound"):
        inspect_answer(*tiny, "audio", "a.wav", "What?")
    with pytest.raises(ConfigError, match="makes no visual token from 1 frame"):
        inspect_answer(*tiny, "video", CLIP, "What?", weights.FrameSampling(1))


def made(weights_THW):
    pictures = np.zeros((2, 4, 8, 3), np.uint8)
    step = Step("<i>&", [("<i>&", 0.75), ("\n", 0.25)], np.array(weights_THW, np.float32))
    return Inspection(
        "a<i>.mp4", "What <is> it?", "<i>&", "stc_connector", [step, step], pictures, [range(1), range(1, 2)]
    )


def test_the_heaviest_token_is_the_reddest():
    inspection = made([[[0, 0], [0, 0.5]], [[0.25, 0], [0.25, 0]]])
    first, second = (np.asarray(picture).astype(int) for picture in draw_slices(inspection, inspection.weights_THW))
    height, width = first.shape[:2]
    assert first[: height // 2].max() == 0 and first[-1, -1].tolist() == [round(part * 0.7) for part in HEAT]
    assert 0 < second[0, 0, 0] < first[-1, -1, 0] and second[0, -1].max() == 0
    assert sheet(inspection).size == (2 * width + 8, height)


def test_the_page_shows_every_step_and_no_text_is_markup(tmp_path):
    page = to_html(made([[[0, 0], [0, 0.5]], [[0.25, 0], [0.25, 0]]]))
    assert "What &lt;is&gt; it?" in page and "<i>&" not in page and "Step 2" in page and "http" not in page
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)" alt="(frame \d)"', page)
    assert [name for _, name in pictures] == ["frame 1", "frame 2"] * 3
    assert Image.open(io.BytesIO(base64.b64decode(pictures[0][0]))).size == (384, 192)
    assert "50%" in page and "75.0%" in page


def test_the_command(tmp_path, capsys):
    page = tmp_path / "page.html"
    options = ("--model-path", "videollama2-tiny", "--device", "cpu", "--output", str(page))
    assert main(["inspect", str(CLIP), QUESTION, *options, "--num-frames", "4"]) == 0
    said = capsys.readouterr().out
    assert "1 step, 8 visual tokens" in said and "frames 3 to 4" in page.read_text()
    assert Image.open(page.with_suffix(".png")).height == 192
    assert main(["inspect", str(tmp_path / "gone.mp4"), QUESTION, *options]) == 2
    assert "gone.mp4: no such file" in capsys.readouterr().err
    assert main(["inspect", str(CLIP), QUESTION, *options[:-1], str(tmp_path / "no" / "page.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err


SOUNDING = CLIP.with_name("sounding_shapes.mp4")


@pytest.fixture(scope="module")
def hearing():
    return load_checkpoint("videollama2-tiny-av", dtype=torch.float32)


@pytest.fixture(scope="module")
def heard(hearing):
    return inspect_answer(*hearing, "video", SOUNDING, "What made the noise?")


def test_a_model_that_hears_hears_the_clip(hearing, heard):
    from videollama2.inference.api import mm_infer

    model, processor = hearing
    clip = processor["video"](str(SOUNDING), va=True)
    answer = mm_infer(clip, "What made the noise?", model=model, tokenizer=processor.tokenizer, modal="video")
    assert heard.answer == answer and not heard.notes
    for step in heard.steps:
        assert step.weights_THW.sum() + step.sound_TF.sum() == pytest.approx(1, abs=1e-4)
        assert step.candidates[0][0] == step.text
    patch = model.config.hearing.input_patch_size
    assert tuple(side // patch for side in heard.fbank_TF.shape) == heard.sound_TF.shape and heard.sound_TF.size > 1


def test_weights_of_a_sound_are_gradient_times_input(hearing, heard):
    """As for pictures above: the slope along each token of the sound, relative to that along all of them."""
    model, processor = hearing
    options = weights.ReadOptions()
    pixels = processor.read("video", SOUNDING, options)
    fbank, _ = processor.hear(SOUNDING, options.of_its_sound)
    content = [{"type": "video", "use_audio": True}, {"type": "text", "text": "What made the noise?"}]
    ids = processor.prepare([processor.prompt([{"role": "user", "content": content}])], [[pixels, fbank]])["input_ids"]
    seen_ND, heard_ND = weights._visual_tokens(model, "video", pixels), weights._sound_tokens(model, fbank)

    @torch.no_grad()
    def log_probs(scaled_ND):
        embeds = model.model.embed(ids, video_tokens=[seen_ND], audio_tokens=[scaled_ND])
        return model(inputs_embeds=embeds, logits_to_keep=1).logits[0, -1].double().log_softmax(-1)

    first, measured = int(log_probs(heard_ND).argmax()), []
    for number in range(len(heard_ND)):
        step = torch.zeros(len(heard_ND), 1)
        step[number] = 0.05
        slope = log_probs(heard_ND * (1 + step)) - log_probs(heard_ND * (1 - step))
        measured.append(abs(slope[first].item()))
    shares = heard.steps[0].sound_TF.ravel() / heard.steps[0].sound_TF.sum()
    np.testing.assert_allclose(shares, np.array(measured) / sum(measured), rtol=0.05, atol=5e-3)


def test_a_sound_is_drawn_and_its_share_told(heard):
    page = to_html(heard)
    assert f"and {heard.sound_TF.size} tokens of its sound." in page
    assert f"the sound: {heard.sound_TF.sum():.0%} of the weight of all tokens" in page
    assert sheet(heard).width == sheet(replace(heard, steps=[replace(heard.steps[0], sound_TF=None)])).width + 8 + (
        SOUND_WIDTH
    )


def test_the_command_tells_what_it_heard(tmp_path, capsys):
    page = str(tmp_path / "page.html")
    silent = ["inspect", str(CLIP), "What is it?", "--model-path", "videollama2-tiny-av", "--output", page]
    assert main([*silent, "--max-new-tokens", "1"]) == 0
    told = capsys.readouterr()
    assert re.search(r"1 step, 16 visual tokens, \d+ of the sound \(\d+%\)", told.out)
    assert told.err == "videollama2: the video has no sound track: silence is heard\n"
    assert main([*silent, "--max-new-tokens", "1", "--no-audio"]) == 0
    told = capsys.readouterr()
    assert "of the sound" not in told.out and told.err == ""
