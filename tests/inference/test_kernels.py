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
    FewRows,
    few_rows_available,
    grouped_attention,
    has_large_layers,
)
from videollama2.inference.request import Request

from .engine_helpers import WORDS, alone


def operations(work):
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        result = work()
    return result, {event.name for event in profiled.events()}


@pytest.mark.skipif(not few_rows_available(), reason="torch has no MKL or no oneDNN here")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(8, 1, 1024), (2, 4, 1024), (1, 1, 1024), (100, 1, 1024)])
def test_few_rows_are_multiplied_by_onednn(shape, bias):
    torch.manual_seed(0)
    layer = torch.nn.Linear(1024, 1056, bias=bias)
    inputs = torch.randn(shape)
    with torch.inference_mode(), FewRows():
        result, names = operations(lambda: layer(inputs))
    rows = shape[0] * shape[1]
    assert ("mkldnn::_linear_pointwise" in names) is (FEWEST_ROWS <= rows <= MOST_ROWS)
    assert result.shape == (*shape[:2], 1056)
    torch.testing.assert_close(result, layer(inputs), rtol=1e-5, atol=1e-5)


def test_other_types_layouts_and_sizes_are_left_alone():
    weight, inputs = torch.randn(1024, 1056), torch.randn(8, 1056)

    def work():
        F.linear(inputs.bfloat16(), weight.bfloat16())
        F.linear(torch.randn(8, 1024), weight.t())
        F.linear(inputs, weight[:900])

    with FewRows():
        _, names = operations(work)
    assert "mkldnn::_linear_pointwise" not in names


def test_small_models_are_spared_the_calls(small):
    model, processor = small
    assert not has_large_layers(model.model.language_model)
    with Engine(model, processor, max_batch=2, max_length=64, background=False) as engine:
        assert not engine.decoder.few_rows
    large = torch.nn.Sequential(torch.nn.Embedding(4, 4), torch.nn.Linear(1024, 1024))
    assert has_large_layers(large)


def test_small_and_rounded_models_cannot_be_packed(small, monkeypatch):
    model, processor = small
    with pytest.raises(ConfigError, match="at least 1,048,576 weights"):
        Engine(model, processor, packed_weights=True)
    monkeypatch.setattr(kernels, "SMALLEST_WEIGHT", 1)
    with pytest.raises(ConfigError, match="a float32 decoder on a CPU"):
        Engine(deepcopy(model).bfloat16(), processor, packed_weights=True)
    monkeypatch.setattr(kernels, "free_memory", lambda device: 1000)
    with pytest.raises(ConfigError, match="MiB are free"):
        Engine(model, processor, packed_weights=True)


@pytest.mark.skipif(not few_rows_available(), reason="torch has no MKL or no oneDNN here")
def test_answers_of_many_rows_are_those_of_one(small, monkeypatch):
    """Eight requests in steps of eight rows, with the size limit lowered so that every layer goes to oneDNN."""
    monkeypatch.setattr(kernels, "SMALLEST_WEIGHT", 1)
    model, processor = small
    requests = [Request(f"what moves {word}", max_new_tokens=8) for word in WORDS[:8]]
    with Engine(model, processor, max_batch=8, max_length=256, background=False) as engine:
        assert engine.decoder.few_rows
        results, names = operations(lambda: engine.generate(requests))
    assert "mkldnn::_linear_pointwise" in names
    assert [result.token_ids for result in results] == [alone(model, processor, request) for request in requests]


@pytest.mark.skipif(not few_rows_available(), reason="torch has no MKL or no oneDNN here")
def test_packed_weights_give_the_same_answers_and_follow_changes(small, monkeypatch):
    monkeypatch.setattr(kernels, "SMALLEST_WEIGHT", 1)
    model, processor = deepcopy(small[0]), small[1]
    requests = [Request(f"what moves {word}", max_new_tokens=8) for word in WORDS[:8]]
    with Engine(model, processor, max_batch=8, max_length=64, background=False, packed_weights=True) as engine:
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
