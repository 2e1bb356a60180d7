"""``load_8bit`` on a CPU: integer arithmetic, close to the exact model, and nothing else changed."""

import pytest
import torch

from tests.conftest import golden_dir
from videollama2.checkpoints import cpu_int8, load_checkpoint, load_pretrained_model
from videollama2.errors import ConfigError
from videollama2.inference.engine import Engine
from videollama2.inference.request import Request
from videollama2.model import int8
from videollama2.model.int8 import Int8Embedding, Int8Linear, multiplies_integers, quantise_rows

NAMES = ("qwen2-stc_connector_v35-siglip", "llama-mlp2x_gelu-clip")


def rounded(layer):
    """The layer with its weight rounded, as :class:`Int8Linear` has it, and unpacked."""
    few = Int8Linear.like(layer)
    integers, scales = quantise_rows(layer.weight.data)
    few.weight, few.scale_O = torch.nn.Parameter(integers, requires_grad=False), scales.squeeze(1)
    few.bias = None if layer.bias is None else torch.nn.Parameter(layer.bias.data, requires_grad=False)
    return few


def test_rows_are_rounded_to_the_nearest_step_of_their_own_scale(monkeypatch):
    monkeypatch.setattr(int8, "_AT_ONCE", 100)  # three rows at once
    values = torch.randn(8, 33) * torch.logspace(-6, 6, 8).unsqueeze(1)
    values[5] = 0
    integers, scales = quantise_rows(values)
    assert integers.dtype == torch.int8 and (integers[5] == 0).all()
    assert (integers[values.abs().amax(1) > 0].abs().amax(1) == 127).all()
    assert ((integers * scales - values).abs() <= 0.5001 * scales).all()


@pytest.mark.skipif(not multiplies_integers(), reason="this CPU does not multiply 8-bit integers")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_multiplies_integers(bias, dtype):
    torch.manual_seed(0)
    layer = torch.nn.Linear(200, 72, bias=bias)
    few, inputs = rounded(layer), torch.randn(3, 5, 200).to(dtype)
    integers, scales = quantise_rows(inputs.reshape(15, 200))
    exact = (integers.double() @ few.weight.double().T) * scales * few.scale_O + (layer.bias if bias else 0)
    few.pack()
    with torch.inference_mode():
        result = few(inputs)
    assert few.weight.numel() == 0 and result.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 5e-3
    torch.testing.assert_close(result.reshape(15, 72).double(), exact, rtol=tolerance, atol=tolerance)
    wanted = layer(inputs.float())
    assert (result.float() - wanted).norm() / wanted.norm() < 0.02
    # What else is in the batch changes nothing.
    assert all(torch.equal(few(inputs[i, j]), result[i, j]) for i in range(3) for j in range(5))


@pytest.mark.parametrize("rows", [1, 30])
@pytest.mark.parametrize("bias", [True, False])
def test_a_cpu_without_such_products_rounds_only_the_weight(rows, bias, monkeypatch):
    monkeypatch.setattr(int8, "multiplies_integers", lambda: False)
    layer, inputs = torch.nn.Linear(64, 96, bias=bias), torch.randn(rows, 64)
    few = rounded(layer)
    few.pack()
    assert few.weight.numel() == 64 * 96
    wanted = torch.nn.functional.linear(inputs, few.weight * few.scale_O.unsqueeze(1), layer.bias)
    torch.testing.assert_close(few(inputs), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*NAMES, "videollama2-tiny"])
def test_a_model_answers_in_8_bits(name, monkeypatch):
    monkeypatch.setattr(cpu_int8, "SMALLEST_WEIGHT", 1)
    path = name if name == "videollama2-tiny" else golden_dir() / "models" / name
    exact, _ = load_checkpoint(path, dtype=torch.float32)
    _, model, processor, _ = load_pretrained_model(path, device="cpu", load_8bit=True)
    kinds = {path: type(module) for path, module in model.named_modules()}
    for path, module in exact.named_modules():
        if type(module) is torch.nn.Linear:
            assert (kinds[path] is Int8Linear) is ("mm_projector" not in path), path
    assert isinstance(model.get_input_embeddings(), Int8Embedding) and model.dtype == torch.float32
    ids = torch.arange(5, 35).unsqueeze(0)
    with torch.inference_mode():
        few, whole = model(input_ids=ids).logits, exact(input_ids=ids).logits
    assert not torch.equal(few, whole)
    assert torch.nn.functional.cosine_similarity(few.flatten(), whole.flatten(), dim=0) > 0.99
    clip = golden_dir() / "media" / "landscape_30fps_90f.mp4"
    with Engine(model, processor, max_batch=1, background=False) as engine:
        answer = engine.submit_request(Request("What?", [("video", clip)], max_new_tokens=2)).result()
    assert answer.error is None
    with pytest.raises(ConfigError, match="cannot be saved; load the model without load_8bit"):
        model.save_pretrained("nowhere")


def test_small_layers_stay_as_they_are_and_a_model_of_them_says_so(golden):
    path = golden / "models" / NAMES[0]
    with pytest.warns(UserWarning, match="no layer has the 524288 weights from which 8 bits pay"):
        _, model, _, _ = load_pretrained_model(path, device="cpu", load_8bit=True)
    exact, _ = load_checkpoint(path, dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), exact.parameters(), strict=True))
