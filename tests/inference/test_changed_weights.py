"""Weights that change under a live engine, as in a training: what becomes of its running and its waiting requests."""

from contextlib import contextmanager

import pytest
import torch

from videollama2.errors import EngineError, MediaError
from videollama2.inference.engine import Engine
from videollama2.inference.request import Request
from videollama2.inference.weights_watch import WeightsWatch

from .helpers import IMAGE, VIDEO, alone

DECODER, CONNECTOR = "language_model", "mm_projector"


@contextmanager
def changed(model, part):
    """Change a weight of a part of the model until the end of the block."""
    weight = max(getattr(model.model, part).parameters(), key=torch.numel)
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(-1.5)
    try:
        yield
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def open_engine(small, **options):
    return Engine(*small, **{"max_batch": 4, "max_length": 700, "background": False} | options)


@pytest.mark.parametrize("part", [DECODER, CONNECTOR])
@pytest.mark.parametrize("stage", ["decoding", "prefilling"])
def test_running_requests_end_with_an_error_and_nothing_of_them_is_kept(small, stage, part):
    model, processor = small
    request = Request("what who where " * 30, [("video", VIDEO)], max_new_tokens=40, min_new_tokens=40)
    later = Request("what who where " * 30, [("video", VIDEO)], max_new_tokens=4)
    # The prompt takes several rounds.
    with open_engine(small, prefill_chunk=64) as engine:
        before = alone(model, processor, later)
        answer = engine.submit_request(request)
        while not engine.load[stage]:
            engine.step()
        with changed(model, part):
            engine.step()
            result = answer.outcome()
            assert result is not None and isinstance(result.error, EngineError)
            assert "weights were changed" in str(result.error) and result.finish_reason == "error"
            assert engine.load == {"decoding": 0, "prefilling": 0, "waiting": 0}
            found = engine.submit_request(later).result()
            assert found.cached_tokens == 0 and found.token_ids == alone(model, processor, later) != before


def test_requests_that_were_encoded_and_wait_are_encoded_again(small):
    """Three questions about one clip: the second and third wait for the first, and have their visual tokens."""
    model, processor = small
    asked = [
        Request(f"{'what who where ' * 20}{word}", [("video", VIDEO)], max_new_tokens=4) for word in ("red", "why", "a")
    ]
    encoded = []
    hook = model.model.mm_projector.register_forward_hook(lambda *_: encoded.append(1))
    with open_engine(small, prefill_chunk=64) as engine:
        answers = [engine.submit_request(request) for request in asked]
        engine.step()
        waiting = list(engine._waiting.tasks)
        assert len(waiting) == 2 and all(medium.tokens is not None for task in waiting for medium in task.media)
        with changed(model, CONNECTOR):
            while not all(answer.done for answer in answers):
                engine.step()
            hook.remove()
            results = [answer.outcome() for answer in answers]
            assert results[0].error is not None
            wanted = [alone(model, processor, request) for request in asked[1:]]
            assert [result.token_ids for result in results[1:]] == wanted
        # The clip was encoded once with either weights, and what was read is released.
        assert len(encoded) == 2 and not engine._waiting.ahead._readings
    assert wanted != [alone(model, processor, request) for request in asked[1:]]


@pytest.mark.parametrize("background", [True, False])
def test_tokens_that_were_cached_when_a_request_was_read_are_not_used(small, background):
    model, processor = small
    media = [("video", VIDEO), ("image", IMAGE)]
    with open_engine(small, max_batch=1, background=background) as engine:
        engine.submit("what", media, max_new_tokens=1).result()
        # Requests that wait in the queue while their media are read, with the same clip in both.
        asked = [Request(f"{word} moves", media, max_new_tokens=3) for word in ("what", "who")]
        with engine._stepping:
            answers = [engine.submit_request(request) for request in asked]
            read = [reading.result() for task in engine._waiting.tasks for reading in task.readings]
            assert all(medium.tokens is not None for medium in read)
            kept = model.model.mm_projector.state_dict()
            kept = {name: value.clone() for name, value in kept.items()}
            model.model.mm_projector.load_state_dict({name: value.flip(0) for name, value in kept.items()})
        try:
            results = [answer.result() for answer in answers]
            assert [result.token_ids for result in results] == [alone(model, processor, request) for request in asked]
        finally:
            model.model.mm_projector.load_state_dict(kept)
        assert results[0].token_ids != engine.submit_request(asked[0]).result().token_ids


def test_a_medium_that_is_gone_by_then_fails_its_request_alone(small, tmp_path):
    model, processor = small
    path = tmp_path / "picture.png"
    path.write_bytes(IMAGE.read_bytes())
    with open_engine(small) as engine:
        engine.submit("what", [("image", path)], max_new_tokens=1).result()
        lost = engine.submit("what", [("image", path)], max_new_tokens=2)
        kept = Request("what", [("image", IMAGE)], max_new_tokens=2)
        answer = engine.submit_request(kept)
        for task in engine._waiting.tasks:
            task.collect_media()
        path.unlink()
        engine.forget()
        with pytest.raises(MediaError, match=path.name):
            lost.result()
        assert answer.result().token_ids == alone(model, processor, kept)


def test_what_a_watch_notices(small):
    model = small[0]
    watch = WeightsWatch([model])
    assert not watch.written() and not watch.changed()
    with changed(model, DECODER):
        assert watch.written() and watch.written() and watch.changed() and not watch.written()
    assert watch.written() and watch.changed() and not watch.changed()


@pytest.mark.slow
def test_merged_adapters_are_noticed():
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(4, 4)})
    inject_adapter_in_model(LoraConfig(target_modules=["q_proj"], init_lora_weights=False), model)
    watch = WeightsWatch([model])
    layer = model["q_proj"]
    assert isinstance(layer, BaseTunerLayer)
    for change in (layer.merge, layer.unmerge):
        change()
        assert watch.changed() and not watch.changed()
