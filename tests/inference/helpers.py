"""Models, requests and reference answers that the tests of the engine share."""

import json
from functools import lru_cache
from random import Random

import torch

from tests.conftest import golden_dir
from videollama2 import model_init
from videollama2.inference.request import Request

NAMES = sorted({row["model"] for row in json.loads((golden_dir() / "summary.json").read_text())})
MEDIA = golden_dir() / "media"
VIDEO, IMAGE = MEDIA / "portrait_25fps_57f.mp4", MEDIA / "wide.png"
WORDS = [
    "what",
    "who",
    "where",
    "moves",
    "falls",
    "first",
    "then",
    "because",
    "red",
    "small",
    "picture",
    "of",
    "the",
    "a",
    "man",
    "and",
    "turns",
    "why",
]


def load(name):
    return model_init(golden_dir() / "models" / name)[:2]


def draw_requests(rng, count, **options):
    """Requests of any length: text, image, video, both, and a conversation."""
    requests = []
    for _ in range(count):
        question = " ".join(rng.choices(WORDS, k=rng.randint(1, 30)))
        media = rng.choice(([], [("image", IMAGE)], [("video", VIDEO)], [("video", VIDEO), ("image", IMAGE)]))
        request = Request(question, media, max_new_tokens=rng.randint(1, 14), **options)
        if rng.random() < 0.3:
            first = Request(question, media).messages
            messages = [*first, {"role": "assistant", "content": "a man"}, {"role": "user", "content": "and then"}]
            request = Request(messages, [part.source for part in request.media], max_new_tokens=9, **options)
        requests.append(request)
    return requests


@torch.inference_mode()
def alone(model, processor, request):
    """Token ids from transformers' own generate, for one request by itself."""
    pixels = [processor[part.kind](part.source) for part in request.media]
    inputs = processor.prepare([processor.prompt(request.messages)], [pixels])
    embeds = model.model.embed(
        inputs["input_ids"],
        model.get_image_features(inputs["pixel_values"]).pooler_output if "pixel_values" in inputs else (),
        model.get_video_features(inputs["pixel_values_videos"]).pooler_output
        if "pixel_values_videos" in inputs
        else (),
    )
    ids = model.generate(
        inputs_embeds=embeds,
        attention_mask=inputs["attention_mask"],
        do_sample=False,
        max_new_tokens=request.options.max_new_tokens,
        eos_token_id=processor.tokenizer.eos_token_id,
    )[0].tolist()
    return tuple(ids[: ids.index(processor.tokenizer.eos_token_id)] if processor.tokenizer.eos_token_id in ids else ids)


@lru_cache
def answered(name):
    """A model, its processor, requests and the token ids of each alone, for tests that change nothing of it."""
    model, processor = load(name)
    requests = draw_requests(Random(name), 17)
    return model, processor, requests, [alone(model, processor, request) for request in requests]


def run_with_random_joins(engine, requests, rng):
    """Submit at random steps, so that requests meet in any state; returns results in order."""
    answers, steps = [], 0
    while len(answers) < len(requests) or not all(answer.done for answer in answers):
        while len(answers) < len(requests) and rng.random() < 0.4:
            answers.append(engine.submit_request(requests[len(answers)]))
        engine.step()
        steps += 1
        assert steps < 2000
    return [answer.result() for answer in answers]


class Counting:
    """A processor that notes what it reads."""

    def __init__(self, processor, before=None):
        self.tokenizer, self.model_config, self.prompt = processor.tokenizer, processor.model_config, processor.prompt
        self.processor, self.sources, self.before = processor, [], before

    def read(self, kind, source, options):
        self.sources.append(source)
        if self.before is not None:
            self.before()
        return self.processor.read(kind, source, options)
