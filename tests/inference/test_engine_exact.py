"""The engine gives the tokens it would give alone, whatever runs beside and however a step is computed."""

import re
from random import Random

import pytest
import torch

from tests.conftest import golden_dir
from videollama2 import model_init
from videollama2.errors import ConfigError
from videollama2.inference.decoder import Decoder
from videollama2.inference.engine import Engine
from videollama2.inference.fixed_shapes import FixedShapes
from videollama2.inference.request import Request

from .helpers import NAMES, WORDS, alone, answered, draw_requests, load, run_with_random_joins


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_do_not_depend_on_companions(name):
    """Every decoder and connector, with 1, 3 and 16 companions that join and leave at random steps."""
    model, processor, requests, expected = answered(name)
    rng = Random(name)
    assert len(set(expected)) > 5
    for companions in (1, 3, 16):
        engine = Engine(
            model,
            processor,
            max_batch=companions + 1,
            max_length=800,
            background=False,
            prefill_chunk=rng.choice((7, 40, 512)),
        )
        results = run_with_random_joins(engine, requests, rng)
        assert [result.token_ids for result in results] == expected
        assert {result.finish_reason for result in results} <= {"stop", "length"}
        assert engine.load == {"decoding": 0, "prefilling": 0, "waiting": 0}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_steps_of_fixed_shapes_give_the_same_tokens(name, monkeypatch):
    """What a GPU records, computed without recording: rows and positions rounded up, some rows empty."""
    from videollama2.inference import fixed_shapes

    monkeypatch.setattr(fixed_shapes, "POSITIONS", 48)
    model, processor, requests, expected = answered(name)
    for companions in (1, 7):
        engine = Engine(model, processor, max_batch=companions, max_length=500, background=False, prefill_chunk=40)
        engine.decoder.fixed = fixed_shapes.FixedShapes(engine.decoder, record=False)
        results = run_with_random_joins(engine, requests[:12], Random(name))
        assert [result.token_ids for result in results] == expected[:12]
        steps = engine.decoder.fixed._steps
        assert {rows for rows, _ in steps} <= {1, 2, 4, 7} and {length % 48 for _, length in steps} <= {0, 500 % 48}


@pytest.mark.parametrize("name", ["mistral-stc_connector-clip", "qwen2-stc_connector-clip"])
def test_a_step_to_be_recorded_asks_nothing_of_the_host(name):
    """Tensors of the meta device have no values: asking for one, or mixing in a tensor of a CPU, would fail."""
    model = load(name)[0].to("meta")
    fixed = FixedShapes(Decoder(model, 4, 64), record=False)
    with torch.inference_mode():
        logits_BV = fixed._compute(fixed._prepare(2, 32))
    assert logits_BV.shape == (2, model.config.text_config.vocab_size) and logits_BV.device.type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_recorded_steps_give_the_same_tokens():
    """CUDA graphs against the same steps computed one by one."""
    model, processor = model_init(golden_dir() / "models" / "qwen2-stc_connector-clip", device="cuda", dtype="float32")[
        :2
    ]
    requests = draw_requests(Random(2), 12)
    results = []
    for graphs in (False, True):
        engine = Engine(model, processor, max_batch=4, max_length=500, background=False, cuda_graphs=graphs)
        results.append([result.token_ids for result in run_with_random_joins(engine, requests, Random(3))])
    assert results[0] == results[1]


def test_what_cannot_be_recorded_is_refused(small):
    with pytest.raises(ConfigError, match="one GPU"):
        Engine(*small, cuda_graphs=True)


@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
def test_sliding_windows_shorter_than_the_prompt(kind, monkeypatch):
    """Layers that look at the last tokens only: all of Mistral's, some of Qwen2's."""
    name = {"mistral": "mistral-stc_connector-clip", "qwen2": "qwen2-stc_connector-clip"}[kind]
    model, processor = load(name)
    config = model.config.text_config
    expected_full = alone(model, processor, Request(" ".join(WORDS * 3), max_new_tokens=10))
    if kind == "mistral":
        config.sliding_window = 16
    else:
        config.layer_types = ["full_attention", "sliding_attention"] + config.layer_types[2:]
        config.sliding_window = 16
        decoder = model.model.language_model
        decoder.has_sliding_layers = True
        for layer, layer_type in zip(decoder.layers, config.layer_types, strict=True):
            layer.attention_type = layer_type
            layer.self_attn.layer_type = layer_type
            layer.self_attn.sliding_window = 16 if layer_type == "sliding_attention" else None
    for layer in model.model.language_model.layers:
        if kind == "mistral" and hasattr(layer.self_attn, "sliding_window"):
            layer.self_attn.sliding_window = 16
    requests = [Request(" ".join(WORDS * n), max_new_tokens=10) for n in (1, 2, 3, 4)]
    expected = [alone(model, processor, request) for request in requests]
    assert expected[2] != expected_full  # the window matters
    engine = Engine(model, processor, max_batch=4, max_length=900, background=False, prefill_chunk=33)
    assert [result.token_ids for result in engine.generate(requests)] == expected


def test_short_prompts_are_prefilled_in_one_pass(small):
    """Unlike ones together; of those that begin alike, the second after the first, whose beginning it takes over."""
    model, processor = small
    engine = Engine(model, processor, max_batch=8, max_length=600, background=False)
    passes = []
    prefill = engine.decoder.prefill
    engine.decoder.prefill = lambda first, tasks, count: (passes.append(len(tasks)), prefill(first, tasks, count))[1]
    unlike = [Request(" ".join(Random(n).choices(WORDS, k=20 + n)), max_new_tokens=6) for n in range(4)]
    together = [result.token_ids for result in engine.generate(unlike)]
    assert passes == [4]
    assert together == [alone(model, processor, request) for request in unlike]
    passes.clear()
    alike = [Request("what who where " * 20 + word, max_new_tokens=6) for word in ("red", "small", "man")]
    results = engine.generate(alike)
    assert passes == [1, 2] and [result.cached_tokens > 32 for result in results] == [False, True, True]
    assert [result.token_ids for result in results] == [alone(model, processor, request) for request in alike]
    passes.clear()
    known = [Request("what who where " * 20 + f"red {word}", max_new_tokens=6) for word in ("man", "small", "turns")]
    results = engine.generate([*known, unlike[0]])
    assert passes == [4], "what they have in common is known but for a few tokens"
    assert [result.token_ids for result in results] == [alone(model, processor, r) for r in (*known, unlike[0])]
    passes.clear()
    engine.generate([Request("falls " * 30 + word, max_new_tokens=2) for word in ("red", "man")] + unlike[:1])
    assert passes == [2, 1], "the second of two that begin alike waits, and holds nobody else back"
    passes.clear()
    engine.prefill_chunk = 40
    engine.generate([Request(" ".join(Random(9).choices(WORDS, k=100)), max_new_tokens=2), unlike[0]])
    assert passes[:3] == [1, 1, 1]  # a long one over several passes, alone


@pytest.mark.slow
def test_in_bfloat16(small):
    """Rounding may turn an answer, not break it: most are those of the request alone."""
    model, processor = model_init(golden_dir() / "models" / "qwen2-stc_connector-clip", dtype="bfloat16")[:2]
    requests = draw_requests(Random(1), 12)
    engines = [Engine(model, processor, max_batch=n, max_length=800, background=False) for n in (1, 12)]
    alone, together = ([result.token_ids for result in engine.generate(requests)] for engine in engines)
    assert engines[0].decoder.slots._storage[0][0].dtype == torch.bfloat16
    assert all(alone) and sum(a == b for a, b in zip(alone, together, strict=True)) >= 6


@pytest.mark.parametrize("name", ["qwen2-stc_connector-clip", "mistral-stc_connector-clip"])
def test_streamed_text_is_the_decoded_text(name):
    """Any tokens in any order, special ones and halves of characters among them."""
    from videollama2.inference.text_stream import TextStream

    tokenizer = model_init(golden_dir() / "models" / name)[1].tokenizer
    rng = Random(7)
    special = list(tokenizer.all_special_ids)
    for _ in range(300):
        ids = [
            rng.choice(special) if rng.random() < 0.15 else rng.randrange(len(tokenizer))
            for _ in range(rng.randint(1, 20))
        ]
        stream = TextStream(tokenizer)
        streamed = "".join([stream.push(token) for token in ids] + [stream.finish()])
        whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert streamed == stream.text
        # Broken bytes may be drawn as one sign or several.
        assert re.sub("\ufffd+", "?", streamed) == re.sub("\ufffd+", "?", whole), ids
