"""``videollama2 inspect``: the weights against finite differences, the grid of every connector, and the page."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import ROOT
from videollama2.checkpoints import load_checkpoint
from videollama2.cli import main
from videollama2.errors import ConfigError, PromptError
from videollama2.inspection import weights
from videollama2.inspection.page import HEAT, draw, sheet, to_html
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
    first, second = (np.asarray(picture).astype(int) for picture in draw(inspection, inspection.weights_THW))
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
