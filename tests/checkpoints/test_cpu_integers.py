"""``load_8bit`` and ``load_4bit`` on a CPU: close to the exact model, and nothing else changed."""

import copy
import os
import subprocess
import sys

import pytest
import torch

from tests.checkpoints.helpers import connector_folder, edit_weights
from tests.conftest import golden_dir
from videollama2.checkpoints import cpu_integers, load_checkpoint, load_pretrained_model
from videollama2.errors import CheckpointError, ConfigError
from videollama2.inference.engine import Engine
from videollama2.inference.request import Request
from videollama2.model import int4, int8
from videollama2.model import stored as stored_module
from videollama2.model.int4 import GROUP, Int4Linear, quantise_groups
from videollama2.model.int8 import Int8Embedding, Int8Linear, RowPacker, multiplies_integers, quantise_rows
from videollama2.model.stored import StoredLayer, stored_like

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


ON_ONE_LAYER = """
import torch
from videollama2.model.int8 import Int8Linear
layer = Int8Linear(1024, 1024, bias=True)
layer.weight.data.random_(-127, 128)
layer.scale_O = torch.rand(1024)
layer.pack()
with torch.inference_mode():
    for rows in (1, 8, 64):
        layer(torch.randn(rows, 1024))
"""


@pytest.mark.slow
@pytest.mark.parametrize("instructions", ["AVX512_CORE_AMX", "AVX512_CORE_VNNI", "AVX2_VNNI"])
def test_no_product_is_left_to_the_reference_implementation_of_onednn(instructions):
    """It takes thousands of times as long, and gives the same values. Processors without AMX multiply other types."""
    needed = {"AVX512_CORE_AMX": "amx_int8", "AVX512_CORE_VNNI": "avx512_vnni", "AVX2_VNNI": "avx_vnni"}[instructions]
    if not torch.cpu.get_capabilities().get(needed) or not multiplies_integers():
        pytest.skip(f"this CPU has no {needed}")
    told = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions, "ONEDNN_VERBOSE": "1"}
    lines = subprocess.run([sys.executable, "-c", ON_ONE_LAYER], env=told, capture_output=True, text=True, check=True)
    products = [line for line in lines.stdout.splitlines() if ",exec,cpu,matmul," in line]
    assert len(products) == 3, lines.stdout
    assert not [line for line in products if "ref" in line.split(",")[6]], products


@pytest.mark.skipif(not multiplies_integers(), reason="this CPU does not multiply 8-bit integers")
@pytest.mark.parametrize("knows", [True, False])
@pytest.mark.parametrize("shape", [(128, 192), (128, 100), (72, 192)])
def test_weights_after_the_first_of_a_shape_are_packed_alike(shape, knows, monkeypatch):
    if not knows:
        monkeypatch.setattr(int8, "knows_order", lambda: False)
    torch.manual_seed(0)
    layers = [torch.nn.Linear(shape[1], shape[0]) for _ in range(3)]
    packer, inputs = RowPacker(), torch.randn(4, shape[1])
    packed = [rounded(layer) for layer in layers]
    for layer in packed:
        layer.pack(packer)
    for layer, few in zip(layers, packed, strict=True):  # after all were packed: none is written over another
        alone = rounded(layer)
        alone.pack()
        assert torch.equal(few(inputs), alone(inputs))


@pytest.mark.skipif(not multiplies_integers(), reason="this CPU does not multiply 8-bit integers")
def test_embeddings_read_their_rows_from_the_packed_head():
    layer, embedding = torch.nn.Linear(192, 128, bias=False), Int8Embedding(128, 192, torch.float32)
    few = rounded(layer)
    embedding.weight, embedding.scale_O = few.weight, few.scale_O
    ids = torch.tensor([[0, 127, 64], [63, 1, 127]])
    rows = embedding(ids)
    torch.testing.assert_close(rows, layer.weight.data[ids], rtol=0, atol=0.01)
    few.pack()
    assert int8.is_readable(128, 192) is int8.knows_order()
    if int8.knows_order():
        embedding.packed = few.packed
    assert torch.equal(embedding(ids), rows)


@pytest.mark.skipif(not multiplies_integers(), reason="this CPU does not multiply 8-bit integers")
@pytest.mark.parametrize("vocabulary", [3 * 128, 3 * 128 + 64, 3 * 128 + 8])
def test_a_head_in_pieces_answers_as_in_one(vocabulary, monkeypatch):
    torch.manual_seed(0)
    layer, inputs = torch.nn.Linear(192, vocabulary), torch.randn(2, 3, 192)
    whole, pieces = rounded(layer), rounded(layer)
    whole.pack()
    monkeypatch.setattr(int8, "_TALL", 300)
    monkeypatch.setattr(int8, "_PIECE", 128)
    embedding = Int8Embedding(vocabulary, 192, torch.float32)
    embedding.weight, embedding.scale_O = pieces.weight, pieces.scale_O
    ids = torch.tensor([[0, vocabulary - 1, 127], [128, 255, 256]])
    rows = embedding(ids)
    pieces.pack()
    assert torch.equal(pieces(inputs), whole(inputs)) and torch.equal(pieces(inputs[0, 0]), whole(inputs[0, 0]))
    if int8.is_readable(vocabulary, 192):
        embedding.packed = pieces.packed
    assert torch.equal(embedding(ids), rows) and torch.equal(embedding(ids[0, 1]), rows[0, 1])


@pytest.mark.parametrize(
    ("outputs", "wanted"), [(29_999, 29_999), (32_000, 16_000), (32_001, 16_064), (151_936, 15_232), (152_064, 15_232)]
)
def test_pieces_are_of_one_size_if_possible(outputs, wanted):
    rows = int8.piece_rows(outputs)
    assert rows == wanted and (rows % 64 == 0 and rows <= 16_384 or rows == outputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", [NAMES[1], "videollama2-tiny"])
def test_loaded_in_pieces_a_model_is_the_same(name, monkeypatch):
    monkeypatch.setattr(cpu_integers, "SMALLEST_QUANTISED", 1)
    path = name if name == "videollama2-tiny" else golden_dir() / "models" / name
    ids, logits = torch.arange(5, 35).unsqueeze(0), []
    for tall, piece in ((10**9, 1), (1, 64)):
        monkeypatch.setattr(int8, "_TALL", tall)
        monkeypatch.setattr(int8, "_PIECE", piece)
        _, model, _, _ = load_pretrained_model(path, device="cpu", load_8bit=True)
        embeddings = model.get_input_embeddings()
        shares = model.config.tie_word_embeddings and int8.is_readable(
            embeddings.num_embeddings, embeddings.embedding_dim
        )
        assert (model.lm_head.packed is embeddings.packed) is shares or not multiplies_integers()
        with torch.inference_mode():
            logits.append(model(input_ids=ids).logits)
    assert torch.equal(*logits)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("is_inference", [True, False])
def test_threads_round_as_one_does_and_leave_torch_its_number(bits, is_inference, monkeypatch):
    monkeypatch.setattr(cpu_integers, "_AT_ONCE", 128 * 128)  # the last of three parts is smaller
    values, threads = torch.randn(320, 128).bfloat16(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.inference_mode(is_inference), cpu_integers.one_thread() as most:
            assert most == 2 and torch.get_num_threads() == 1
            integers, scales = (cpu_integers.in_8_bits if bits == 8 else cpu_integers.in_4_bits)(values, most)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    if bits == 8:
        wanted, wanted_scales = quantise_rows(values)
        wanted_scales = wanted_scales.squeeze(1)
    else:
        wanted, wanted_scales = quantise_groups(values)
        wanted = int4.pack_int4(wanted)
    assert torch.equal(integers, wanted) and torch.equal(scales, wanted_scales)


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


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, "videollama2-tiny"])
def test_a_model_answers_in_8_bits(name, monkeypatch):
    monkeypatch.setattr(cpu_integers, "SMALLEST_QUANTISED", 1)
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
    with pytest.raises(ConfigError, match="cannot be saved; load the model without load_8bit and load_4bit"):
        model.save_pretrained("nowhere")


def test_small_layers_stay_as_they_are_and_a_model_of_them_says_so(golden):
    path = golden / "models" / NAMES[0]
    with pytest.warns(UserWarning, match="no layer has the 524288 weights from which 8 bits pay"):
        _, model, _, _ = load_pretrained_model(path, device="cpu", load_8bit=True)
    exact, _ = load_checkpoint(path, dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), exact.parameters(), strict=True))


def grouped(layer):
    """The layer with its weight in 4 bits, and that weight in floating point."""
    few = Int4Linear.like(layer, torch.float32)
    integers_OI, few.scales_GO2 = quantise_groups(layer.weight.data)
    few.weight = torch.nn.Parameter(int4.pack_int4(integers_OI), requires_grad=False)
    few.bias = None if layer.bias is None else torch.nn.Parameter(layer.bias.data, requires_grad=False)
    scale_OG1, offset_OG1 = few.scales_GO2.float().permute(2, 1, 0).unsqueeze(-1)
    return few, ((integers_OI.view(len(integers_OI), -1, GROUP) - 8) * scale_OG1 + offset_OG1).flatten(1)


def test_groups_are_rounded_to_16_steps_between_their_own_ends():
    values = torch.randn(64, 3 * GROUP) * torch.logspace(-4, 4, 64).unsqueeze(1)
    values[5], values[6] = 0, 0.75
    layer = torch.nn.Linear(3 * GROUP, 64, bias=False)
    layer.weight.data = values
    few, restored = grouped(layer)
    groups = values.view(64, 3, GROUP)
    step = (groups.amax(-1) - groups.amin(-1)) / 15
    error = (restored.view_as(groups) - groups).abs().amax(-1)
    # Half a step, and what bfloat16 takes from the scale of 8 steps and from the offset.
    assert (error <= 0.5 * step + 2**-8 * (8 * step + groups.abs().amax(-1))).all()
    torch.testing.assert_close(few.restored(0, 64).T, restored, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_and_many_rows_are_multiplied_by_the_same_weight(bias, dtype, monkeypatch):
    monkeypatch.setattr(int4, "_RESTORED", 64)  # three blocks of outputs
    torch.manual_seed(0)
    few, weight = grouped(torch.nn.Linear(2 * GROUP, 192, bias=bias))
    inputs = torch.randn(2, 50, 2 * GROUP).to(dtype)
    wanted = torch.nn.functional.linear(inputs.float(), weight, few.bias)
    with torch.inference_mode():
        many, rows = few(inputs), few(inputs[:, :5])
    assert many.dtype == rows.dtype == dtype and many.shape == (2, 50, 192)
    for result, part in ((many, wanted), (rows, wanted[:, :5])):
        assert (result - part).norm() / part.norm() < 0.005
    assert all(torch.equal(few(inputs[:1, j]), rows[:1, j]) for j in range(5))  # others in the batch change nothing


def test_another_order_of_weights_than_the_known_ones_is_refused(monkeypatch):
    monkeypatch.setattr(int4, "pack_int4", lambda integers: integers[:, ::2].to(torch.uint8).contiguous())
    with pytest.raises(ConfigError, match="in an order that is not known here; use --load-8bit"):
        int4.kernel_order.__wrapped__()


def test_a_model_answers_in_4_bits(monkeypatch):
    monkeypatch.setattr(cpu_integers, "SMALLEST_QUANTISED", 1)
    exact, _ = load_checkpoint("videollama2-tiny", dtype=torch.float32)
    _, model, processor, _ = load_pretrained_model("videollama2-tiny", device="cpu", load_4bit=True)
    kinds = {path: type(module) for path, module in model.named_modules()}
    for path, module in exact.named_modules():
        if type(module) is torch.nn.Linear and "mm_projector" not in path:
            assert kinds[path] is (Int4Linear if "language_model.layers" in path else Int8Linear), path
    ids = torch.arange(5, 85).unsqueeze(0)
    with torch.inference_mode():
        few, whole = model(input_ids=ids).logits, exact(input_ids=ids).logits
    assert 0.9 < torch.nn.functional.cosine_similarity(few.flatten(), whole.flatten(), dim=0) < 0.9999
    clip = golden_dir() / "media" / "landscape_30fps_90f.mp4"
    with Engine(model, processor, max_batch=1, background=False) as engine:
        assert engine.submit_request(Request("What?", [("video", clip)], max_new_tokens=2)).result().error is None
    with pytest.raises(ConfigError, match="cannot be saved"):
        model.save_pretrained("nowhere")


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (torch.nn.Linear(24, 20), (3, 5, 24)),
        (torch.nn.Conv2d(24, 20, 1, bias=False), (2, 24, 4, 4)),
        (torch.nn.Conv3d(24, 20, 2, stride=2, padding=1), (1, 24, 4, 4, 4)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_layers_that_keep_weights_as_stored_compute_what_float32_ones_do(layer, shape, dtype, monkeypatch):
    layer, inputs = copy.deepcopy(layer), torch.randn(shape)
    stored = layer.weight.data.to(dtype)
    layer.weight.data = stored.float()
    kept = stored_like(layer)
    kept.bias, kept.weight = layer.bias, kept.keep(stored)
    assert kept.stored.dtype == dtype and next(kept.parameters()).dtype == torch.float32
    with torch.inference_mode():
        assert torch.equal(kept(inputs), layer(inputs))
        monkeypatch.setattr(stored_module, "_AT_ONCE", 7 * stored[0].numel())  # 7, 7 and 6 outputs
        torch.testing.assert_close(kept(inputs), layer(inputs), rtol=1e-6, atol=1e-6)
        # Weights are given back and taken as those of other layers are.
        assert torch.equal(kept.state_dict()["weight"], stored)
        kept.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()})
        layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()})
        torch.testing.assert_close(kept(inputs), layer(inputs), rtol=1e-6, atol=1e-5)
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        kept.load_state_dict({**layer.state_dict(), "weight": torch.zeros(3, 3)})


def test_other_layers_are_not_kept_as_stored():
    assert stored_like(torch.nn.Conv2d(8, 8, 3, groups=8)) is None and stored_like(torch.nn.LayerNorm(8)) is None


@pytest.mark.slow
def test_connectors_are_exact_and_take_half_of_the_memory(folder, monkeypatch):
    monkeypatch.setattr(cpu_integers, "SMALLEST_QUANTISED", 64)

    def halve(tensors):
        tensors.update({name: value.bfloat16() for name, value in tensors.items()})

    edit_weights(folder, halve)
    exact, _ = load_checkpoint(folder, dtype=torch.float32)
    _, model, _, _ = load_pretrained_model(folder, device="cpu", load_8bit=True)
    own, wanted = model.model.mm_projector, exact.model.mm_projector
    kept = [module for module in own.modules() if isinstance(module, StoredLayer)]
    assert kept and all(module.stored.dtype == torch.bfloat16 and not module.weight.numel() for module in kept)
    features = torch.randn(1, 4, 16, exact.config.mm_hidden_size)
    with torch.inference_mode():
        assert torch.equal(own(features), wanted(features)) and own(features).dtype == torch.float32
    names = own.state_dict()
    assert names.keys() == wanted.state_dict().keys()
    # A connector that is kept apart replaces it.
    stage1, connector = connector_folder(folder, folder)
    torch.save({name: 2 * value for name, value in connector.items()}, stage1 / "mm_projector.bin")
    _, other, _, _ = load_pretrained_model(stage1, str(folder), device="cpu", load_8bit=True)
    exact, _ = load_checkpoint(folder, dtype=torch.float32)
    exact.model.mm_projector.load_state_dict({name: 2 * value.float() for name, value in wanted.state_dict().items()})
    with torch.inference_mode():
        assert torch.equal(other.model.mm_projector(features), exact.model.mm_projector(features))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.mm_projector.sampler.0.weight", "model.layers.0.mlp.up_proj.weight"])
@pytest.mark.parametrize("option", ["load_8bit", "load_4bit"])
def test_weights_of_another_shape_are_named(name, option, folder, monkeypatch):
    monkeypatch.setattr(cpu_integers, "SMALLEST_QUANTISED", 64)
    edit_weights(folder, lambda tensors: tensors.update({name: tensors[name][:-1].clone()}))
    with pytest.raises(CheckpointError, match="1 weights of another shape") as caught:
        load_pretrained_model(folder, device="cpu", **{option: True})
    assert name.removeprefix("model.").removesuffix(".weight").split(".")[-1] in str(caught.value)
