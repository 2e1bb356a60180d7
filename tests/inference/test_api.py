"""mm_infer against the published answers: alone and in batches, media encoded once, sampling, and refusals."""

import json

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from tests.conftest import golden_dir
from videollama2 import mm_infer, mm_infer_batch, model_init
from videollama2.errors import CheckpointNotFoundError, ConfigError, PromptError
from videollama2.inference.api import embed_prompts, media_cache
from videollama2.inference.generate_options import generation_options
from videollama2.prompting import build_prompt, user_messages

ROWS = json.loads((golden_dir() / "end_to_end.json").read_text())


NAMES = sorted({row["model"] for row in ROWS})


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_published_answers_alone_and_in_one_batch(name):
    """All 120 answers of the published code, and the same ones from one padded batch of unequal prompts."""
    rows = [row for row in ROWS if row["model"] == name]
    assert len(rows) == 12
    model, processor, tokenizer = model_init(golden_dir() / "models" / name)
    requests = []
    for row in rows:
        media = []
        if row["modal"] != "text":
            media = [processor[row["modal"]](golden_dir() / "media" / row["file"])]
        requests.append((media, row["question"], row["modal"]))
    for row, (media, question, modal) in zip(rows, requests, strict=True):
        pixels = media[0] if media else None
        answer = mm_infer(pixels, question, model, tokenizer, modal=modal, do_sample=False, max_new_tokens=24)
        assert answer == row["answer"], row
    assert mm_infer_batch(requests, model, tokenizer, max_new_tokens=24) == [row["answer"] for row in rows]


@pytest.fixture(scope="module")
def video_requests(tiny_golden):
    """Prompts of unequal length: a video, an image, text."""
    _, processor, _ = tiny_golden
    video = processor["video"](golden_dir() / "media" / "portrait_25fps_57f.mp4")
    image = processor["image"](golden_dir() / "media" / "wide.png")
    return [([video], "What happens in this video?", "video"), ([image], "What?", "image"), ([], "Hi", "text")]


def count_encodes(model):
    calls = []
    hook = model.model.vision_tower.embeddings.register_forward_hook(lambda _, args, out: calls.append(out.shape[0]))
    return calls, hook


def test_a_second_question_does_not_encode_again(tiny_golden):
    model, processor, tokenizer = tiny_golden
    media_cache(model).clear()
    calls, hook = count_encodes(model)
    path = golden_dir() / "media" / "portrait_25fps_57f.mp4"
    first = mm_infer(processor["video"](path), "What?", model, tokenizer, max_new_tokens=5)
    again = mm_infer(processor["video"](path), "What?", model, tokenizer, max_new_tokens=5)
    mm_infer(processor["video"](path), "Why?", model, tokenizer, max_new_tokens=5)
    assert calls == [4]
    assert first == again
    mm_infer(processor["video"](path, start=1.0), "What?", model, tokenizer, max_new_tokens=5)
    assert calls == [4, 4]
    hook.remove()


def test_a_still_image_is_encoded_once_not_per_frame(tiny_golden):
    model, processor, tokenizer = tiny_golden
    media_cache(model).clear()
    calls, hook = count_encodes(model)
    mm_infer(
        processor["image"](golden_dir() / "media" / "wide.png"),
        "What?",
        model,
        tokenizer,
        modal="image",
        max_new_tokens=3,
    )
    mm_infer(None, "What?", model, tokenizer, modal="text", max_new_tokens=3)
    assert calls == [1]
    hook.remove()


def test_layers_above_the_selected_one_do_not_run(tiny_golden):
    model, _, _ = tiny_golden
    ran = []
    layers = model.model.vision_tower.encoder.layers
    hooks = [layer.register_forward_hook(lambda _, a, o, n=n: ran.append(n)) for n, layer in enumerate(layers)]
    size = model.config.vision_config.image_size
    model.get_image_features(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    assert ran == [0, 1]


def test_generation_computes_one_logit_row_per_step(tiny_golden):
    model, _, tokenizer = tiny_golden
    rows = []
    hook = model.lm_head.register_forward_hook(lambda _, args, out: rows.append(out.shape[:-1].numel()))
    mm_infer(None, "What is this?", model, tokenizer, modal="text", max_new_tokens=3)
    hook.remove()
    assert rows and set(rows) == {1}


def test_several_media_with_several_tags(tiny_golden):
    model, processor, tokenizer = tiny_golden
    image = processor["image"](golden_dir() / "media" / "wide.png")
    video = processor["video"](golden_dir() / "media" / "portrait_25fps_57f.mp4", num_frames=6)
    mixed = ([image, video], "Compare them.", ["image", "video"])
    alone = mm_infer_batch([mixed], model, tokenizer, max_new_tokens=8)[0]
    other = ([video], "What?", "video")
    assert mm_infer_batch([other, mixed], model, tokenizer, max_new_tokens=8)[1] == alone


def test_videos_of_different_frame_counts_share_a_batch(tiny_golden):
    model, processor, tokenizer = tiny_golden
    path = golden_dir() / "media" / "landscape_30fps_90f.mp4"
    requests = [([processor["video"](path, num_frames=n)], "What?", "video") for n in (2, 4, 7, 4)]
    alone = [mm_infer_batch([r], model, tokenizer, max_new_tokens=8)[0] for r in requests]
    media_cache(model).clear()
    assert mm_infer_batch(requests, model, tokenizer, max_new_tokens=8) == alone


def test_multi_turn_messages(tiny_golden):
    model, processor, tokenizer = tiny_golden
    pixels = processor["image"](golden_dir() / "media" / "wide.png")
    messages = [
        {"role": "user", "content": "What animals are there?"},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "What does it do?"},
    ]
    assert isinstance(mm_infer(pixels, messages, model, tokenizer, modal="image", max_new_tokens=4), str)
    assert messages[0]["content"] == "What animals are there?"


def test_sampling_is_repeatable_and_greedy_ignores_its_settings(tiny_golden):
    model, _, tokenizer = tiny_golden
    texts = []
    for _ in range(2):
        torch.manual_seed(3)
        texts.append(mm_infer(None, "Hi", model, tokenizer, modal="text", do_sample=True, max_new_tokens=12))
    assert texts[0] == texts[1]
    options = generation_options(tokenizer, max_new_tokens=3)
    assert options["do_sample"] is False and options["temperature"] is None
    sampled = generation_options(tokenizer, do_sample=True)
    assert (sampled["temperature"], sampled["top_p"], sampled["max_new_tokens"]) == (0.2, 0.9, 2048)


def test_one_beam_is_greedy_and_several_are_not(video_requests, tiny_golden):
    """Beams reach ``generate``, alone and in a padded batch, and find likelier answers than greedy search."""
    model, _, tokenizer = tiny_golden
    greedy = mm_infer_batch(video_requests, model, tokenizer, max_new_tokens=8)
    assert mm_infer_batch(video_requests, model, tokenizer, max_new_tokens=8, num_beams=1) == greedy
    beams = mm_infer_batch(video_requests, model, tokenizer, max_new_tokens=8, num_beams=4)
    assert beams != greedy
    for (media, question, modal), answer in zip(video_requests, beams, strict=True):
        pixels = media[0] if media else None
        assert mm_infer(pixels, question, model, tokenizer, modal=modal, max_new_tokens=8, num_beams=4) == answer


def test_beams_are_no_less_likely_than_greedy(video_requests, tiny_golden):
    """Summed log-probability of the tokens chosen. (Beams may in general lose; with these weights they do not.)"""
    model, _, tokenizer = tiny_golden
    prompts = [build_prompt(user_messages(text, modal), tokenizer, "qwen2") for _, text, modal in video_requests]
    embeds_BLD, mask_BL = embed_prompts(prompts, [media for media, *_ in video_requests], model, tokenizer)
    sums = {}
    for beams in (1, 4):
        ids = model.generate(
            inputs_embeds=embeds_BLD,
            attention_mask=mask_BL,
            do_sample=False,
            num_beams=beams,
            max_new_tokens=6,
            min_new_tokens=6,
            pad_token_id=0,
        )
        assert ids.shape == (len(prompts), 6)
        whole = torch.cat([embeds_BLD, model.get_input_embeddings()(ids)], dim=1)
        with torch.no_grad():
            logits = model(inputs_embeds=whole, attention_mask=torch.cat([mask_BL, torch.ones_like(ids)], 1)).logits
        logits = logits[:, -7:-1].log_softmax(-1)
        sums[beams] = logits.gather(-1, ids.unsqueeze(-1)).sum(dim=(1, 2))
    assert (sums[4] >= sums[1] - 1e-5).all() and (sums[4] > sums[1] + 1e-3).any()


@pytest.mark.parametrize(
    "options",
    [
        {"top_p": 1e-6, "temperature": 1.0},
        {"top_p": 1.0, "temperature": 1e-4},
        {"top_p": 1.0, "temperature": 1.0, "top_k": 1},
    ],
)
def test_sampling_among_one_token_is_greedy(video_requests, tiny_golden, options):
    model, _, tokenizer = tiny_golden
    greedy = mm_infer_batch(video_requests, model, tokenizer, max_new_tokens=8)
    for seed in range(2):
        torch.manual_seed(seed)
        assert mm_infer_batch(video_requests, model, tokenizer, max_new_tokens=8, do_sample=True, **options) == greedy


def test_top_p_bounds_what_is_drawn(tiny_golden):
    """Each token drawn lies in the smallest set of likeliest tokens whose probabilities reach top_p, and others do
    not come: with top_p 1 they do."""
    model, _, tokenizer = tiny_golden
    drawn = {}
    for top_p in (0.3, 1.0):
        torch.manual_seed(0)
        steps = Recorder()
        mm_infer(
            None,
            "What is this?",
            model,
            tokenizer,
            modal="text",
            do_sample=True,
            temperature=1.0,
            top_p=top_p,
            top_k=0,
            max_new_tokens=12,
            logits_processor=LogitsProcessorList([steps]),
        )
        drawn[top_p] = [steps.rank_before(step) for step in range(1, len(steps.scores))]
    assert len(drawn[0.3]) == len(drawn[1.0]) == 11
    assert max(drawn[0.3]) < 0.3 <= max(drawn[1.0])


class Recorder(LogitsProcessor):
    """Keeps the scores of every step, before temperature and top_p, and the ids so far."""

    def __init__(self):
        self.scores, self.ids = [], []

    def __call__(self, input_ids, scores):
        self.scores.append(scores[0].softmax(-1))
        self.ids.append(input_ids[0].tolist())
        return scores

    def rank_before(self, step):
        """Probability that lies before the token drawn at the step before this one, likeliest first."""
        probabilities, token = self.scores[step - 1], self.ids[step][-1]
        return probabilities[probabilities > probabilities[token]].sum().item()


def test_published_generation_defaults():
    for row in json.loads((golden_dir() / "infer_prompts.json").read_text())[:4]:
        published = row["gen_kwargs"]
        tokenizer = type("T", (), {"eos_token_id": published["pad_token_id"]})()
        ours = generation_options(tokenizer)
        for key in ("do_sample", "max_new_tokens", "use_cache", "pad_token_id"):
            assert ours[key] == published[key]


def test_stop_strings(tiny_golden):
    model, _, tokenizer = tiny_golden
    text = mm_infer(None, "What is this?", model, tokenizer, modal="text", max_new_tokens=24)
    stop = text[len(text) // 2]
    stopped = mm_infer(None, "What is this?", model, tokenizer, modal="text", max_new_tokens=24, stop_strings=[stop])
    assert len(stopped) < len(text)
    assert text.startswith(stopped.rstrip(stop))


@pytest.mark.parametrize(
    ("pixels", "modal", "rule"),
    [
        (torch.zeros(3, 56, 56), "video", "frames, 3, height, width"),
        (torch.zeros(4, 3, 56, 56), "image", r"\(1, 3, height, width\)"),
        (torch.zeros(4, 3, 60, 56), "video", "60x56"),
        ("clip.mp4", "video", r"processor\['video'\]"),
        (None, "video", r"processor\['video'\]"),
        (torch.zeros(4, 3, 56, 56), "depth", "unknown modality"),
        (torch.zeros(4, 3, 56, 56, dtype=torch.uint8), "video", "torch.uint8"),
    ],
)
def test_bad_pixels_are_refused(tiny_golden, pixels, modal, rule):
    model, _, tokenizer = tiny_golden
    with pytest.raises((PromptError, ConfigError), match=rule):
        mm_infer(pixels, "What?", model, tokenizer, modal=modal, max_new_tokens=2)


def test_pixels_of_several_sizes_in_one_batch(tiny_golden):
    """Refused before anything is encoded, and with the number of the request."""
    model, _, tokenizer = tiny_golden
    media_cache(model).clear()
    fits, small = torch.zeros(4, 3, 56, 56), torch.zeros(4, 3, 28, 28)
    calls, hook = count_encodes(model)
    for kind, good, bad in (("video", fits, small), ("image", fits[:1], small[:1])):
        requests = [([good], "What?", kind), ([bad], "What?", kind)]
        with pytest.raises(PromptError, match=rf"request 1: the {kind} is 28x28 pixels, .* takes 56x56"):
            mm_infer_batch(requests, model, tokenizer, max_new_tokens=2)
    hook.remove()
    assert calls == [] and len(media_cache(model)) == 0


@pytest.mark.parametrize(
    ("instruct", "rule"), [(None, "got None"), ("", "no text"), ([], "no message"), ("a\udc80", "not valid UTF-8")]
)
def test_a_question_that_is_none(tiny_golden, instruct, rule):
    model, _, tokenizer = tiny_golden
    with pytest.raises(PromptError, match=rule):
        mm_infer(torch.zeros(4, 3, 56, 56), instruct, model, tokenizer)


def test_model_names_that_cannot_be(tmp_path):
    for name in ("a" * 5000, tmp_path / ("a" * 300)):
        with pytest.raises(CheckpointNotFoundError, match="a: model_path cannot be opened"):
            model_init(name)
        with pytest.raises(CheckpointNotFoundError, match="a: model_base cannot be opened"):
            model_init(golden_dir() / "models" / NAMES[0], model_base=name)
    with pytest.raises(ConfigError, match="model_path is empty"):
        model_init("")


def test_bad_options_are_refused(tiny_golden):
    model, _, tokenizer = tiny_golden
    with pytest.raises(ConfigError, match="unknown option max_tokens"):
        mm_infer(None, "Hi", model, tokenizer, modal="text", max_tokens=3)
    with pytest.raises(ConfigError, match="max_new_tokens"):
        mm_infer(None, "Hi", model, tokenizer, modal="text", max_new_tokens=0)
    for beams in (0, -1, "two"):
        with pytest.raises(ConfigError, match="num_beams must be at least 1"):
            mm_infer(None, "Hi", model, tokenizer, modal="text", num_beams=beams)
    for top_p in (0, 1.5):
        with pytest.raises(ConfigError, match="top_p must be above 0 and at most 1"):
            mm_infer(None, "Hi", model, tokenizer, modal="text", do_sample=True, top_p=top_p)
    with pytest.raises(ConfigError, match="temperature"):
        mm_infer(None, "Hi", model, tokenizer, modal="text", do_sample=True, temperature=0)
    with pytest.raises(PromptError, match="no text"):
        mm_infer(None, " ", model, tokenizer, modal="text")


def test_placeholders_and_features_must_match(tiny_golden):
    model, _, _ = tiny_golden
    ids = torch.full((1, 5), model.config.video_token_id)
    with pytest.raises(PromptError, match=r"5 video placeholder.*make 3 visual tokens"):
        model.model.embed(ids, (), [torch.zeros(3, 32)])


def test_padding_is_on_the_left_and_masked(tiny_golden):
    model, _, tokenizer = tiny_golden
    prompts = [build_prompt(user_messages(q), tokenizer, "qwen2") for q in ("Hi", "What is the colour of this?")]
    embeds, mask = embed_prompts(prompts, [[], []], model, tokenizer)
    assert embeds.shape[:2] == mask.shape
    assert mask[0, 0] == 0 and mask[0, -1] == 1 and mask[1].all()
