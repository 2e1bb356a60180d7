"""Multiplies float32 matrices on a CPU with the library that is fastest on its processor.

The results differ from those of torch's own kernels only in the order of summation.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import RLock
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from videollama2.garbage_collection import paused

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

_PROCESSORS = Path("/proc/cpuinfo")

_OTHER_VENDORS = ("AuthenticAMD", "HygonGenuine", "CentaurHauls", "Shanghai")
"""Vendors of x86 processors besides Intel, as the processors tell them, without blanks around them."""


def linear(
    inputs: torch.Tensor,
    weight_OI: torch.Tensor,
    bias_O: torch.Tensor | None = None,
    from_memory: bool = False,
) -> torch.Tensor:
    """Compute a linear layer; for float32 inputs on a CPU, with the kernels that are fastest on this processor.

    torch multiplies float32 matrices with MKL, which has its fast kernels for Intel's processors alone. On others,
    oneDNN is used wherever a product is large enough: on an AMD EPYC (Zen 5) it is twice as fast for many rows.

    On Intel's processors the two are equal for many rows, and MKL is faster for one to three. With a few rows more, MKL
    copies the weight into an order of its own on every call, which costs more than the product. Up to
    :data:`MOST_ROWS_IN_BLOCKS` rows are therefore multiplied with blocks of the weight, see :func:`linear_in_blocks`,
    and up to :data:`MOST_ROWS` by oneDNN, whose copy takes less time. On a Xeon with AVX-512, 8 rows of a layer of
    4864 x 896 take 2.6 ms by themselves, 1.4 ms in blocks and 1.8 ms with oneDNN; reading the weight takes 1.2 ms.

    Where gradients are wanted, and in other dtypes, the result is that of :func:`torch.nn.functional.linear`.

    Args:
        from_memory: whether the weight is read from memory, rather than from the caches.
    """
    if not _is_for_kernels(inputs, weight_OI, bias_O):
        return F.linear(inputs, weight_OI, bias_O)
    rows = inputs.numel() // weight_OI.shape[1]
    if has_fast_mkl():
        if not FEWEST_ROWS <= rows <= MOST_ROWS or weight_OI.numel() < SMALLEST_PACKED:
            return F.linear(inputs, weight_OI, bias_O)
        if _fits_blocks(rows, weight_OI):
            return linear_in_blocks(inputs, weight_OI, bias_O)
    elif rows == 0 or not (from_memory or rows * weight_OI.numel() >= FEWEST_PRODUCTS):
        return F.linear(inputs, weight_OI, bias_O)
    if (copies := _in_use.copies) is not None and (copy := copies.get(id(weight_OI))) is not None:
        weight_OI = copy.of(weight_OI)
    return torch.ops.mkldnn._linear_pointwise(inputs, weight_OI, bias_O, "none", [], "")


class KernelLinear(nn.Linear):
    """A linear layer that computes with :func:`linear`."""

    from_memory: bool = False
    """Whether each decode step reads the weight from memory, since the caches cannot hold the model."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        # Another thread may be restoring the class.
        return linear(input, self.weight, self.bias, vars(self).get("from_memory", False))


_users: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""The number of callers of :func:`use_kernels` that have not restored a layer yet."""

_lock = RLock()


@contextmanager
def changing_models() -> Iterator[None]:
    """Let no other thread change what several engines share of a model.

    An engine that nobody closes restores its model when it is collected, which may happen at any line of this thread.
    The collector is paused, so that it does not happen in the middle; and should it, the lock lets the thread through.
    """
    with paused(), _lock:
        yield


def use_kernels(model: nn.Module) -> Callable[[], None]:
    """Make the large linear layers of a model :class:`KernelLinear`; calling the result restores them.

    Layers that several callers use are restored by the last of them.
    """
    kinds = (nn.Linear, KernelLinear)
    layers = [module for module in model.modules() if type(module) in kinds] if kernels_available() else []
    weights = {layer: layer.get_parameter("weight") for layer in layers}
    sizes = {layer: weight_OI.numel() for layer, weight_OI in weights.items() if weight_OI.is_cpu}
    smallest = SMALLEST_PACKED if has_fast_mkl() else _SMALLEST
    is_large = any(size >= SMALLEST_PACKED for size in sizes.values())
    used = [layer for layer, size in sizes.items() if size >= smallest]
    with changing_models():
        for layer in used:
            _users[layer] = _users.get(layer, 0) + 1
            layer.__class__ = KernelLinear
            vars(layer)["from_memory"] = is_large and sizes[layer] >= _SMALLEST_WITH_LARGE

    def restore() -> None:
        with changing_models():
            for layer in used:
                _users[layer] = _users.get(layer, 1) - 1
                kind: type[nn.Module] = type(layer)
                # Somebody else may have changed the class meanwhile, as parametrizations do.
                if _users[layer] <= 0 and kind is KernelLinear:
                    layer.__class__ = nn.Linear
                    vars(layer).pop("from_memory", None)

    return restore


@cache
def has_fast_mkl() -> bool:
    """Return whether MKL has fast kernels for this processor: it has them for Intel's alone.

    MKL asks the processor for its vendor, not for its name, which a hypervisor may choose. Where the system does not
    tell the vendor, nothing is changed.
    """
    lines = _PROCESSORS.read_text(encoding="utf-8", errors="replace").splitlines() if _PROCESSORS.is_file() else []
    vendors = [line.partition(":")[2] for line in lines if line.startswith("vendor_id")]
    # Elsewhere, as in "AMD64 Family 25 Model 33 Stepping 0, AuthenticAMD".
    vendor = vendors[0] if vendors else platform.processor()
    return vendor.rpartition(", ")[2].strip() not in _OTHER_VENDORS


@cache
def kernels_available() -> bool:
    """Return whether this build of torch multiplies with MKL and has oneDNN beside it."""
    return torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()


def _is_for_kernels(inputs: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> bool:
    return (
        inputs.dtype == torch.float32
        and inputs.is_cpu
        and not torch.is_grad_enabled()
        and kernels_available()
        and is_suitable(weight_OI)
        # oneDNN takes the memory of the bias as it lies there.
        and (bias_O is None or is_suitable(bias_O))
        and not torch.is_autocast_enabled("cpu")
    )


def is_suitable(tensor: torch.Tensor) -> bool:
    """Return whether oneDNN can take a weight or bias as it is."""
    return (
        tensor.dtype == torch.float32
        and tensor.is_cpu
        # Subclasses are wrappers, such as quantised weights, whose memory is not what oneDNN expects.
        and type(tensor) in (torch.Tensor, nn.Parameter)
        and tensor.is_contiguous()
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
    """A float32 weight in oneDNN's order, for as long as the weight stays what it was."""

    def __init__(self, weight_OI: torch.Tensor) -> None:
        # The memory that was copied is kept, so that no other weight can get its address.
        self._source_OI, self._writes = weight_OI.detach(), writes(weight_OI)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(self._source_OI, _ROWS_PACKED_FOR)

    def of(self, weight_OI: torch.Tensor) -> torch.Tensor:
        """Return the packed weight, or the given one if it was written to or replaced."""
        is_same = weight_OI.data_ptr() == self._source_OI.data_ptr() and writes(weight_OI) == self._writes
        return self._packed if is_same else weight_OI


class _InUse(threading.local):
    copies: Mapping[int, PackedCopy] | None = None


_in_use = _InUse()


@contextmanager
def packed_weights(copies: Mapping[int, PackedCopy] | None) -> Iterator[None]:
    """Let layers that this thread computes in the block use packed copies of weights.

    Only the owner of the copies knows whether they are up to date: a write through ``weight.data``, as of a merged
    adapter, is not seen in the weight itself. Whoever else calls the model computes with the weights.

    Args:
        copies: by the ``id`` of the weight.
    """
    before, _in_use.copies = _in_use.copies, copies
    try:
        yield
    finally:
        _in_use.copies = before


def writes(weight: torch.Tensor) -> int:
    """Return how often torch has seen a weight being written to."""
    # Tensors made in inference mode have no version counter.
    return 0 if weight.is_inference() else weight._version
