"""The engine: exact whatever runs beside, bounded, cancellable, with its caches."""

import asyncio
import gc
import json
import re
import signal
import threading
import time
from random import Random

import pytest
import torch

from tests.conftest import golden_dir
from videollama2 import model_init
from videollama2.errors import ConfigError, EngineError, MediaError, PromptError, QueueFullError, RequestTooLongError
from videollama2.inference.engine import Engine
from videollama2.inference.media_cache import MediaCache
from videollama2.inference.request import Answer, Channel, Request, Result

NAMES = sorted({row["model"] for row in json.loads((golden_dir() / "summary.json").read_text())})
MEDIA = golden_dir() / "media"
VIDEO, IMAGE = MEDIA / "portrait_25fps_57f.mp4", MEDIA / "wide.png"
WORDS = [
    "what", "who", "where", "moves", "falls", "first", "then", "because", "red", "small", "picture", "of", "the",
    "a", "man", "and", "turns", "why",
]  # fmt: skip


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


@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_do_not_depend_on_companions(name):
    """Every decoder and connector, with 1, 3 and 16 companions that join and leave at random steps."""
    model, processor = load(name)
    rng = Random(name)
    requests = draw_requests(rng, 17)
    expected = [alone(model, processor, request) for request in requests]
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


@pytest.mark.parametrize("name", NAMES)
def test_steps_of_fixed_shapes_give_the_same_tokens(name, monkeypatch):
    """What a GPU records, computed without recording: rows and positions rounded up, some rows empty."""
    from videollama2.inference import fixed_shapes

    monkeypatch.setattr(fixed_shapes, "POSITIONS", 48)
    model, processor = load(name)
    requests = draw_requests(Random(name), 12)
    expected = [alone(model, processor, request) for request in requests]
    for companions in (1, 7):
        engine = Engine(model, processor, max_batch=companions, max_length=500, background=False, prefill_chunk=40)
        engine.decoder.fixed = fixed_shapes.FixedShapes(engine.decoder, record=False)
        results = run_with_random_joins(engine, requests, Random(name))
        assert [result.token_ids for result in results] == expected
        steps = engine.decoder.fixed._steps
        assert {rows for rows, _ in steps} <= {1, 2, 4, 7} and {length % 48 for _, length in steps} <= {0, 500 % 48}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_recorded_steps_give_the_same_tokens():
    """CUDA graphs against the same steps computed one by one."""
    model, processor = model_init(golden_dir() / "models" / "qwen2-stc_connector-clip", device="cuda",
                                  dtype="float32")[:2]  # fmt: skip
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


@pytest.fixture(scope="module")
def small():
    return load("qwen2-stc_connector-clip")


@pytest.fixture
def engine(small):
    with Engine(*small, max_batch=4, max_length=600) as made:
        yield made


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
    for entry, token in zip(engine.submit("what", max_new_tokens=12, logprobs=2).result().logprobs, greedy.token_ids,
                            strict=True):  # fmt: skip
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
        {"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.5}, {"max_new_tokens": 0},
        {"repetition_penalty": 0}, {"stop": [""]}, {"seed": -1}, {"logprobs": -1}, {"top_k": 1.5},
        {"min_new_tokens": 5, "max_new_tokens": 4},
    ],
)  # fmt: skip
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


def test_a_bad_request_fails_alone(engine, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_text("text")
    answers = [
        engine.submit("what", [("video", bad)], max_new_tokens=5),
        engine.submit("what", [("video", VIDEO)], max_new_tokens=5),
        engine.submit("what", [("video", torch.zeros(2, 3, 5, 5))], max_new_tokens=5),
        engine.submit("who", [("image", IMAGE)], max_new_tokens=5),
    ]
    with pytest.raises(RequestTooLongError, match=r"prompt of \d+ tokens .* 600 positions"):
        engine.submit("what " * 700, max_new_tokens=5)
    with pytest.raises(MediaError, match="bad.mp4"):
        answers[0].result()
    with pytest.raises(PromptError, match="5x5 pixels"):
        answers[2].result()
    with pytest.raises(MediaError):
        list(answers[0])
    assert answers[1].result().completion_tokens == answers[3].result().completion_tokens == 5


def test_errors_of_many_stay_with_their_requests(engine, tmp_path, capsys):
    requests = [Request("what", [("video", tmp_path / "none.mp4")]), Request("what", max_new_tokens=3)]
    seen = []
    results = engine.generate(requests, progress=True, on_result=lambda index, result: seen.append(index))
    assert isinstance(results[0].error, MediaError) and results[0].finish_reason == "error"
    assert results[1].completion_tokens == 3 and sorted(seen) == [0, 1]
    assert "2/2" in capsys.readouterr().err


def test_bounds(small):
    engine = Engine(*small, max_batch=2, max_length=128, max_queue=3, background=False)
    waiting = [engine.submit("what", max_new_tokens=3) for _ in range(3)]
    with pytest.raises(QueueFullError, match="max_queue 3"):
        engine.submit("what")
    assert [answer.result().completion_tokens for answer in waiting] == [3, 3, 3]
    memory = engine.decoder.slots.nbytes
    config = small[0].config.text_config
    width = config.hidden_size // config.num_attention_heads
    assert memory == 2 * config.num_hidden_layers * 2 * config.num_key_value_heads * 128 * width * 4
    engine.generate([Request("what " * n, max_new_tokens=9) for n in range(1, 30)])
    assert engine.decoder.slots.nbytes == memory
    with pytest.raises(RequestTooLongError, match="128 positions"):
        engine.submit("what", max_new_tokens=127).result()
    filled = engine.submit("what", max_new_tokens=None).result()
    assert filled.prompt_tokens + filled.completion_tokens <= 128
    with pytest.raises(ConfigError, match=r"\d+ MiB of key-values, but only \d+ MiB are free"):
        Engine(*small, max_length=10**9)
    with pytest.raises(ConfigError, match="max_batch"):
        Engine(*small, max_batch=0)


def test_twenty_questions_encode_a_video_once(small):
    model, processor = small
    calls = []
    hook = model.model.vision_tower.embeddings.register_forward_hook(lambda _, args, out: calls.append(out.shape[0]))
    engine = Engine(model, processor, max_batch=4, max_length=512, background=False)
    engine.generate([Request(f"what {n}", [("video", VIDEO)], max_new_tokens=2) for n in range(20)])
    assert calls == [4]
    parts = [{"type": "video", "path": VIDEO, "start": 1.0}, {"type": "text", "text": "what"}]
    engine.submit([{"role": "user", "content": parts}], max_new_tokens=2).result()
    assert calls == [4, 4]
    hook.remove()


def test_media_of_one_step_are_encoded_in_one_batch(small):
    model, processor = small
    calls = []
    hook = model.model.vision_tower.embeddings.register_forward_hook(lambda _, args, out: calls.append(out.shape[0]))
    engine = Engine(model, processor, max_batch=4, max_length=512, background=False)
    pixels = [torch.randn(4, 3, *processor["video"](VIDEO).shape[2:]) for _ in range(3)]
    engine.generate([Request("what", [("video", item)], max_new_tokens=2) for item in pixels])
    assert calls == [12]
    hook.remove()


def test_a_changed_file_is_read_again(small, tmp_path):
    from PIL import Image

    engine = Engine(*small, max_batch=1, max_length=512, background=False)
    path = tmp_path / "picture.png"
    Image.new("RGB", (40, 40), "red").save(path)
    ask = [Request("what", [("image", path)], max_new_tokens=4, logprobs=0)]
    red = engine.generate(ask)[0].logprobs
    assert engine.generate(ask)[0].logprobs == red
    Image.new("RGB", (41, 40), "blue").save(path)
    assert engine.generate(ask)[0].logprobs != red


def test_prefixes_are_computed_once_and_change_nothing(small):
    model, processor = small
    question = [("video", VIDEO)]
    plain = Engine(model, processor, max_batch=1, max_length=600, background=False, prefix_cache_bytes=0)
    cached = Engine(model, processor, max_batch=3, max_length=600, background=False)
    turns = [{"role": "user", "content": [{"type": "video", "path": VIDEO}, {"type": "text", "text": "what moves"}]}]
    first = cached.submit(turns, max_new_tokens=20).result()
    assert first.cached_tokens == 0
    assert first.token_ids == plain.submit(turns, max_new_tokens=20).result().token_ids
    other = cached.submit("who", question, max_new_tokens=20).result()
    assert 0 < other.prompt_tokens - other.cached_tokens < 64
    assert other.token_ids == plain.submit("who", question, max_new_tokens=20).result().token_ids
    turns += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "and then"}]
    second = cached.submit(turns, max_new_tokens=20).result()
    assert second.cached_tokens >= first.prompt_tokens - 31
    assert second.token_ids == plain.submit(turns, max_new_tokens=20).result().token_ids
    assert plain.prefixes.used_bytes == 0


def test_the_prefix_of_another_video_is_not_taken(small):
    model, processor = small
    shape = processor["video"](VIDEO).shape
    videos = [torch.randn(shape), torch.randn(shape)]
    engine = Engine(model, processor, max_batch=1, max_length=600, background=False)
    results = [engine.submit("what", [("video", v)], max_new_tokens=8, logprobs=0).result() for v in videos]
    assert results[1].cached_tokens < results[1].prompt_tokens // 2
    assert results[0].logprobs != results[1].logprobs


def test_prefix_cache_is_bounded(small):
    engine = Engine(*small, max_batch=1, max_length=600, background=False, prefix_cache_bytes=100_000)
    for n in range(6):
        engine.submit(" ".join(Random(n).choices(WORDS, k=150)), max_new_tokens=2).result()
        assert engine.prefixes.used_bytes <= 100_000
    assert len(engine.prefixes) > 0
    assert engine.prefixes.used_bytes == sum(t.nbytes for block in engine.prefixes._blocks.values() for t in block)


def test_shared_media_cache_and_its_bound(small):
    cache = MediaCache(0)
    engine = Engine(*small, max_batch=1, max_length=512, background=False, media_cache_bytes=cache)
    assert engine.submit("what", [("image", IMAGE)], max_new_tokens=2).result().completion_tokens == 2
    assert len(cache) == 0


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


def test_closing_cancels_and_refuses(small):
    engine = Engine(*small, max_batch=2, max_length=600)
    running = engine.submit("what", max_new_tokens=500)
    next(iter(running))
    waiting = [engine.submit("what", max_new_tokens=500) for _ in range(3)]
    engine.close()
    assert {answer.outcome().finish_reason for answer in [running, *waiting]} == {"cancelled"}
    with pytest.raises(EngineError, match="closed"):
        engine.submit("what")


def test_a_fault_of_the_model_fails_its_requests_and_no_others(small):
    model, processor = small
    engine = Engine(model, processor, max_batch=2, max_length=512, background=False)
    answers = [engine.submit("what", max_new_tokens=50) for _ in range(2)]
    for _ in range(3):
        engine.step()

    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    hook = model.lm_head.register_forward_pre_hook(fail)
    engine.step()
    hook.remove()
    for answer in answers:
        with pytest.raises(EngineError, match="out of memory"):
            answer.result()
    assert engine.submit("what", max_new_tokens=4).result().completion_tokens == 4


def test_an_engine_nobody_holds_ends_its_thread(small):
    engine = Engine(*small, max_batch=1, max_length=512)
    engine.submit("what", max_new_tokens=2).result()
    thread = engine._thread
    del engine
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


class Counting:
    """A processor that notes what it reads."""

    def __init__(self, processor, before=None):
        self.tokenizer, self.model_config, self.prompt = processor.tokenizer, processor.model_config, processor.prompt
        self.processor, self.sources, self.before = processor, [], before

    def __getitem__(self, kind):
        def load(source, **options):
            self.sources.append(source)
            if self.before is not None:
                self.before()
            return self.processor[kind](source, **options)

        return load


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("kind", ["path", "bytes"])
def test_a_clip_asked_about_by_many_at_once_is_read_once(small, background, kind):
    model, processor = small
    counting = Counting(processor)
    source = VIDEO if kind == "path" else VIDEO.read_bytes()
    with Engine(model, counting, max_batch=4, max_length=500, background=background) as engine:
        requests = [Request(f"what {n}", [("video", source)], max_new_tokens=2) for n in range(10)]
        assert [result.completion_tokens for result in engine.generate(requests)] == [2] * 10
        assert len(counting.sources) == 1
        assert engine._reading._readings == {}


def test_cancelled_before_its_turn_is_not_read(small, tmp_path):
    """What waits behind a clip that takes long to read, and is given up, is never opened."""
    model, processor = small
    begun, go_on = threading.Event(), threading.Event()
    counting = Counting(processor, lambda: (begun.set(), go_on.wait(30)))
    other = tmp_path / "other.png"
    other.write_bytes(IMAGE.read_bytes())
    with Engine(model, counting, max_batch=2, max_length=500, media_threads=1) as engine:
        first = engine.submit("what", [("image", IMAGE)], max_new_tokens=2)
        assert begun.wait(30)
        second = engine.submit("what", [("image", other)], max_new_tokens=2)
        second.cancel()
        with pytest.raises(TimeoutError):
            first.result(timeout=0.01)
        while not second.done:
            time.sleep(0.001)
        go_on.set()
        assert first.result(timeout=30).completion_tokens == 2
        assert counting.sources == [IMAGE] and second.outcome().finish_reason == "cancelled"


def test_what_cannot_fit_is_refused_before_it_is_read(small):
    model, processor = small
    counting = Counting(processor)
    part = {"type": "video", "path": VIDEO, "num_frames": 200}
    with Engine(model, counting, max_batch=1, max_length=500) as engine:
        with pytest.raises(RequestTooLongError, match=r"\d+ of them visual.*500 positions"):
            engine.submit([{"role": "user", "content": [part, {"type": "text", "text": "what"}]}], max_new_tokens=4)
        with pytest.raises(PromptError, match="no option fps"):
            engine.submit("what", [{"type": "video", "path": VIDEO, "fps": 3}])
        # One frame per second: how many that are, only the file tells. It is not encoded.
        encoded = []
        hook = model.model.vision_tower.embeddings.register_forward_hook(lambda *_: encoded.append(1))
        engine.max_length = 40
        late = engine.submit("what", [{"type": "video", "path": VIDEO, "num_frames": None}], max_new_tokens=4)
        with pytest.raises(RequestTooLongError):
            late.result()
        hook.remove()
        assert len(counting.sources) == 1 and not encoded


def test_frames_of_many_clips_are_encoded_in_passes(small, monkeypatch):
    from videollama2.inference import media_encoder

    monkeypatch.setattr(media_encoder, "FRAMES_PER_PASS", 9)
    model, processor = small
    calls = []
    hook = model.model.vision_tower.embeddings.register_forward_hook(lambda _, args, out: calls.append(out.shape[0]))
    engine = Engine(model, processor, max_batch=5, max_length=512, background=False)
    pixels = [torch.randn(4, 3, *processor["video"](VIDEO).shape[2:]) for _ in range(5)]
    engine.generate([Request("what", [("video", item)], max_new_tokens=2) for item in pixels])
    hook.remove()
    assert calls == [8, 8, 4]


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
    engine.prefill_chunk = 40
    engine.generate([Request(" ".join(Random(9).choices(WORDS, k=100)), max_new_tokens=2), unlike[0]])
    assert passes[:3] == [1, 1, 1]  # a long one over several passes, alone


def test_changed_weights_are_noticed(small):
    """Visual tokens and key-values of other weights would give answers of a model that is no more."""
    model, processor = small
    ask = [Request("what " * 40, [("image", IMAGE)], max_new_tokens=4, logprobs=0)]
    engine = Engine(model, processor, max_batch=1, max_length=512, background=False)
    before = engine.generate(ask)[0]
    assert engine.generate(ask)[0].cached_tokens > 32
    weights = {"connector": model.model.mm_projector, "decoder": model.model.language_model.layers[0]}
    for name, module in weights.items():
        weight = next(module.parameters())
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.mul_(1.5)
        changed = engine.generate(ask)[0]
        fresh = Engine(model, processor, max_batch=1, max_length=512, background=False).generate(ask)[0]
        assert changed.logprobs == fresh.logprobs != before.logprobs, name
        weight.data.copy_(kept)  # not counted by torch
        engine.forget()
        assert engine.generate(ask)[0].logprobs == before.logprobs


def test_a_closed_engine_leaves_the_model_as_it_was(small):
    model, processor = small
    decoder = model.model.language_model
    decoder.set_attn_implementation("flex_attention")
    model.train()
    model.model.vision_tower.eval()
    try:
        with Engine(model, processor, max_batch=1, max_length=256) as engine:
            assert not model.training and model.config.text_config._attn_implementation == "sdpa"
            assert engine.submit("what", max_new_tokens=2).result().completion_tokens == 2
        assert model.training and not model.model.vision_tower.training
        assert model.config.text_config._attn_implementation == "flex_attention"
    finally:
        decoder.set_attn_implementation("sdpa")
        model.eval()


def test_a_closed_engine_gives_its_memory_back_at_once(small):
    import weakref

    with Engine(*small, max_batch=1, max_length=256, background=False) as engine:
        assert engine.submit("what", max_new_tokens=2).result().completion_tokens == 2
        slots = weakref.ref(engine.decoder.slots)
    gc.disable()
    try:
        del engine
        assert slots() is None
    finally:
        gc.enable()


def test_a_place_taken_by_another_caller_is_waited_for(small, monkeypatch):
    model, processor = small
    with Engine(model, processor, max_batch=1, max_length=256, max_queue=1) as engine:
        monkeypatch.setattr(engine, "_room", lambda: True)  # always too optimistic: somebody came between
        results = engine.generate([Request(f"what {n}", max_new_tokens=2) for n in range(8)])
    assert [result.completion_tokens for result in results] == [2] * 8


def test_interrupted_between_steps_only(small):
    """Ctrl-C in the middle of a step takes effect after it, and no request is lost."""
    engine = Engine(*small, max_batch=2, max_length=256, background=False)
    answer = engine.submit("what", max_new_tokens=6)
    decode, fired = engine.decoder.decode, fail_once(KeyboardInterrupt())

    def pressed(tasks):
        try:
            fired()
        except KeyboardInterrupt:
            signal.raise_signal(signal.SIGINT)
        return decode(tasks)

    engine.decoder.decode = pressed
    # A program that was started in the background ignores the signal; this one shall not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            answer.result()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not answer.done and engine.load["decoding"] == 1
    assert answer.result().completion_tokens == 6


def test_in_bfloat16(small):
    """Rounding may turn an answer, not break it: most are those of the request alone."""
    model, processor = model_init(golden_dir() / "models" / "qwen2-stc_connector-clip", dtype="bfloat16")[:2]
    requests = draw_requests(Random(1), 12)
    engines = [Engine(model, processor, max_batch=n, max_length=800, background=False) for n in (1, 12)]
    alone, together = ([result.token_ids for result in engine.generate(requests)] for engine in engines)
    assert engines[0].decoder.slots._storage[0][0].dtype == torch.bfloat16
    assert all(alone) and sum(a == b for a, b in zip(alone, together, strict=True)) >= 6


def test_sizes_follow_the_free_memory(small, monkeypatch):
    from videollama2.inference import sizes

    model, _ = small
    position = sizes.slot_bytes(model, 1)
    longest = model.config.text_config.max_position_embeddings
    for free, batch, length in ((1e12, 16, longest), (position * longest * 8, 4, longest)):
        monkeypatch.setattr(sizes, "free_memory", lambda device, free=free: free)
        assert sizes.choose_sizes(model, None, None) == (batch, length)
    monkeypatch.setattr(model.config.text_config, "max_position_embeddings", 100_000)
    monkeypatch.setattr(sizes, "free_memory", lambda device: position * 2000)
    assert sizes.choose_sizes(model, None, None) == (1, 1000)  # shorter before it fails
    assert sizes.choose_sizes(model, 1, 1900) == (1, 1900)
    with pytest.raises(ConfigError, match="MiB are free"):
        sizes.choose_sizes(model, 2, 1900)
    monkeypatch.setattr(sizes, "free_memory", lambda device: position * 100)
    with pytest.raises(ConfigError, match="MiB are free"):
        sizes.choose_sizes(model, None, None)


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


def test_media_are_read_for_those_that_come_next_only(small, tmp_path):
    """A long queue must not hold all its clips decoded."""
    model, processor = small
    counting = Counting(processor)
    read = counting.sources
    pictures = [tmp_path / f"{n}.png" for n in range(12)]
    for path in pictures:
        path.write_bytes(IMAGE.read_bytes())
    with Engine(model, counting, max_batch=1, max_length=600, media_cache_bytes=0) as engine:
        first = engine.submit("what", max_new_tokens=500)
        next(iter_first := iter(first))
        waiting = [engine.submit("what", [("image", path)], max_new_tokens=2) for path in pictures]
        time.sleep(0.3)
        assert 0 < len(read) <= 3
        iter_first.close()
        assert [answer.result(timeout=60).completion_tokens for answer in waiting] == [2] * 12
        assert len(read) == 12


def test_a_training_model_is_left_as_it_was(small):
    from videollama2 import mm_infer

    model, processor = small
    model.train()
    try:
        mm_infer(None, "what", model, processor.tokenizer, modal="text", max_new_tokens=2)
        assert model.training
    finally:
        model.eval()


def fail_once(error):
    """A function that raises at its first call and does nothing later."""
    errors = [error]

    def fail(*args, **kwargs):
        if errors:
            raise errors.pop()

    return fail


def test_a_failed_decode_step_leaves_the_prompt_beside_it_whole(small):
    model, processor = small
    engine = Engine(model, processor, max_batch=3, max_length=600, background=False, prefill_chunk=40)
    expected = alone(model, processor, Request("what " * 100, max_new_tokens=8))
    running = [engine.submit("what", max_new_tokens=90) for _ in range(2)]
    while engine.load["decoding"] < 2:
        engine.step()
    long = engine.submit("what " * 100, max_new_tokens=8)
    engine.step()
    assert engine.load == {"decoding": 2, "prefilling": 1, "waiting": 0}
    decode, fail = engine.decoder.decode, fail_once(RuntimeError("out of memory"))
    engine.decoder.decode = lambda tasks: (fail(), decode(tasks))[1]
    assert long.result().token_ids == expected
    for answer in running:
        with pytest.raises(EngineError, match="out of memory"):
            answer.result()


@pytest.mark.parametrize("where", ["embed", "store", "choose", "decode"])
def test_a_fault_ends_one_request_and_no_other(small, where, monkeypatch):
    """Whatever is raised on a request's way, its reader hears of it and the engine goes on."""
    from videollama2.inference.task import Task

    model, processor = small
    engine = Engine(model, processor, max_batch=2, max_length=512)
    fail = fail_once(KeyError("a fault"))
    if where == "embed":
        embed = Task.embed
        monkeypatch.setattr(Task, "embed", lambda self, model: (fail(), embed(self, model))[1])
    elif where == "store":
        store, fail = engine.prefixes.store, fail_once(RuntimeError("out of memory"))
        engine.prefixes.store = lambda *arguments: (fail(), store(*arguments))[1]
    elif where == "decode":
        accept = Task.accept
        monkeypatch.setattr(Task, "accept", lambda self, *rest: (fail(), accept(self, *rest))[1])
    else:
        hook = model.lm_head.register_forward_hook(lambda module, args, out: out * float("nan"))
    answer = engine.submit("what", max_new_tokens=3, temperature=0.7, seed=1)
    if where == "store":
        assert answer.result(timeout=60).completion_tokens == 3
    else:
        with pytest.raises(EngineError, match="not numbers" if where == "choose" else "a fault"):
            answer.result(timeout=60)
    if where == "choose":
        hook.remove()
    assert engine.submit("what", max_new_tokens=3).result(timeout=60).completion_tokens == 3
    engine.close()


def test_a_cache_shared_by_two_models_keeps_them_apart():
    cache = MediaCache()
    answers = {}
    for name in NAMES[:2] * 2:
        model, processor = load(name)
        size = model.config.vision_config.image_size
        pixels = torch.linspace(-1, 1, 3 * size * size).reshape(1, 3, size, size)
        for shared in (cache, MediaCache()):
            engine = Engine(model, processor, max_batch=1, max_length=512, background=False, media_cache_bytes=shared)
            result = engine.submit("what", [("image", pixels)], max_new_tokens=3, logprobs=0).result()
            assert answers.setdefault(name, result.logprobs) == result.logprobs
    assert len(cache) == 4


def test_published_call_with_several_media_and_seeds_of_their_own(small):
    from videollama2 import mm_infer, mm_infer_batch

    model, processor = small
    tokenizer = processor.tokenizer
    media, kinds = [processor["video"](VIDEO), processor["image"](IMAGE)], ["video", "image"]
    text = mm_infer(media, "what", model, tokenizer, modal=kinds, max_new_tokens=8)
    assert text == mm_infer_batch([(media, "what", kinds)], model, tokenizer, max_new_tokens=8)[0]
    torch.manual_seed(0)
    drawn = mm_infer_batch([([], "what", "text")] * 4, model, tokenizer, do_sample=True, temperature=2.0, top_p=1.0,
                           max_new_tokens=12)  # fmt: skip
    assert len(set(drawn)) > 1
    torch.manual_seed(0)
    again = mm_infer_batch([([], "what", "text")] * 4, model, tokenizer, do_sample=True, temperature=2.0, top_p=1.0,
                           max_new_tokens=12)  # fmt: skip
    assert again == drawn
