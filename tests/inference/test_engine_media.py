"""What the engine reads, encodes and keeps: each clip once, beginnings of prompts, all of it bounded."""

import threading
import time
from random import Random

import pytest
import torch

from videollama2.inference.engine import Engine
from videollama2.inference.media.cache import MediaCache
from videollama2.inference.prefix_cache import BLOCK, BlockKeys
from videollama2.inference.request import Request

from .helpers import IMAGE, NAMES, VIDEO, WORDS, Counting, load


@pytest.fixture
def passes(small):
    """The number of frames of each pass of the vision encoder."""
    frames = []
    hook = small[0].model.vision_tower.embeddings.register_forward_hook(lambda _, args, out: frames.append(len(out)))
    yield frames
    hook.remove()


def test_twenty_questions_encode_a_video_once(small, passes):
    model, processor = small
    engine = Engine(model, processor, max_batch=4, max_length=512, background=False)
    engine.generate([Request(f"what {n}", [("video", VIDEO)], max_new_tokens=2) for n in range(20)])
    assert passes == [4]
    parts = [{"type": "video", "path": VIDEO, "start": 1.0}, {"type": "text", "text": "what"}]
    engine.submit([{"role": "user", "content": parts}], max_new_tokens=2).result()
    assert passes == [4, 4]


def test_media_of_one_step_are_encoded_in_one_batch(small, passes):
    model, processor = small
    engine = Engine(model, processor, max_batch=4, max_length=512, background=False)
    pixels = [torch.randn(4, 3, *processor["video"](VIDEO).shape[2:]) for _ in range(3)]
    engine.generate([Request("what", [("video", item)], max_new_tokens=2) for item in pixels])
    assert passes == [12]


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


def test_keys_of_blocks_cover_what_is_before_them_and_are_computed_once():
    clip, other = [[(digest, place) for place in range(2 * BLOCK)] for digest in ("aa", "ab")]
    question = list(range(BLOCK))
    whole = BlockKeys().of([*clip, *question], 3 * BLOCK)
    assert len(set(whole)) == 3
    assert set(whole).isdisjoint(BlockKeys().of([*other, *question], 3 * BLOCK))
    # A sequence that grows, as with each token of an answer, gets the keys of the whole.
    growing, keys = [], BlockKeys()
    for position, item in enumerate([*clip, *question], 1):
        growing.append(item)
        assert keys.of(growing, position) == whole[: position // BLOCK]
    assert keys.of(growing, BLOCK + 1) == whole[:1] and keys.of([], 0) == []


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
        assert engine._waiting.ahead._readings == {}


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


def test_frames_of_many_clips_are_encoded_in_passes(small, passes, monkeypatch):
    from videollama2.inference.media import encoder as media_encoder

    monkeypatch.setattr(media_encoder, "FRAMES_PER_PASS", 9)
    model, processor = small
    engine = Engine(model, processor, max_batch=5, max_length=512, background=False)
    pixels = [torch.randn(4, 3, *processor["video"](VIDEO).shape[2:]) for _ in range(5)]
    engine.generate([Request("what", [("video", item)], max_new_tokens=2) for item in pixels])
    assert passes == [8, 8, 4]


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


def test_media_are_read_for_those_that_come_next_only(small, tmp_path, monkeypatch):
    """A long queue must not hold all its clips decoded."""
    model, processor = small
    asked = threading.Event()
    counting = Counting(processor)
    read = counting.sources
    pictures = [tmp_path / f"{n}.png" for n in range(12)]
    for path in pictures:
        path.write_bytes(IMAGE.read_bytes())
    with Engine(model, counting, max_batch=1, max_length=600, media_cache_bytes=0) as engine:
        decode = engine.decoder.decode
        # The first request runs for as long as the others are looked at, however fast the machine is.
        monkeypatch.setattr(engine.decoder, "decode", lambda tasks: asked.wait(60) and decode(tasks))
        first = engine.submit("what", max_new_tokens=500)
        next(iter_first := iter(first))
        waiting = [engine.submit("what", [("image", path)], max_new_tokens=2) for path in pictures]
        time.sleep(0.3)
        assert 0 < len(read) <= 3
        iter_first.close()
        asked.set()
        assert [answer.result(timeout=60).completion_tokens for answer in waiting] == [2] * 12
        assert len(read) == 12


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
