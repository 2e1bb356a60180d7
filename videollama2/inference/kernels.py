"""Speeds up the shapes that the engine computes on CPUs: few rows against large weights, and grouped attention.

They compute in the model's dtype and differ from the default ones only in the order of summation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from videollama2.errors import ConfigError
from videollama2.inference.sizes import free_memory
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration

ATTENTION = "videollama2_grouped_sdpa"
"""The name under which :func:`grouped_attention` is registered with transformers."""

FEWEST_ROWS, MOST_ROWS = 4, 64
"""The numbers of rows between which :class:`FewRows` is faster."""

MOST_ROWS_IN_BLOCKS = 12
"""The number of rows up to which it multiplies with blocks of a weight."""

SMALLEST_PACKED = 3 << 18
"""The number of elements of a weight from which it is faster: smaller ones stay in the caches."""

_MOST_INPUTS_IN_BLOCKS = 8192
"""The number of inputs up to which blocks are faster: they become too large for the cache."""

_ROWS_PACKED_FOR = 8
"""The number of rows for which oneDNN chooses the order of a packed weight."""

_NOT_GROUPED = ("dropout", "softcap", "position_bias", "cache")
"""Arguments of transformers' ``sdpa`` attention that :func:`grouped_attention` leaves to it."""


class FewRows(TorchFunctionMode):
    """Inside this context, linear layers with few float32 rows on a CPU are computed in faster ways than torch's.

    MKL copies the weight of such a product into an order of its own on every call, which costs more than the product.
    (For one to three rows it does not, and for many rows the copy is negligible.) Up to :data:`MOST_ROWS_IN_BLOCKS`
    rows are multiplied by MKL with blocks of the weight, see :func:`linear_in_blocks`, and more rows by oneDNN, whose
    copy takes less time. On a Xeon with AVX-512, 8 rows of a layer of 4864 x 896 take 2.6 ms by themselves, 1.4 ms in
    blocks and 1.8 ms with oneDNN; reading the weight takes 1.2 ms.

    Args:
        packed: weights that are in oneDNN's own order already.
    """

    def __init__(self, packed: PackedWeights | None = None) -> None:
        super().__init__()
        self._packed = packed

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Every torch function of the forward pass comes through here, so the test begins with what rules out most of
        # them.
        if func is F.linear and not kwargs and _is_faster(args[0], args[1]):
            inputs, weight_OI, bias = args[0], args[1], args[2] if len(args) > 2 else None
            if _fits_blocks(inputs, weight_OI):
                return linear_in_blocks(inputs, weight_OI, bias)
            if self._packed is not None:
                weight_OI = self._packed.get(weight_OI)
            return torch.ops.mkldnn._linear_pointwise(inputs, weight_OI, bias, "none", [], "")
        return func(*args, **(kwargs or {}))


def linear_in_blocks(inputs: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
    """Compute a linear layer as a batch of products with blocks of the weight's rows.

    What MKL copies of a block stays in the cache of a core until it is multiplied. On the Xeon of :class:`FewRows`,
    each value is the same to the bit as that of a single product of two to twelve rows.

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


class PackedWeights:
    """Second copies of a decoder's large float32 weights, in the order in which oneDNN multiplies them.

    Without them, oneDNN rearranges a weight on every call. A step of 16 rows of the 0.5B shapes takes 1.2 times as long
    then. Steps of up to :data:`MOST_ROWS_IN_BLOCKS` rows do not use them.

    Raises:
        ConfigError: there is no weight that oneDNN would multiply, or no memory for the copies.
    """

    def __init__(self, model: VideoLlama2ForConditionalGeneration) -> None:
        weights = list(_large_weights(model.model.language_model, model.lm_head))
        if not few_rows_available() or not all(map(_is_suitable, weights)) or not weights:
            raise ConfigError(
                f"packed weights need a float32 decoder on a CPU, with layers of at least {SMALLEST_PACKED:,} weights "
                "and a torch that has MKL and oneDNN"
            )
        needed, free = sum(weight.nbytes for weight in weights), free_memory(torch.device("cpu"))
        if needed > free:
            raise ConfigError(f"packed weights take {needed >> 20} MiB, but only {free >> 20} MiB are free")
        self._model = model
        # Each weight is kept beside its copy, so that no other tensor can get its id.
        self._copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.renew()

    def renew(self) -> None:
        """Copy the weights again, because they have changed."""
        self._copies.clear()
        for weight_OI in _large_weights(self._model.model.language_model, self._model.lm_head):
            if _is_suitable(weight_OI):
                packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach(), _ROWS_PACKED_FOR)
                self._copies[id(weight_OI)] = weight_OI, packed

    def get(self, weight_OI: torch.Tensor) -> torch.Tensor:
        """Return the copy of a weight, or the weight itself if it has none."""
        kept = self._copies.get(id(weight_OI))
        return weight_OI if kept is None else kept[1]


def _fits_blocks(inputs: torch.Tensor, weight_OI: torch.Tensor) -> bool:
    outputs, width = weight_OI.shape
    few = inputs.numel() <= MOST_ROWS_IN_BLOCKS * width
    return few and width <= _MOST_INPUTS_IN_BLOCKS and outputs % _block(width) == 0


def _block(inputs: int) -> int:
    """Return how many rows of a weight with so many inputs are a block of about 100,000 elements."""
    return 32 if inputs <= 2048 else 16


def _is_faster(inputs: torch.Tensor, weight_OI: torch.Tensor) -> bool:
    return (
        FEWEST_ROWS <= inputs.numel() // max(inputs.shape[-1], 1) <= MOST_ROWS
        and weight_OI.numel() >= SMALLEST_PACKED
        and inputs.dtype == torch.float32
        and inputs.device.type == "cpu"
        and _is_suitable(weight_OI)
    )


def _is_suitable(weight_OI: torch.Tensor) -> bool:
    """Return whether oneDNN multiplies this kind of weight."""
    return (
        weight_OI.dtype == torch.float32
        and weight_OI.device.type == "cpu"
        # Subclasses are wrappers, such as quantised weights, whose memory is not what oneDNN expects.
        and type(weight_OI) in (torch.Tensor, torch.nn.Parameter)
        and weight_OI.is_contiguous()
    )


def few_rows_available() -> bool:
    """Return whether this build of torch multiplies with MKL and has oneDNN beside it."""
    return torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()


def has_large_layers(decoder: torch.nn.Module) -> bool:
    """Return whether :class:`FewRows` would compute any layer, so that small models are spared its calls."""
    return any(True for _ in _large_weights(decoder))


def _large_weights(*parts: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Yield the weights of linear layers that are large enough for :class:`FewRows`."""
    for module in (module for part in parts for module in part.modules()):
        if isinstance(module, torch.nn.Linear) and module.weight.numel() >= SMALLEST_PACKED:
            yield module.weight


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
