"""Requests that begin alike share key-values with those that run already, to the token, and are prefilled together."""

import pytest
import torch

from videollama2.inference.engine import Engine
from videollama2.inference.request import Request

from .helpers import VIDEO, alone

QUESTIONS = ["what moves", "where is the small red man", "who falls", "why", "then the picture turns because of what"]


def requests(count, **options):
    """Questions about one clip, with the same words before the part that differs."""
    begin = "what who where " * 20
    return [Request(begin + question, [("video", VIDEO)], **options) for question in QUESTIONS[:count]]


def passes_of(engine):
    """The list to which each pass of a prefill adds its numbers of rows and of positions per row."""
    passes = []
    prefill = engine.decoder.prefill

    def noted(first, tasks, count):
        passes.append((len(tasks), count))
        return prefill(first, tasks, count)

    engine.decoder.prefill = noted
    return passes


def test_the_second_to_fifth_of_one_clip_are_one_pass_of_what_differs(small):
    model, processor = small
    asked = requests(5, max_new_tokens=8)
    engine = Engine(model, processor, max_batch=8, max_length=700, background=False, prefix_cache_bytes=0)
    passes = passes_of(engine)
    results = engine.generate(asked)
    prompts = [result.prompt_tokens for result in results]
    rest = [result.prompt_tokens - result.cached_tokens for result in results]
    assert passes == [(1, prompts[0]), (4, max(rest[1:]))]
    assert results[0].cached_tokens == 0 and len({result.cached_tokens for result in results[1:]}) == 1
    assert max(rest[1:]) < 40 < 100 < prompts[0], "only the question is computed, not the rest of a block"
    assert [result.token_ids for result in results] == [alone(model, processor, request) for request in asked]


@pytest.mark.parametrize(("count", "rows"), [(2, [2]), (5, [1, 4])])
def test_a_crowd_waits_for_words_that_are_not_cached_and_two_do_not(small, count, rows):
    model, processor = small
    begin = "what who where " * 10
    asked = [
        Request(
            f"{begin}then the small red man and the picture turns because of {question}",
            [("video", VIDEO)],
            max_new_tokens=4,
        )
        for question in QUESTIONS[:count]
    ]
    with Engine(model, processor, max_batch=8, max_length=700, background=False) as engine:
        engine.generate([Request(f"{begin}of a", [("video", VIDEO)], max_new_tokens=1)])
        passes = passes_of(engine)
        results = engine.generate(asked)
    assert [number for number, _ in passes] == rows
    assert min(result.cached_tokens for result in results) > 100
    assert [result.token_ids for result in results] == [alone(model, processor, request) for request in asked]


def test_the_source_may_be_the_middle_row_and_end_first(small):
    model, processor = small
    other = Request("what who where", max_new_tokens=20)
    first, second = requests(2, max_new_tokens=12)
    engine = Engine(model, processor, max_batch=4, max_length=700, background=False, prefix_cache_bytes=0)
    answers = [engine.submit_request(request) for request in (other, first)]
    while engine.load["decoding"] < 2:
        engine.step()
    answers.append(engine.submit_request(second))
    results = [answer.result() for answer in answers]
    assert results[2].cached_tokens > 100
    assert [r.token_ids for r in results] == [alone(model, processor, r) for r in (other, first, second)]


def test_rows_of_old_weights_are_not_shared(small):
    """Neither with a request that begins when they ran, nor through the prefix cache."""
    model, processor = small
    running, later, last = requests(3, max_new_tokens=6)
    engine = Engine(model, processor, max_batch=2, max_length=700, background=False)
    answer = engine.submit_request(running)
    while not engine.load["decoding"]:
        engine.step()
    weight = model.model.language_model.layers[0].self_attn.v_proj.weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.mul_(1.5)
        result = engine.submit_request(later).result()
        assert "weights were changed" in str(answer.outcome().error)
        assert result.cached_tokens == 0 and result.token_ids == alone(model, processor, later)
        assert engine.submit_request(last).result().token_ids == alone(model, processor, last)
    finally:
        with torch.no_grad():
            weight.copy_(kept)
