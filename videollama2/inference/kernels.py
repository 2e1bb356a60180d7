"""Speeds up decode steps on CPUs: packed weights, and grouped attention.

Both compute in the model's dtype and differ from the default only in the order of summation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from videollama2.errors import ConfigError
from videollama2.inference.sizes import free_memory
from videollama2.model.linear import SMALLEST_PACKED, KernelLinear, PackedCopy, has_fast_mkl, is_suitable
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration

ATTENTION = "videollama2_grouped_sdpa"
"""The name under which :func:`grouped_attention` is registered with transformers."""

_LARGEST_SHARE_PACKED = 0.5
"""The share of the free memory that packed copies may take where nobody asked for them."""

_NOT_GROUPED = ("dropout", "softcap", "position_bias", "cache")
"""Arguments of transformers' ``sdpa`` attention that :func:`grouped_attention` leaves to it."""


# ------------------------------------------------------------------------------------------------------ packed weights


class PackedWeights:
    """Second copies of a decoder's large float32 weights, in the order in which oneDNN multiplies them.

    Without them, oneDNN rearranges a weight on every call. On an AMD EPYC, which multiplies with oneDNN always, they
    make a decode step 1.1 to 1.4 times as fast. On Intel's processors, which use them for 13 to 64 rows alone, a step
    of 16 rows of the 0.5B shapes is 1.2 times as fast.

    Args:
        model: one whose layers are :class:`~videollama2.model.linear.KernelLinear`.

    Raises:
        ConfigError: there is no weight that oneDNN would multiply, or no memory for the copies.
    """

    def __init__(self, model: VideoLlama2ForConditionalGeneration) -> None:
        self._layers = list(_large_layers(model))
        if not self._layers or not all(is_suitable(layer.weight) for layer in self._layers):
            raise ConfigError(
                f"packed weights need a float32 decoder on a CPU, with layers of at least {SMALLEST_PACKED:,} weights "
                "and a torch that has MKL and oneDNN"
            )
        needed, free = sum(layer.weight.nbytes for layer in self._layers), free_memory(torch.device("cpu"))
        if needed > free:
            raise ConfigError(f"packed weights take {needed >> 20} MiB, but only {free >> 20} MiB are free")
        self.copies: dict[int, PackedCopy] = {}
        """The copies by the ``id`` of their weight, for :func:`~videollama2.model.linear.packed_weights`."""
        self.renew()

    def renew(self) -> None:
        """Copy the weights again, because they have changed."""
        self.copies.clear()
        for weight_OI in (layer.weight for layer in self._layers):
            if is_suitable(weight_OI):
                self.copies[id(weight_OI)] = PackedCopy(weight_OI)

    def release(self) -> None:
        """Drop the copies for good."""
        self._layers.clear()
        self.copies.clear()


def pack_weights(model: VideoLlama2ForConditionalGeneration, wanted: bool | None) -> PackedWeights | None:
    """Pack the weights of a model if that is wanted, or, with None, if it pays here.

    Raises:
        ConfigError: see :class:`PackedWeights`.
    """
    return PackedWeights(model) if wanted or (wanted is None and _pays_to_pack(model)) else None


def _pays_to_pack(model: VideoLlama2ForConditionalGeneration) -> bool:
    """Return whether packed weights speed up every decode step here, and leave memory for other things."""
    layers = list(_large_layers(model))
    if not layers or has_fast_mkl() or not all(is_suitable(layer.weight) for layer in layers):
        return False
    needed = sum(layer.weight.nbytes for layer in layers)
    return needed <= _LARGEST_SHARE_PACKED * free_memory(torch.device("cpu"))


def _large_layers(model: VideoLlama2ForConditionalGeneration) -> Iterator[KernelLinear]:
    """Yield the linear layers of the decoder and the head whose weights are read from memory on each step."""
    for part in (model.model.language_model, model.lm_head):
        for module in part.modules():
            if isinstance(module, KernelLinear) and module.from_memory:
                yield module


# ------------------------------------------------------------------------------------------------------ attention


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute transformers' ``sdpa`` attention; on a CPU, heads that share their keys are computed together.

    For one new position, as in a decode step, the G query heads (B, H * G, 1, D) of each key head are given to the
    kernel as G positions: one head by itself is a product of a single row, which takes up to 1.5 times as long in
    float32, and on an AMD EPYC 8 to 10 times in bfloat16.

    For several, transformers repeats keys (B, H, K, D) for the G heads if there is a mask: reading and writing these
    copies takes longer than the attention itself. The kernels of CPUs do not need them; those of GPUs do in the
    presence of a mask.
    """
    group, count = getattr(module, "num_key_value_groups", 1), query.shape[2]
    is_grouped = group > 1 and query.device.type == "cpu" and not any(kwargs.get(name) for name in _NOT_GROUPED)
    scale = kwargs.get("scaling")
    if is_grouped and count == 1 and (attention_mask is None or attention_mask.shape[1] == 1):
        query_BHGD = query.view(len(query), -1, group, query.shape[3])
        mask_B1GK = None if attention_mask is None else attention_mask.expand(-1, 1, group, -1)
        output_BHGD = F.scaled_dot_product_attention(query_BHGD, key, value, attn_mask=mask_B1GK, scale=scale)
        return output_BHGD.reshape(len(query), 1, -1, query.shape[3]), None
    if is_grouped and count > 1 and attention_mask is not None:
        output_BHQD = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scale, enable_gqa=True
        )
        return output_BHQD.transpose(1, 2).contiguous(), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(ATTENTION, grouped_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
