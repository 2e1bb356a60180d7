"""The loss of the output layer in parts equals the one over all positions, value and gradients."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from videollama2.model.loss import linear_cross_entropy


def both(count, dtype=torch.float64, chunk=5):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(count, 8, generator=generator, dtype=dtype)
    weight = torch.randn(40, 8, generator=generator, dtype=dtype)
    targets = torch.randint(0, 40, (count,), generator=generator)
    results = []
    for ours in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if ours:
            loss = linear_cross_entropy(h, w, targets, chunk=chunk)
        else:
            loss = F.cross_entropy((h @ w.T).float(), targets, reduction="sum")
        (loss / 7).backward()
        results.append((loss.detach(), h.grad, w.grad))
    return results


@pytest.mark.parametrize("count", [1, 5, 13])
def test_equals_cross_entropy_over_all_positions(count):
    ours, plain = both(count)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_no_position_at_all():
    (loss, hidden_grad, weight_grad), _ = both(0)
    assert loss == 0
    assert hidden_grad.shape == (0, 8)
    assert not weight_grad.any()


def test_frozen_output_layer_gets_no_gradient():
    hidden = torch.randn(4, 8, requires_grad=True)
    weight = torch.randn(40, 8)
    linear_cross_entropy(hidden, weight, torch.tensor([1, 2, 3, 4])).backward()
    assert weight.grad is None
    assert hidden.grad.abs().sum() > 0


def test_gradients_of_many_chunks_are_added_in_float32():
    """In bfloat16 the sum would stop growing once a chunk's gradient is below its last digit."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2000, 8, generator=generator).bfloat16()
    weight = torch.randn(40, 8, generator=generator).bfloat16()
    targets = torch.randint(0, 3, (2000,), generator=generator)
    errors = []
    exact = weight.double().requires_grad_()
    F.cross_entropy(hidden.double() @ exact.T, targets, reduction="sum").backward()
    for chunk in (5, 2000):
        learning = weight.clone().requires_grad_()
        linear_cross_entropy(hidden, learning, targets, chunk=chunk).backward()
        assert learning.grad.dtype == torch.bfloat16
        errors.append((learning.grad.double() - exact.grad).norm() / exact.grad.norm())
    assert errors[0] <= 1.2 * errors[1]


def test_autocast_computes_logits_in_its_type():
    """As a linear layer would: float32 weights, bfloat16 product, float32 loss and gradients."""
    hidden, weight = torch.randn(9, 8, requires_grad=True), torch.randn(40, 8, requires_grad=True)
    targets = torch.arange(9)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets)
        plain = F.cross_entropy((hidden @ weight.T).float(), targets, reduction="sum")
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    ours = torch.autograd.grad(loss, (hidden, weight))
    for a, b in zip(ours, torch.autograd.grad(plain, (hidden, weight)), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.02)
