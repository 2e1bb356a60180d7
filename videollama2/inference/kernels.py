"""Faster CPU kernels for the shapes that the engine computes: few rows against large weights, and grouped attention.

They compute in the model's dtype and differ from the default ones only in the order of summation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

ATTENTION = "videollama2_grouped_sdpa"
"""The name under which :func:`grouped_attention` is registered with transformers."""

FEWEST_ROWS, MOST_ROWS = 4, 32
"""The numbers of rows between which :class:`FewRows` is faster."""

SMALLEST_WEIGHT = 1 << 20
"""The number of elements from which it is: smaller weights stay in the caches, and calling oneDNN takes longer."""

_NOT_GROUPED = ("dropout", "softcap", "position_bias", "cache")
"""Arguments of transformers' ``sdpa`` attention that :func:`grouped_attention` leaves to it."""


class FewRows(TorchFunctionMode):
    """Inside this context, linear layers with few float32 rows on a CPU are computed by oneDNN in place of MKL.

    MKL copies the weight of such a product into an order of its own on every call, which costs more than the product:
    on a Xeon with AVX-512, 8 rows of a layer of 4864 x 896 take 4.2 ms with MKL, 2.5 ms with oneDNN and 1.4 ms as the
    time in which the weight is read. For one to three rows MKL does not copy, and for many rows the copy is negligible.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear and not kwargs and _is_faster(args[0], args[1]):
            bias = args[2] if len(args) > 2 else None
            return torch.ops.mkldnn._linear_pointwise(args[0], args[1], bias, "none", [], "")
        return func(*args, **(kwargs or {}))


def _is_faster(inputs: torch.Tensor, weight_OI: torch.Tensor) -> bool:
    return (
        FEWEST_ROWS <= inputs.numel() // max(inputs.shape[-1], 1) <= MOST_ROWS
        and weight_OI.numel() >= SMALLEST_WEIGHT
        and inputs.dtype == weight_OI.dtype == torch.float32
        and inputs.device.type == weight_OI.device.type == "cpu"
        and type(weight_OI) in (torch.Tensor, torch.nn.Parameter)
        and weight_OI.is_contiguous()
    )


def few_rows_available() -> bool:
    """Return whether this build of torch multiplies with MKL and has oneDNN beside it."""
    return torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()


def has_large_layers(decoder: torch.nn.Module) -> bool:
    """Return whether :class:`FewRows` would compute any layer, so that small models are spared its calls."""
    layers = (module for module in decoder.modules() if isinstance(module, torch.nn.Linear))
    return any(layer.weight.numel() >= SMALLEST_WEIGHT for layer in layers)


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute transformers' ``sdpa`` attention; on a CPU, keys and values are not copied for each head of a group.

    transformers repeats keys (B, H, K, D) for the G query heads that share each of them if there are a mask and several
    new positions: reading and writing these copies takes longer than the attention itself. The kernels of CPUs do not
    need them; those of GPUs do in the presence of a mask.
    """
    grouped = getattr(module, "num_key_value_groups", 1) > 1 and query.shape[2] > 1 and query.device.type == "cpu"
    if not grouped or attention_mask is None or any(kwargs.get(name) for name in _NOT_GROUPED):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    output_BHQD = F.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=kwargs.get("scaling"), enable_gqa=True
    )
    return output_BHQD.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, grouped_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
