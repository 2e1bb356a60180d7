"""What the engine refuses, what a fault costs, and what is left of it when it is closed."""

import gc
import math
import signal

import pytest
import torch

from videollama2.errors import ConfigError, EngineError, MediaError, PromptError, QueueFullError, RequestTooLongError
from videollama2.inference.engine import Engine
from videollama2.inference.kernels import ATTENTION
from videollama2.inference.request import Request, TokenPrompt

from .helpers import IMAGE, VIDEO, Counting, alone


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


def test_waiting_requests_run_by_priority_then_in_order(small):
    engine = Engine(*small, max_batch=1, max_length=128, background=False)
    order = []
    priorities = [0, 5, -1, 0, 5, -1, -2]
    requests = [Request("what", max_new_tokens=3, priority=priority) for priority in priorities]
    answers = [engine.submit_request(request) for request in requests]
    while len(order) < len(answers):
        engine.step()
        order += [number for number, answer in enumerate(answers) if answer.done and number not in order]
    assert order == [6, 2, 5, 0, 3, 1, 4]
    engine.close()


def test_a_prompt_is_cut_from_its_beginning_but_no_medium(small):
    model, processor = small
    with Engine(model, processor, max_batch=1, max_length=128, background=False) as engine:
        question, few = "what " * 60 + "moves", {"max_new_tokens": 4}
        ids = engine.processor.prompt(Request(question).messages).token_ids(processor.tokenizer)
        for kept in (1, 7, len(ids), len(ids) + 5):
            cut = engine.submit(question, truncate_prompt_tokens=kept, **few).result()
            same = engine.submit(TokenPrompt(tuple(ids[-kept:])), **few).result()
            assert cut.token_ids == same.token_ids and cut.prompt_tokens == same.prompt_tokens == min(kept, len(ids))
        long = "what " * 400
        with pytest.raises(RequestTooLongError):
            engine.submit(long, **few)
        assert engine.submit(long, truncate_prompt_tokens=-1, **few).result().prompt_tokens == 124
        with pytest.raises(ConfigError, match="truncate_prompt_tokens"):
            Request("what", truncate_prompt_tokens=0)


def test_a_medium_is_never_cut(small):
    model, processor = small
    with Engine(model, processor, max_batch=1, max_length=600, background=False) as engine:
        messages = [
            {"role": "system", "content": "word " * 40},
            {"role": "user", "content": [{"type": "image", "path": str(IMAGE)}, {"type": "text", "text": "what"}]},
        ]
        whole = engine.submit(messages, max_new_tokens=2).result().prompt_tokens
        cut = engine.submit(messages, max_new_tokens=2, truncate_prompt_tokens=whole - 20).result()
        assert cut.prompt_tokens == whole - 20
        with pytest.raises(PromptError, match="would cut a medium"):
            engine.submit(messages, max_new_tokens=2, truncate_prompt_tokens=5).result()


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


def test_what_cannot_fit_is_refused_before_it_is_read(small):
    model, processor = small
    counting = Counting(processor)
    part = {"type": "video", "path": VIDEO, "num_frames": 200}
    with Engine(model, counting, max_batch=1, max_length=500) as engine:
        with pytest.raises(RequestTooLongError, match=r"\d+ of them of media.*500 positions"):
            engine.submit([{"role": "user", "content": [part, {"type": "text", "text": "what"}]}], max_new_tokens=4)
        with pytest.raises(PromptError, match="no option fps"):
            engine.submit("what", [{"type": "video", "path": VIDEO, "fps": 3}])
        # One frame per second: how many that are, only the file tells. It is not encoded.
        encoded = []
        hook = model.model.vision_tower.embeddings.register_forward_hook(lambda *_: encoded.append(1))
        engine._waiting.max_length = 40
        late = engine.submit("what", [{"type": "video", "path": VIDEO, "num_frames": None}], max_new_tokens=4)
        with pytest.raises(RequestTooLongError):
            late.result()
        hook.remove()
        assert len(counting.sources) == 1 and not encoded


def test_a_closed_engine_leaves_the_model_as_it_was(small):
    model, processor = small
    decoder = model.model.language_model
    decoder.set_attn_implementation("flex_attention")
    model.train()
    model.model.vision_tower.eval()
    try:
        with Engine(model, processor, max_batch=1, max_length=256) as engine:
            assert not model.training and model.config.text_config._attn_implementation == ATTENTION
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


@pytest.mark.parametrize("version", [1, 2])
def test_the_free_memory_of_a_container_is_what_its_limit_leaves(version, tmp_path, monkeypatch):
    from videollama2.inference import sizes

    limit, used, statistics, unused_files = {
        1: (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
        2: ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    }[version]
    (tmp_path / "memory").mkdir()
    assert sizes._free_in_container(tmp_path) == math.inf
    (tmp_path / used).write_text("700\n")
    (tmp_path / statistics).write_text(f"anon 500\n{unused_files} 150\n")
    (tmp_path / limit).write_text("max\n")
    assert sizes._free_in_container(tmp_path) == math.inf
    (tmp_path / limit).write_text("1000\n")
    assert sizes._free_in_container(tmp_path) == 450
    (tmp_path / limit).write_text("400\n")
    assert sizes._free_in_container(tmp_path) == 0
    monkeypatch.setattr(sizes, "_free_in_container", lambda: 450)
    assert sizes.free_memory(torch.device("cpu")) == 450


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
