"""The engine's CPU kernels give what the default ones give."""

from copy import deepcopy

import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from torch.profiler import ProfilerActivity, profile
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from videollama2.errors import ConfigError
from videollama2.inference import kernels
from videollama2.inference.engine import Engine
from videollama2.inference.kernels import (
    FEWEST_ROWS,
    MOST_ROWS,
    MOST_ROWS_IN_BLOCKS,
    FewRows,
    few_rows_available,
    grouped_attention,
    has_large_layers,
    linear_in_blocks,
)
from videollama2.inference.request import Request

from .helpers import WORDS, alone


def operations(work):
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        result = work()
    return result, {event.name for event in profiled.events()}


@pytest.mark.skipif(not few_rows_available(), reason="torch has no MKL or no oneDNN here")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outputs", [1056, 1060])
@pytest.mark.parametrize("shape", [(8, 1, 1024), (2, 6, 1024), (13, 1, 1024), (1, 1, 1024), (100, 1, 1024)])
def test_few_rows_are_multiplied_in_blocks_or_by_onednn(shape, outputs, bias):
    torch.manual_seed(0)
    layer = torch.nn.Linear(1024, outputs, bias=bias)
    inputs = torch.randn(shape)
    with torch.inference_mode(), FewRows():
        result, names = operations(lambda: layer(inputs))
    rows = shape[0] * shape[1]
    in_blocks = FEWEST_ROWS <= rows <= MOST_ROWS_IN_BLOCKS and outputs % 32 == 0
    assert ("aten::bmm" in names) is in_blocks
    assert ("mkldnn::_linear_pointwise" in names) is (FEWEST_ROWS <= rows <= MOST_ROWS and not in_blocks)
    assert result.shape == (*shape[:2], outputs)
    torch.testing.assert_close(result, layer(inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inputs", [512, 4096])
def test_blocks_of_a_weight_give_what_the_weight_gives(inputs):
    torch.manual_seed(0)
    weight, bias, rows = torch.randn(96, inputs), torch.randn(96), torch.randn(3, 2, inputs)
    for added in (bias, None):
        result = linear_in_blocks(rows, weight, added)
        torch.testing.assert_close(result, F.linear(rows, weight, added), rtol=1e-5, atol=1e-4)
    # Slices of a batch are not contiguous.
    torch.testing.assert_close(linear_in_blocks(rows[:, :1], weight, None), result[:, :1], rtol=1e-5, atol=1e-4)


def test_wide_weights_are_not_divided_into_blocks(monkeypatch):
    monkeypatch.setattr(kernels, "_MOST_INPUTS_IN_BLOCKS", 1023)
    layer = torch.nn.Linear(1024, 1056)
    with torch.inference_mode(), FewRows():
        _, names = operations(lambda: layer(torch.randn(8, 1024)))
    assert "aten::bmm" not in names


def test_other_types_layouts_and_sizes_are_left_alone():
    weight, inputs = torch.randn(1024, 1056), torch.randn(8, 1056)

    def work():
        F.linear(inputs.bfloat16(), weight.bfloat16())
        F.linear(torch.randn(8, 1024), weight.t())
        F.linear(inputs, weight[:700])

    with FewRows():
        _, names = operations(work)
    assert names.isdisjoint(("mkldnn::_linear_pointwise", "aten::bmm"))


def test_small_models_are_spared_the_calls(small):
    model, processor = small
    assert not has_large_layers(model.model.language_model)
    with Engine(model, processor, max_batch=2, max_length=64, background=False) as engine:
        assert not engine.decoder.few_rows
    large = torch.nn.Sequential(torch.nn.Embedding(4, 4), torch.nn.Linear(1024, 1024))
    assert has_large_layers(large)


def test_small_and_rounded_models_cannot_be_packed(small, monkeypatch):
    model, processor = small
    with pytest.raises(ConfigError, match=f"at least {kernels.SMALLEST_PACKED:,} weights"):
        Engine(model, processor, packed_weights=True)
    monkeypatch.setattr(kernels, "SMALLEST_PACKED", 1)
    with pytest.raises(ConfigError, match="a float32 decoder on a CPU"):
        Engine(deepcopy(model).bfloat16(), processor, packed_weights=True)
    monkeypatch.setattr(kernels, "free_memory", lambda device: 1000)
    with pytest.raises(ConfigError, match="MiB are free"):
        Engine(model, processor, packed_weights=True)


@pytest.mark.slow
@pytest.mark.skipif(not few_rows_available(), reason="torch has no MKL or no oneDNN here")
@pytest.mark.parametrize(("count", "operation"), [(8, "aten::bmm"), (16, "mkldnn::_linear_pointwise")])
def test_answers_of_many_rows_are_those_of_one(small, count, operation, monkeypatch):
    """Requests in steps of so many rows, with the size limit lowered so that every layer is computed as large ones."""
    monkeypatch.setattr(kernels, "SMALLEST_PACKED", 1)
    model, processor = small
    requests = [Request(f"what moves {word}", max_new_tokens=8) for word in WORDS[:count]]
    with Engine(model, processor, max_batch=count, max_length=256, background=False) as engine:
        assert engine.decoder.few_rows
        results, names = operations(lambda: engine.generate(requests))
    assert operation in names
    assert [result.token_ids for result in results] == [alone(model, processor, request) for request in requests]


@pytest.mark.slow
@pytest.mark.skipif(not few_rows_available(), reason="torch has no MKL or no oneDNN here")
def test_packed_weights_give_the_same_answers_and_follow_changes(small, monkeypatch):
    monkeypatch.setattr(kernels, "SMALLEST_PACKED", 1)
    model, processor = deepcopy(small[0]), small[1]
    requests = [Request(f"what moves {word}", max_new_tokens=8) for word in WORDS[:16]]
    with Engine(model, processor, max_batch=16, max_length=64, background=False, packed_weights=True) as engine:
        for layer in (model.lm_head, model.model.language_model.layers[0].mlp.up_proj):
            assert engine.decoder.packed.get(layer.weight).layout == torch._mkldnn
        before = [result.token_ids for result in engine.generate(requests)]
        with torch.no_grad():
            model.lm_head.weight.copy_(model.lm_head.weight.flip(0).clone())
        after = [result.token_ids for result in engine.generate(requests)]
    assert before == [alone(*small, request) for request in requests]
    assert after == [alone(model, processor, request) for request in requests] != before


@pytest.mark.parametrize("boolean", [True, False])
def test_grouped_attention_is_that_of_repeated_keys(boolean):
    torch.manual_seed(0)
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 3, True
    query, key, value = torch.randn(2, 6, 5, 16), torch.randn(2, 2, 40, 16), torch.randn(2, 2, 40, 16)
    mask = torch.arange(40) <= torch.tensor([[20], [35]]).unsqueeze(-1) + torch.arange(5).view(1, 5, 1)
    mask = mask.unsqueeze(1)
    if not boolean:
        mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    arguments = (module, query, key, value, mask)
    result, names = operations(lambda: grouped_attention(*arguments, scaling=0.3, dropout=0.0, sliding_window=None)[0])
    torch.testing.assert_close(result, sdpa_attention_forward(*arguments, scaling=0.3)[0], rtol=1e-5, atol=1e-6)
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in names, "not the kernel that builds all scores"


def test_closing_an_engine_restores_the_attention(small):
    model, processor = small
    assert model.config.text_config._attn_implementation == "sdpa"
    with Engine(model, processor, max_batch=2, max_length=256, background=False) as engine:
        assert model.config.text_config._attn_implementation != "sdpa"
        assert engine.generate([Request("what", max_new_tokens=2)])[0].error is None
    assert model.config.text_config._attn_implementation == "sdpa"
