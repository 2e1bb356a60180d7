"""Multiplies float32 matrices on a CPU with the library that is fastest on its processor.

The results differ from those of torch's own kernels only in the order of summation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

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


def linear(
    inputs: torch.Tensor,
    weight_OI: torch.Tensor,
    bias_O: torch.Tensor | None = None,
    from_memory: bool = False,
    packed: PackedCopy | None = None,
) -> torch.Tensor:
    """Compute a linear layer; for float32 inputs on a CPU, with the kernels that are fastest on this processor.

    torch multiplies float32 matrices with MKL, which has its fast kernels for Intel's processors alone. On others,
    oneDNN is used wherever a product is large enough: on an AMD EPYC (Zen 5) it is 2 to 3 times as fast.

    On Intel's processors the two are equal for many rows, and MKL is faster for one to three. With a few rows more, MKL
    copies the weight into an order of its own on every call, which costs more than the product. Up to
    :data:`MOST_ROWS_IN_BLOCKS` rows are therefore multiplied with blocks of the weight, see :func:`linear_in_blocks`,
    and up to :data:`MOST_ROWS` by oneDNN, whose copy takes less time. On a Xeon with AVX-512, 8 rows of a layer of
    4864 x 896 take 2.6 ms by themselves, 1.4 ms in blocks and 1.8 ms with oneDNN; reading the weight takes 1.2 ms.

    Where gradients are wanted, and in other dtypes, the result is that of :func:`torch.nn.functional.linear`.

    Args:
        from_memory: whether the weight is read from memory, rather than from the caches.
        packed: a copy of the weight in oneDNN's own order.
    """
    if not _is_for_kernels(inputs, weight_OI):
        return F.linear(inputs, weight_OI, bias_O)
    rows = inputs.numel() // weight_OI.shape[1]
    if has_fast_mkl():
        if not FEWEST_ROWS <= rows <= MOST_ROWS or weight_OI.numel() < SMALLEST_PACKED:
            return F.linear(inputs, weight_OI, bias_O)
        if _fits_blocks(rows, weight_OI):
            return linear_in_blocks(inputs, weight_OI, bias_O)
    elif rows == 0 or not (from_memory or rows * weight_OI.numel() >= FEWEST_PRODUCTS):
        return F.linear(inputs, weight_OI, bias_O)
    if packed is not None:
        weight_OI = packed.of(weight_OI)
    return torch.ops.mkldnn._linear_pointwise(inputs, weight_OI, bias_O, "none", [], "")


class KernelLinear(nn.Linear):
    """A linear layer that computes with :func:`linear`."""

    from_memory: bool = False
    """Whether each decode step reads the weight from memory, since the caches cannot hold the model."""

    packed: PackedCopy | None = None
    """The weight in oneDNN's own order, for decode steps."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self.weight, self.bias, self.from_memory, self.packed)


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


@cache
def kernels_available() -> bool:
    """Return whether this build of torch multiplies with MKL and has oneDNN beside it."""
    return torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()


def _is_for_kernels(inputs: torch.Tensor, weight_OI: torch.Tensor) -> bool:
    return (
        inputs.dtype == torch.float32
        and inputs.is_cpu
        and not torch.is_grad_enabled()
        and kernels_available()
        and is_suitable(weight_OI)
        and not torch.is_autocast_enabled("cpu")
    )


def is_suitable(weight_OI: torch.Tensor) -> bool:
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
    :func:`linear`, each value is the same to the bit as that of a single product of two to twelve rows.

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


def writes(weight: torch.Tensor) -> int:
    """Return how often torch has seen a weight being written to."""
    # Tensors made in inference mode have no version counter.
    return 0 if weight.is_inference() else weight._version
