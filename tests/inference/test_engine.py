"""Answers of the engine: text as it comes, options, cancelling, many callers, asynchronous ones."""

import asyncio
import gc
import threading
import time
from random import Random

import pytest
import torch

from videollama2.errors import ConfigError, MediaError
from videollama2.inference.answer import Answer, Channel, Result
from videollama2.inference.engine import Engine
from videollama2.inference.request import Request

from .helpers import IMAGE, VIDEO, draw_requests, run_with_random_joins


def test_deltas_make_up_the_answer(engine):
    answer = engine.submit("what moves", [("video", VIDEO)], max_new_tokens=30)
    deltas = list(answer)
    result = answer.result()
    assert len(deltas) > 3
    assert "".join(deltas) == result.text
    assert result.completion_tokens == 30 and result.finish_reason == "length"
    assert 0 < result.timings.first_token <= result.timings.total


def test_characters_split_over_tokens_arrive_whole(engine):
    """A byte-level tokenizer writes one character as several tokens."""
    stream_ids = engine.processor.tokenizer("世界 Größe 🙂 né", add_special_tokens=False).input_ids
    from videollama2.inference.text_stream import TextStream

    stream = TextStream(engine.processor.tokenizer)
    deltas = [stream.push(token) for token in stream_ids] + [stream.finish()]
    assert "".join(deltas) == engine.processor.tokenizer.decode(stream_ids)
    assert not any("\ufffd" in delta for delta in deltas)
    assert any(not delta for delta in deltas[:-1])


def test_stop_text_across_token_borders(engine):
    whole = engine.submit("what moves", max_new_tokens=40).result().text
    middle = whole[len(whole) // 2 :][:5]
    place = whole.index(middle)
    answer = engine.submit("what moves", max_new_tokens=40, stop=[middle])
    deltas = list(answer)
    assert "".join(deltas) == answer.result().text == whole[:place]
    assert answer.result().finish_reason == "stop"
    never = engine.submit("what moves", max_new_tokens=40, stop=[middle + "\x00"]).result()
    assert never.text == whole and never.finish_reason == "length"


def test_a_seed_gives_one_text_whatever_the_batch(small):
    rng = Random(3)
    requests = draw_requests(rng, 8, temperature=1.3, top_p=0.9, top_k=40, seed=11)
    engine = Engine(*small, max_batch=1, max_length=512, background=False)
    one_by_one = [engine.generate([request])[0].token_ids for request in requests]
    together = Engine(*small, max_batch=8, max_length=512, background=False)
    assert [result.token_ids for result in run_with_random_joins(together, requests, rng)] == one_by_one
    sources = [part.source for part in requests[0].media]
    other = Request(requests[0].messages, sources, max_new_tokens=14, temperature=1.3, seed=12)
    assert engine.generate([other])[0].token_ids != one_by_one[0]


@pytest.mark.slow
def test_sampling_follows_the_distribution(small):
    """First tokens of many seeds against the probabilities that top_k leaves."""
    engine = Engine(*small, max_batch=16, max_length=256, background=False)
    first = engine.submit("what", max_new_tokens=1, logprobs=4).result().logprobs[0]
    requests = [Request("what", max_new_tokens=1, temperature=1.0, top_k=4, seed=seed) for seed in range(600)]
    counts = {token: 0 for token, _ in first.top}
    for result in engine.generate(requests):
        counts[result.token_ids[0] if result.token_ids else engine.processor.tokenizer.eos_token_id] += 1
    weights = {token: torch.tensor(value).exp().item() for token, value in first.top}
    for token, weight in weights.items():
        share = weight / sum(weights.values())
        assert abs(counts[token] / 600 - share) < 4 * (share * (1 - share) / 600) ** 0.5 + 1e-9


def test_options_of_sampling(engine):
    greedy = engine.submit("what", max_new_tokens=12).result()
    for options in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-40}, {"temperature": 1e-4}):
        options = {"temperature": 5.0, "seed": 1, **options}
        same = engine.submit("what", max_new_tokens=12, **options).result()
        assert same.token_ids == greedy.token_ids
    varied = engine.submit("what", max_new_tokens=12, repetition_penalty=1e9).result()
    assert len(set(varied.token_ids)) == 12
    for entry, token in zip(
        engine.submit("what", max_new_tokens=12, logprobs=2).result().logprobs, greedy.token_ids, strict=True
    ):
        assert entry.token_id == token == entry.top[0][0]
        assert entry.logprob == entry.top[0][1] > entry.top[1][1]


def test_no_end_before_min_new_tokens(small):
    model, processor = small
    engine = Engine(model, processor, max_batch=2, max_length=256, background=False)
    first = engine.submit("what", max_new_tokens=1).result().token_ids[0]
    engine._end_ids = frozenset({first})  # the token it would begin with ends it
    assert engine.submit("what", max_new_tokens=8).result().finish_reason == "stop"
    result = engine.submit("what", max_new_tokens=8, min_new_tokens=5).result()
    assert result.completion_tokens >= 5 and first not in result.token_ids[:5]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 1.5},
        {"max_new_tokens": 0},
        {"repetition_penalty": 0},
        {"stop": [""]},
        {"seed": -1},
        {"logprobs": -1},
        {"top_k": 1.5},
        {"min_new_tokens": 5, "max_new_tokens": 4},
    ],
)
def test_options_out_of_range(engine, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        engine.submit("what", **options)


def test_cancel_frees_the_slot_within_one_step(small):
    engine = Engine(*small, max_batch=2, max_length=512, background=False)
    long = [engine.submit("what", max_new_tokens=400) for _ in range(2)]
    waiting = engine.submit("who", max_new_tokens=3)
    for _ in range(5):
        engine.step()
    assert engine.load == {"decoding": 2, "prefilling": 0, "waiting": 1}
    long[0].cancel()
    engine.step()
    assert long[0].done and engine.load["waiting"] == 0
    assert waiting.result().completion_tokens == 3
    kept = long[0].result()
    assert kept.finish_reason == "cancelled" and kept.completion_tokens >= 5 and kept.text
    assert not long[1].done


def test_an_abandoned_answer_cancels_itself(engine):
    for delta in engine.submit("what", max_new_tokens=500):
        assert delta
        break
    held = engine.submit("who", max_new_tokens=500)
    next(iter(held))
    del held
    gc.collect()
    deadline = time.monotonic() + 20
    while engine.load["decoding"] and time.monotonic() < deadline:
        engine.submit("why", max_new_tokens=1).result()
    assert engine.load["decoding"] == 0


def test_a_long_answer_does_not_hold_a_short_one_back(engine):
    long = engine.submit("what", max_new_tokens=500)
    next(iter_long := iter(long))
    short = engine.submit("who", [("image", IMAGE)], max_new_tokens=3).result(timeout=60)
    assert short.completion_tokens == 3 and not long.done
    iter_long.close()


def test_many_callers_at_once(engine):
    requests = draw_requests(Random(5), 12)
    expected = [engine.submit_request(request).result().text for request in requests]
    texts = [None] * 12

    def ask(n):
        texts[n] = "".join(engine.submit_request(requests[n]))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert texts == expected


def test_an_answer_as_fast_as_its_reader_leaves_the_event_loop_to_others():
    channel, turns = Channel(), 0
    for _ in range(100):
        channel.send("x")
    channel.finish(Result("x" * 100, "stop"))

    async def others():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def read():
        other = asyncio.create_task(others())
        deltas = [delta async for delta in Answer(channel, None, lambda: None, "")]
        other.cancel()
        return deltas

    assert len(asyncio.run(read())) == 100 and turns >= 99


def test_asynchronous_face(engine):
    async def ask():
        answers = [engine.submit(f"what {n}", max_new_tokens=12) for n in range(5)]
        deltas = [delta async for delta in answers[0]]
        results = await asyncio.gather(*(answer.aresult() for answer in answers))
        assert "".join(deltas) == results[0].text
        left = engine.submit("what", max_new_tokens=500)
        async for _ in left:
            break
        failed = engine.submit("what", [("image", "/no/such.png")])
        with pytest.raises(MediaError):
            await failed.aresult()
        return left, results

    left, results = asyncio.run(ask())
    assert {result.completion_tokens for result in results} == {12}
    deadline = time.monotonic() + 20
    while not left.done and time.monotonic() < deadline:
        engine.submit("why", max_new_tokens=1).result()
    assert left.outcome().finish_reason == "cancelled"


def test_an_idle_engine_sleeps(engine):
    engine.submit("what", max_new_tokens=2).result()
    calls = []
    step = engine.step
    engine.step = lambda: (calls.append(1), step())[1]
    before = time.thread_time(), time.process_time()
    time.sleep(0.5)
    assert len(calls) <= 2
    assert time.process_time() - before[1] < 0.25


def test_published_call_with_several_media_and_seeds_of_their_own(small):
    from videollama2 import mm_infer, mm_infer_batch

    model, processor = small
    tokenizer = processor.tokenizer
    media, kinds = [processor["video"](VIDEO), processor["image"](IMAGE)], ["video", "image"]
    text = mm_infer(media, "what", model, tokenizer, modal=kinds, max_new_tokens=8)
    assert text == mm_infer_batch([(media, "what", kinds)], model, tokenizer, max_new_tokens=8)[0]
    torch.manual_seed(0)
    drawn = mm_infer_batch(
        [([], "what", "text")] * 4, model, tokenizer, do_sample=True, temperature=2.0, top_p=1.0, max_new_tokens=12
    )
    assert len(set(drawn)) > 1
    torch.manual_seed(0)
    again = mm_infer_batch(
        [([], "what", "text")] * 4, model, tokenizer, do_sample=True, temperature=2.0, top_p=1.0, max_new_tokens=12
    )
    assert again == drawn
