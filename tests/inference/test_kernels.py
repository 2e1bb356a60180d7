"""The engine's CPU kernels give what the default ones give."""

import gc
from copy import deepcopy

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tests.helpers.kernels import ONEDNN, lower_limits, needs_kernels, operations, pretend_processor
from videollama2.errors import ConfigError
from videollama2.inference import kernels
from videollama2.inference.engine import Engine
from videollama2.inference.kernels import grouped_attention
from videollama2.inference.request import Request
from videollama2.model import linear
from videollama2.model.linear import KernelLinear

from .helpers import WORDS, alone


@needs_kernels
def test_only_layers_that_can_gain_are_changed(fast_mkl, small, monkeypatch):
    monkeypatch.setattr(linear, "_SMALLEST", 1000)
    model, processor = small
    with Engine(model, processor, max_batch=2, max_length=64, background=False):
        types = {type(module) for module in model.modules()}
        # The layers of this model stay in the caches, where only the other processors gain, with many rows.
        assert (KernelLinear in types) is not fast_mkl
    assert not kernels_in(model)


def kernels_in(model):
    return [module for module in model.modules() if type(module) is KernelLinear]


@needs_kernels
@pytest.mark.parametrize("fault", ["graphs", "late"])
def test_an_engine_that_does_not_open_leaves_the_model_as_it_was(small, monkeypatch, fault):
    pretend_processor(monkeypatch, has_fast_mkl=False)
    lower_limits(monkeypatch)
    model, processor = small
    model.train()
    if fault == "late":

        def fails(*arguments):
            raise ConfigError("cuda_graphs need a language model on one GPU, or so")

        monkeypatch.setattr("videollama2.inference.engine.end_ids", fails)
    with pytest.raises(ConfigError, match="cuda_graphs need a language model on one GPU"):
        Engine(model, processor, cuda_graphs=fault == "graphs", background=False, packed_weights=True)
    assert model.training and not kernels_in(model)
    assert model.config.text_config._attn_implementation == "sdpa"
    model.eval()


@needs_kernels
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_layers_are_restored_by_the_last_of_several_engines(small, monkeypatch, order):
    pretend_processor(monkeypatch, has_fast_mkl=False)
    lower_limits(monkeypatch)
    model, processor = deepcopy(small[0]), small[1]
    options = {"max_batch": 2, "max_length": 64, "background": False}
    engines = [Engine(model, processor, packed_weights=packed, **options) for packed in (True, False)]
    copied = deepcopy(model)
    count = len(kernels_in(model))
    engines[order[0]].close()
    assert len(kernels_in(model)) == count > 0
    engines[order[0]].close()
    assert len(kernels_in(model)) == count, "closing twice counts once"
    engines[order[1]].close()
    assert not kernels_in(model)
    with Engine(copied, processor, **options):
        assert len(kernels_in(copied)) == count
    assert not kernels_in(copied), "a copy of a model that an engine had open"


@needs_kernels
@pytest.mark.parametrize("end", ["aborted", "dropped"])
def test_engines_that_end_otherwise_restore_the_model_too(small, monkeypatch, end):
    pretend_processor(monkeypatch, has_fast_mkl=False)
    lower_limits(monkeypatch)
    model, processor = small
    engine = Engine(model, processor, max_batch=2, max_length=64, packed_weights=True)
    copies = engine.decoder.packed.copies
    assert engine.submit("what", max_new_tokens=2).result(timeout=60).error is None
    if end == "aborted":
        engine.abort(RuntimeError("a fault"))
        engine.close()
    else:
        thread = engine._thread
        del engine
        gc.collect()
        thread.join(timeout=60)
    assert not kernels_in(model) and not copies


@pytest.mark.timeout(60)
def test_an_engine_that_is_collected_while_models_are_changed_holds_nothing_up(small):
    model, processor = small
    engine = Engine(model, processor, max_batch=2, max_length=64, background=False)
    engine.itself = engine
    del engine
    with linear.changing_models():
        gc.collect()  # as the collector may begin at any line
    assert model.config.text_config._attn_implementation == "sdpa"


@needs_kernels
def test_packed_weights_are_for_the_engine_that_watches_them(small, monkeypatch):
    """Writes through ``data`` are not seen in a weight: whoever else calls the model computes with what it has."""
    pretend_processor(monkeypatch, has_fast_mkl=False)
    lower_limits(monkeypatch)
    model, processor = deepcopy(small[0]), small[1]
    ids = torch.arange(10, 30).view(1, -1)
    with torch.no_grad(), Engine(model, processor, max_batch=2, max_length=64, background=False, packed_weights=True):
        for parameter in model.model.language_model.parameters():
            parameter.data.mul_(1.1)
        inside = model(input_ids=ids).logits
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, inside, rtol=1e-4, atol=1e-4)


@needs_kernels
def test_small_and_rounded_models_cannot_be_packed(small, monkeypatch):
    model, processor = small
    with pytest.raises(ConfigError, match=f"at least {linear.SMALLEST_PACKED:,} weights"):
        Engine(model, processor, packed_weights=True)
    lower_limits(monkeypatch)
    with pytest.raises(ConfigError, match="a float32 decoder on a CPU"):
        Engine(deepcopy(model).bfloat16(), processor, packed_weights=True)
    monkeypatch.setattr(kernels, "free_memory", lambda device: 1000)
    with pytest.raises(ConfigError, match="MiB are free"):
        Engine(model, processor, packed_weights=True)


@needs_kernels
def test_weights_are_packed_unasked_where_that_pays(small, monkeypatch, fast_mkl):
    model, processor = small

    def is_packed():
        with Engine(model, processor, max_batch=2, max_length=64, background=False, packed_weights=None) as engine:
            return engine.decoder.packed is not None

    assert not is_packed(), "the layers stay in the caches"
    lower_limits(monkeypatch)
    assert is_packed() is not fast_mkl
    needed = sum(
        layer.weight.nbytes for layer in model.model.language_model.modules() if type(layer) is torch.nn.Linear
    )
    needed += model.lm_head.weight.nbytes
    monkeypatch.setattr(kernels, "free_memory", lambda device: 2 * needed)
    assert is_packed() is not fast_mkl
    monkeypatch.setattr(kernels, "free_memory", lambda device: 2 * needed - 1)
    assert not is_packed(), "the copies would take more than half of the memory"


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize("count", [8, 16])
def test_answers_of_many_rows_are_those_of_one(small, count, fast_mkl, monkeypatch):
    """Requests in steps of so many rows, with every layer computed as a large one."""
    lower_limits(monkeypatch)
    model, processor = small
    requests = [Request(f"what moves {word}", max_new_tokens=8) for word in WORDS[:count]]
    with Engine(model, processor, max_batch=count, max_length=256, background=False) as engine:
        results, names = operations(lambda: engine.generate(requests))
    assert ("aten::bmm" if fast_mkl and count == 8 else ONEDNN) in names
    assert [result.token_ids for result in results] == [alone(model, processor, request) for request in requests]


@pytest.mark.slow
@needs_kernels
def test_packed_weights_give_the_same_answers_and_follow_changes(small, fast_mkl, monkeypatch):
    lower_limits(monkeypatch)
    model, processor = deepcopy(small[0]), small[1]
    requests = [Request(f"what moves {word}", max_new_tokens=8) for word in WORDS[:16]]
    with Engine(model, processor, max_batch=16, max_length=64, background=False, packed_weights=True) as engine:
        copies = engine.decoder.packed.copies
        for layer in (model.lm_head, model.model.language_model.layers[0].mlp.up_proj):
            assert copies[id(layer.weight)].of(layer.weight).layout == torch._mkldnn
        before = [result.token_ids for result in engine.generate(requests)]
        with torch.no_grad():
            model.lm_head.weight.copy_(model.lm_head.weight.flip(0).clone())
        after = [result.token_ids for result in engine.generate(requests)]
        weight = model.lm_head.weight
        assert copies[id(weight)].of(weight).layout == torch._mkldnn, "packed anew"
    engine.forget()
    assert not copies, "dropped for good"
    assert before == [alone(*small, request) for request in requests]
    assert after == [alone(model, processor, request) for request in requests] != before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("positions", [1, 5])
@pytest.mark.parametrize("mask_of", ["none", "booleans", "floats"])
def test_grouped_attention_is_that_of_repeated_keys(mask_of, positions, dtype):
    torch.manual_seed(0)
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 3, False
    shapes = ((2, 6, positions, 16), (2, 2, 40, 16), (2, 2, 40, 16))
    # In a model, heads are a dimension behind the positions.
    query, key, value = (
        torch.randn(shape, dtype=dtype).transpose(1, 2).contiguous().transpose(1, 2) for shape in shapes
    )
    mask = torch.arange(40) <= torch.tensor([[20], [35]]).unsqueeze(-1) + torch.arange(positions).view(1, -1, 1)
    mask = None if mask_of == "none" else mask.unsqueeze(1)
    if mask_of == "floats":
        mask = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, -torch.inf)
    arguments = (module, query, key, value, mask)
    result, names = operations(lambda: grouped_attention(*arguments, scaling=0.3, dropout=0.0, sliding_window=None)[0])
    expected = sdpa_attention_forward(*arguments, scaling=0.3)[0]
    assert result.shape == expected.shape == (2, positions, 6, 16)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6 if dtype == torch.float32 else 1e-2)
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in names, "not the kernel that builds all scores"


def test_heads_of_a_group_are_computed_together_in_a_decode_step(monkeypatch):
    seen = []
    monkeypatch.setattr(
        kernels.F, "scaled_dot_product_attention", lambda query, *rest, **named: seen.append(query) or query
    )
    module = torch.nn.Module()
    module.num_key_value_groups = 3
    query, key = torch.randn(2, 6, 1, 16), torch.randn(2, 2, 40, 16)
    result, _ = grouped_attention(module, query, key, key, None)
    assert seen[0].shape == (2, 2, 3, 16)
    assert torch.equal(result, query.transpose(1, 2)), "every head is where it belongs"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_engines_that_close_in_any_order_restore_what_the_first_has_found(small, order):
    model, processor = deepcopy(small[0]).train(), small[1]
    engines = [Engine(model, processor, max_batch=2, max_length=64, background=False) for _ in range(2)]
    engines[order[0]].close()
    assert not model.training
    assert model.config.text_config._attn_implementation == kernels.ATTENTION, "the other one is open"
    engines[order[1]].close()
    assert model.training
    assert model.config.text_config._attn_implementation == "sdpa"


def test_closing_an_engine_restores_the_attention(small):
    model, processor = small
    assert model.config.text_config._attn_implementation == "sdpa"
    with Engine(model, processor, max_batch=2, max_length=256, background=False) as engine:
        assert model.config.text_config._attn_implementation != "sdpa"
        assert engine.generate([Request("what", max_new_tokens=2)])[0].error is None
    assert model.config.text_config._attn_implementation == "sdpa"
