"""Speeds up what the engine computes on CPUs: linear layers in float32, and grouped attention.

They compute in the model's dtype and differ from the default ones only in the order of summation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from videollama2.errors import ConfigError
from videollama2.inference.sizes import free_memory
from videollama2.inference.weights_watch import writes
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration

ATTENTION = "videollama2_grouped_sdpa"
"""The name under which :func:`grouped_attention` is registered with transformers."""

FEWEST_ROWS, MOST_ROWS = 4, 64
"""The numbers of rows between which Intel's processors multiply faster in other ways than torch's."""

MOST_ROWS_IN_BLOCKS = 12
"""The number of rows up to which they multiply with blocks of a weight."""

FEWEST_PRODUCTS = 1 << 20
"""The number of multiplications of two values from which oneDNN is faster than MKL on other processors, for a weight in
the caches. For one that is read from memory it always is."""

SMALLEST_PACKED = 3 << 18
"""The number of elements from which a weight is read from memory on each step: smaller ones stay in the caches."""

_SMALLEST_WITH_LARGE = 1 << 16
"""That number for models that have larger weights too, which leave no room in the caches."""

_SMALLEST = 1 << 14
"""The number of elements from which other processors than Intel's gain at all."""

_MOST_INPUTS_IN_BLOCKS = 8192
"""The number of inputs up to which blocks are faster: they become too large for the cache."""

_ROWS_PACKED_FOR = 8
"""The number of rows for which oneDNN chooses the order of a packed weight."""

_LARGEST_SHARE_PACKED = 0.5
"""The share of the free memory that packed copies may take where nobody asked for them."""

_NOT_GROUPED = ("dropout", "softcap", "position_bias", "cache")
"""Arguments of transformers' ``sdpa`` attention that :func:`grouped_attention` leaves to it."""


# ------------------------------------------------------------------------------------------------------ linear layers


class KernelLinear(nn.Linear):
    """A linear layer that multiplies float32 inputs on a CPU with the kernels that are fastest on this processor.

    torch multiplies float32 matrices with MKL, which has its fast kernels for Intel's processors alone. On others,
    oneDNN is used wherever a product is large enough: on an AMD EPYC (Zen 5) it is 2 to 3 times as fast.

    On Intel's processors the two are equal for many rows, and MKL is faster for one to three. With a few rows more, MKL
    copies the weight into an order of its own on every call, which costs more than the product. Up to
    :data:`MOST_ROWS_IN_BLOCKS` rows are therefore multiplied with blocks of the weight, see :func:`linear_in_blocks`,
    and up to :data:`MOST_ROWS` by oneDNN, whose copy takes less time. On a Xeon with AVX-512, 8 rows of a layer of
    4864 x 896 take 2.6 ms by themselves, 1.4 ms in blocks and 1.8 ms with oneDNN; reading the weight takes 1.2 ms.

    Where gradients are wanted, and in other dtypes, it computes what :class:`torch.nn.Linear` does.
    """

    from_memory: bool = False
    """Whether each decode step reads the weight from memory, since the caches cannot hold the model."""

    packed: PackedCopy | None = None
    """The weight in oneDNN's own order, if :class:`PackedWeights` has made it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight_OI = self.weight
        if not _is_for_kernels(input, weight_OI):
            return F.linear(input, weight_OI, self.bias)
        rows = input.numel() // self.in_features
        if has_fast_mkl():
            if not FEWEST_ROWS <= rows <= MOST_ROWS:
                return F.linear(input, weight_OI, self.bias)
            if _fits_blocks(rows, weight_OI):
                return linear_in_blocks(input, weight_OI, self.bias)
        elif rows == 0 or not (self.from_memory or rows * weight_OI.numel() >= FEWEST_PRODUCTS):
            return F.linear(input, weight_OI, self.bias)
        if self.packed is not None:
            weight_OI = self.packed.of(weight_OI)
        return torch.ops.mkldnn._linear_pointwise(input, weight_OI, self.bias, "none", [], "")


def use_kernels(model: nn.Module) -> Callable[[], None]:
    """Make the large linear layers of a model :class:`KernelLinear`; calling the result restores them."""
    layers = [module for module in model.modules() if type(module) is nn.Linear] if kernels_available() else []
    sizes = {layer: layer.weight.numel() for layer in layers if layer.weight.is_cpu}
    smallest = SMALLEST_PACKED if has_fast_mkl() else _SMALLEST
    is_large = any(size >= SMALLEST_PACKED for size in sizes.values())
    changed = [layer for layer, size in sizes.items() if size >= smallest]
    for layer in changed:
        layer.__class__ = KernelLinear
        cast("KernelLinear", layer).from_memory = is_large and sizes[layer] >= _SMALLEST_WITH_LARGE

    def restore() -> None:
        for layer in changed:
            for name in ("packed", "from_memory"):
                layer.__dict__.pop(name, None)
            layer.__class__ = nn.Linear

    return restore


@cache
def has_fast_mkl() -> bool:
    """Return whether this is a processor of Intel, for which alone MKL has its fast kernels."""
    return "intel" in str(torch.cpu.get_capabilities().get("cpu_name", "")).lower()


def kernels_available() -> bool:
    """Return whether this build of torch multiplies with MKL and has oneDNN beside it."""
    return torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()


def _is_for_kernels(inputs: torch.Tensor, weight_OI: torch.Tensor) -> bool:
    return (
        inputs.dtype == torch.float32
        and inputs.is_cpu
        and not torch.is_grad_enabled()
        and _is_suitable(weight_OI)
        and not torch.is_autocast_enabled("cpu")
    )


def _is_suitable(weight_OI: torch.Tensor) -> bool:
    """Return whether oneDNN multiplies this kind of weight."""
    return (
        weight_OI.dtype == torch.float32
        and weight_OI.is_cpu
        # Subclasses are wrappers, such as quantised weights, whose memory is not what oneDNN expects.
        and type(weight_OI) in (torch.Tensor, nn.Parameter)
        and weight_OI.is_contiguous()
    )


def linear_in_blocks(inputs: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
    """Compute a linear layer as a batch of products with blocks of the weight's rows.

    What MKL copies of a block stays in the cache of a core until it is multiplied. On the Xeon of
    :class:`KernelLinear`, each value is the same to the bit as that of a single product of two to twelve rows.

    Args:
        inputs: (..., I), of which the first dimensions together are few rows.
        weight_OI: a contiguous weight; O must be a multiple of :func:`_block`.
    """
    outputs, width = weight_OI.shape
    size = _block(width)
    rows_MI = inputs.reshape(-1, width)
    blocks_NIS = weight_OI.view(-1, size, width).transpose(1, 2)
    products_NMS = torch.bmm(rows_MI.expand(len(blocks_NIS), *rows_MI.shape), blocks_NIS)
    result = products_NMS.transpose(0, 1).reshape(*inputs.shape[:-1], outputs)
    return result if bias_O is None else result + bias_O


def _fits_blocks(rows: int, weight_OI: torch.Tensor) -> bool:
    outputs, width = weight_OI.shape
    return rows <= MOST_ROWS_IN_BLOCKS and width <= _MOST_INPUTS_IN_BLOCKS and outputs % _block(width) == 0


def _block(inputs: int) -> int:
    """Return how many rows of a weight with so many inputs are a block of about 100,000 elements."""
    return 32 if inputs <= 2048 else 16


# ------------------------------------------------------------------------------------------------------ packed weights


class PackedWeights:
    """Second copies of a decoder's large float32 weights, in the order in which oneDNN multiplies them.

    Without them, oneDNN rearranges a weight on every call. On an AMD EPYC, which multiplies with oneDNN always, they
    make a decode step up to 1.9 times as fast. On Intel's processors, which use them for 13 to 64 rows alone, a step of
    16 rows of the 0.5B shapes is 1.2 times as fast.

    Args:
        model: one whose layers are :class:`KernelLinear`.

    Raises:
        ConfigError: there is no weight that oneDNN would multiply, or no memory for the copies.
    """

    def __init__(self, model: VideoLlama2ForConditionalGeneration) -> None:
        self._layers = list(_large_layers(model))
        if not self._layers or not all(_is_suitable(layer.weight) for layer in self._layers):
            raise ConfigError(
                f"packed weights need a float32 decoder on a CPU, with layers of at least {SMALLEST_PACKED:,} weights "
                "and a torch that has MKL and oneDNN"
            )
        needed, free = sum(layer.weight.nbytes for layer in self._layers), free_memory(torch.device("cpu"))
        if needed > free:
            raise ConfigError(f"packed weights take {needed >> 20} MiB, but only {free >> 20} MiB are free")
        self.renew()

    def renew(self) -> None:
        """Copy the weights again, because they have changed."""
        for layer in self._layers:
            layer.packed = PackedCopy(layer.weight) if _is_suitable(layer.weight) else None


class PackedCopy:
    """A float32 weight in oneDNN's order, for as long as the weight stays what it was.

    ``deepcopy`` and ``pickle`` make None of it: Python cannot copy a tensor of oneDNN, and a copied layer has another
    weight.
    """

    def __init__(self, weight_OI: torch.Tensor) -> None:
        # The memory that was copied is kept, so that no other weight can get its address.
        self._source_OI, self._writes = weight_OI.detach(), writes(weight_OI)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(self._source_OI, _ROWS_PACKED_FOR)

    def of(self, weight_OI: torch.Tensor) -> torch.Tensor:
        """Return the packed weight, or the given one if it was written to or replaced."""
        is_same = weight_OI.data_ptr() == self._source_OI.data_ptr() and writes(weight_OI) == self._writes
        return self._packed if is_same else weight_OI

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _no_copy, ()


def _no_copy() -> None:
    return None


def pack_weights(model: VideoLlama2ForConditionalGeneration, wanted: bool | None) -> PackedWeights | None:
    """Pack the weights of a model if that is wanted, or, with None, if it pays here.

    Raises:
        ConfigError: see :class:`PackedWeights`.
    """
    return PackedWeights(model) if wanted or (wanted is None and _pays_to_pack(model)) else None


def _pays_to_pack(model: VideoLlama2ForConditionalGeneration) -> bool:
    """Return whether packed weights speed up every decode step here, and leave memory for other things."""
    layers = list(_large_layers(model))
    needed, free = sum(layer.weight.nbytes for layer in layers), free_memory(torch.device("cpu"))
    fits = needed <= _LARGEST_SHARE_PACKED * free and all(_is_suitable(layer.weight) for layer in layers)
    return bool(layers) and fits and not has_fast_mkl()


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
    kernel as G positions: one head by itself is a product of a single row, which takes up to 1.4 times as long in
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
