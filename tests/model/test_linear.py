"""Linear layers compute with the library that is fastest on a processor, and give what torch's own kernels give."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from tests.helpers.kernels import ONEDNN, needs_kernels, operations, pretend_processor
from videollama2.model import linear as linear_module
from videollama2.model.linear import (
    FEWEST_ROWS,
    MOST_ROWS,
    MOST_ROWS_IN_BLOCKS,
    PackedCopy,
    linear_in_blocks,
    packed_weights,
    use_kernels,
)


def changed(*layers):
    """Return layers that choose their kernels; the last one for all."""
    use_kernels(torch.nn.ModuleList(layers))
    return layers[-1]


@needs_kernels
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outputs", [1056, 1060])
@pytest.mark.parametrize("shape", [(8, 1, 1024), (2, 6, 1024), (13, 1, 1024), (1, 1, 1024), (100, 1, 1024)])
def test_the_kernel_depends_on_the_processor_and_the_rows(shape, outputs, bias, fast_mkl):
    torch.manual_seed(0)
    layer = torch.nn.Linear(1024, outputs, bias=bias)
    inputs = torch.randn(shape)
    expected = layer(inputs)
    changed(layer)
    with torch.inference_mode():
        result, names = operations(lambda: layer(inputs))
    rows = shape[0] * shape[1]
    in_blocks = fast_mkl and FEWEST_ROWS <= rows <= MOST_ROWS_IN_BLOCKS and outputs % 32 == 0
    assert ("aten::bmm" in names) is in_blocks
    by_onednn = not in_blocks and FEWEST_ROWS <= rows <= MOST_ROWS if fast_mkl else True
    assert (ONEDNN in names) is by_onednn
    assert result.shape == (*shape[:2], outputs)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inputs", [512, 4096])
def test_blocks_of_a_weight_give_what_the_weight_gives(inputs):
    torch.manual_seed(0)
    weight, bias, rows = torch.randn(96, inputs), torch.randn(96), torch.randn(3, 2, inputs)
    for added in (bias, None):
        result = linear_in_blocks(rows, weight, added)
        torch.testing.assert_close(result, F.linear(rows, weight, added), rtol=1e-5, atol=1e-4)
    # Slices of a batch are not contiguous.
    torch.testing.assert_close(linear_in_blocks(rows[:, :1], weight, None), result[:, :1], rtol=1e-5, atol=1e-4)


@needs_kernels
def test_wide_weights_are_not_divided_into_blocks(monkeypatch):
    monkeypatch.setattr(linear_module, "_MOST_INPUTS_IN_BLOCKS", 1023)
    pretend_processor(monkeypatch, has_fast_mkl=True)
    layer = changed(torch.nn.Linear(1024, 1056))
    with torch.inference_mode():
        _, names = operations(lambda: layer(torch.randn(8, 1024)))
    assert "aten::bmm" not in names


@needs_kernels
def test_other_types_layouts_and_small_products_are_left_alone(fast_mkl):
    torch.manual_seed(0)
    large, rounded, turned = (torch.nn.Linear(1056, 1056) for _ in range(3))
    small = torch.nn.Linear(200, 200)
    changed(large, rounded, turned, small)
    rounded.bfloat16()
    turned.weight.data = turned.weight.data.t()
    inputs = torch.randn(8, 1056)
    with torch.no_grad():
        expected = F.linear(inputs, turned.weight, turned.bias)

    def work():
        with torch.inference_mode():
            rounded(inputs.bfloat16())
            small(torch.randn(8, 200))
            torch.testing.assert_close(turned(inputs), expected)
            with torch.autocast("cpu", torch.bfloat16):
                assert large(inputs).dtype == torch.bfloat16
        large(inputs).sum().backward()

    _, names = operations(work)
    assert names.isdisjoint((ONEDNN, "aten::bmm"))
    assert large.weight.grad is not None, "training works as ever"


@needs_kernels
def test_rows_that_are_not_contiguous_and_no_rows(fast_mkl):
    torch.manual_seed(0)
    layer, inputs = torch.nn.Linear(1024, 1056), torch.randn(16, 2, 2048)
    strided, flipped, none = inputs[:, 0, ::2], inputs.transpose(0, 1)[..., 1024:], inputs[:0, :, :1024]
    with torch.inference_mode():
        expected = [layer(rows) for rows in (strided, flipped, none)]
        changed(layer)
        for rows, result in zip((strided, flipped, none), expected, strict=True):
            torch.testing.assert_close(layer(rows), result, rtol=1e-5, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("bias", ["column", "expanded", "rounded"])
def test_a_bias_that_onednn_cannot_take_is_left_to_torch(bias, fast_mkl):
    torch.manual_seed(0)
    layer, inputs = torch.nn.Linear(1024, 1056), torch.randn(16, 1024)
    made = {
        "column": torch.randn(1056, 2)[:, 1],
        "expanded": torch.tensor([3.0]).expand(1056),
        "rounded": torch.randn(1056, dtype=torch.float64).float(),
    }[bias]
    layer.bias = torch.nn.Parameter(made)
    with torch.inference_mode():
        expected = F.linear(inputs, layer.weight, made)
        torch.testing.assert_close(changed(layer)(inputs), expected, rtol=1e-5, atol=1e-4)


@needs_kernels
def test_a_layer_whose_class_another_thread_restores_computes_on():
    layer, inputs = torch.nn.Linear(1024, 1024), torch.randn(8, 1024)
    restore = use_kernels(layer)
    forward = layer.forward
    restore()
    with torch.inference_mode():
        torch.testing.assert_close(forward(inputs), layer(inputs), rtol=1e-5, atol=1e-5)


@needs_kernels
def test_a_class_that_somebody_else_has_changed_is_kept():
    layer = torch.nn.Linear(1024, 1024)
    restore = use_kernels(layer)
    torch.nn.utils.parametrizations.weight_norm(layer)
    restore()
    assert layer(torch.randn(2, 1024)).shape == (2, 1024)


@pytest.mark.parametrize(
    ("vendor", "is_fast"),
    [
        ("GenuineIntel", True),
        ("AuthenticAMD", False),
        ("HygonGenuine", False),
        ("  Shanghai  ", False),
        ("", True),
        ("QEMU", True),
    ],
)
def test_the_vendor_of_the_processor_chooses_the_kernels(vendor, is_fast, tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor : 0\nvendor_id\t: {vendor}\nmodel name\t: QEMU Virtual CPU\n")
    monkeypatch.setattr(linear_module, "_PROCESSORS", info)
    assert linear_module.has_fast_mkl.__wrapped__() is is_fast
    info.unlink()
    monkeypatch.setattr(linear_module.platform, "processor", lambda: f"AMD64 Family 25 Model 33 Stepping 0, {vendor}")
    assert linear_module.has_fast_mkl.__wrapped__() is is_fast


@needs_kernels
@pytest.mark.parametrize("change", ["written", "replaced", "moved"])
def test_a_packed_weight_that_changes_is_not_used(change, monkeypatch):
    """Without an engine that notices: a layer that is called directly computes with the weight that it has."""
    pretend_processor(monkeypatch, has_fast_mkl=False)
    torch.manual_seed(0)
    layer, rows = changed(torch.nn.Linear(1024, 1024)), torch.randn(8, 1024)
    copies = {id(layer.weight): PackedCopy(layer.weight)}
    with torch.no_grad(), packed_weights(copies):
        before, other = layer(rows), torch.randn(1024, 1024)
        if change == "written":
            layer.weight.copy_(other)
        elif change == "replaced":
            layer.weight = torch.nn.Parameter(other)
        else:
            layer.weight.data = other
        torch.testing.assert_close(layer(rows), F.linear(rows, other, layer.bias), rtol=1e-5, atol=1e-4)
        assert not torch.allclose(layer(rows), before)
