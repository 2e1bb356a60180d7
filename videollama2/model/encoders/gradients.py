"""Completes and scales gradients of parts that do not run in every pass, or that learn more slowly than others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class ScaleGradient(torch.autograd.Function):
    """An identity whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0] * ctx.scale, None


def zero_of(modules: Sequence[nn.Module], like: torch.Tensor) -> torch.Tensor:
    """Return a zero that depends on the modules' trainable weights, because DDP waits for the gradient of each.

    Args:
        like: a tensor of the result's type and device.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    total = sum((p.sum() * 0.0 for p in parameters), start=like.new_zeros(()))
    return torch.as_tensor(total).to(like.dtype)


def is_sliced(module: nn.Module) -> bool:
    """Whether DeepSpeed's ZeRO-3 keeps only slices of the module's weights on each process."""
    return any(hasattr(parameter, "ds_id") for parameter in module.parameters())
