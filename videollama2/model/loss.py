"""Computes next-token cross entropy without ever holding the logits of all positions at once.

With a vocabulary of 152 000 tokens, the float32 logits of one position take 0.6 MB, and their gradient as much again.
Here the logits are computed for a few positions at a time, turned into loss and gradient at once, and discarded.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from torch.utils.checkpoint import checkpoint

CHUNK = 512
"""Number of positions whose logits exist at the same time."""


def linear_cross_entropy(
    hidden_ND: torch.Tensor, weight_VD: torch.Tensor, targets_N: torch.Tensor, chunk: int = CHUNK
) -> torch.Tensor:
    """Return the sum over N of the cross entropy between ``hidden @ weight.T`` and the targets, in float32.

    Equal to ``cross_entropy(hidden @ weight.T, targets, reduction="sum")`` up to the order of summation. Under autocast
    the product is computed in the autocast dtype, as in a linear layer.
    """
    kind = hidden_ND.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    else:
        dtype = torch.promote_types(hidden_ND.dtype, weight_VD.dtype)
    with torch.autocast(kind, enabled=False):
        return _LinearCrossEntropy.apply(hidden_ND, weight_VD, targets_N, chunk, dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes the gradients together with the loss, so that logits need be neither kept nor recomputed."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        targets_N: torch.Tensor,
        chunk: int,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        total = hidden_ND.new_zeros((), dtype=torch.float32)
        for_hidden, for_weight = ctx.needs_input_grad[:2]
        hidden_grad_ND = torch.empty_like(hidden_ND) if for_hidden else None
        # Rounding each chunk's gradient to 16 bits while adding them up would lose small ones.
        summed_in = torch.promote_types(weight_VD.dtype, torch.float32) if len(targets_N) > chunk else weight_VD.dtype
        weight_grad_VD = torch.zeros_like(weight_VD, dtype=summed_in) if for_weight else None
        weight_low_VD = weight_VD.to(dtype)
        for start in range(0, len(targets_N), chunk):
            part = slice(start, start + chunk)
            hidden_low_nD = hidden_ND[part].to(dtype)
            logits_nV = (hidden_low_nD @ weight_low_VD.T).float()
            total += F.cross_entropy(logits_nV, targets_N[part], reduction="sum")
            if hidden_grad_ND is None and weight_grad_VD is None:
                continue
            grad_nV = logits_nV.softmax(dim=-1)
            grad_nV[torch.arange(len(grad_nV), device=grad_nV.device), targets_N[part]] -= 1
            grad_nV = grad_nV.to(dtype)
            if hidden_grad_ND is not None:
                hidden_grad_ND[part] = grad_nV @ weight_low_VD
            if weight_grad_VD is not None:
                weight_grad_VD += grad_nV.T @ hidden_low_nD
            del logits_nV, grad_nV  # the next chunk would otherwise be computed beside them
        ctx.grads = (hidden_grad_ND, None if weight_grad_VD is None else weight_grad_VD.to(weight_VD.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (factor,) = grads
        hidden_grad_ND, weight_grad_VD = ctx.grads
        del ctx.grads
        # In place, because the gradient of the weight is as large as the output layer.
        scaled = [None if g is None else g.mul_(factor.to(g.dtype)) for g in (hidden_grad_ND, weight_grad_VD)]
        return (*scaled, None, None, None)


def token_cross_entropy(
    hidden_ND: torch.Tensor, head: nn.Module, targets_N: torch.Tensor, chunk: int = CHUNK
) -> torch.Tensor:
    """Return the cross entropy (N,) of each target, in float32, with which losses can weigh tokens as they like.

    The weights of the tokens are not known yet, so logits cannot become gradients at once, as they do in
    :func:`linear_cross_entropy`. They are computed again in the backward pass, a few positions at a time.

    Args:
        head: the output layer, which may be quantised.
    """

    def losses_n(hidden_nD: torch.Tensor, targets_n: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(head(hidden_nD).float(), targets_n, reduction="none")

    parts = zip(hidden_ND.split(chunk), targets_N.split(chunk), strict=True)
    return torch.cat([cast("torch.Tensor", checkpoint(losses_n, *part, use_reentrant=False)) for part in parts])
