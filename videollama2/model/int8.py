"""Defines linear layers and embeddings with 8-bit weights, for CPUs.

Each row of a weight has a scale of its own. Inputs are quantised while the model runs, each position with its own
scale, and are multiplied as integers, so what a position gets does not depend on what else is in the batch. The
products are exact; only inputs and weights are rounded, each to 127 steps of their largest value.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from functools import cache

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

SMALLEST_QUANTISED = 1 << 19
"""The number of elements from which a weight is quantised: with smaller ones, rounding the inputs takes longer than it
saves (one row of 512 x 512: 0.02 ms in float32 and 0.06 ms; of 1024 x 1024: 0.21 and 0.08 ms)."""

_INTEGER_FEATURES = ("amx_int8", "avx512_vnni", "avx_vnni")
"""Features of CPUs, as torch names them, that multiply 8-bit integers without overflow."""

# Steps are symmetric: -128 is never used, so that a value and its negative are rounded alike.
_STEPS = 127
_SHIFT = 128
"""What is added to the integers of inputs, so that they are unsigned. Processors with VNNI but without AMX multiply
unsigned inputs with signed weights alone; for signed ones oneDNN has a reference implementation there, which takes
7,000 times as long. oneDNN takes the shift off the products again, exactly, with the sums of the weight's rows."""

_AT_ONCE = 1 << 17
"""The number of values that are rounded at once, so that what lies between two operations stays in the cache."""

_BLOCK = 64
"""Rows of a weight that oneDNN packs together."""

_TALL = 30_000
"""The number of rows from which a weight is packed in pieces: a head, which has a row for every token."""

_PIECE = 16_384
"""The most rows of a piece. With half of it, a product of one row with a head takes 8 % longer."""

_FEW_ROWS = 4
"""Up to so many rows, a CPU that cannot multiply integers reads 8-bit weights faster than it restores them."""


def multiplies_integers() -> bool:
    """Return whether this CPU and this build of torch multiply 8-bit integers."""
    features = torch.cpu.get_capabilities()
    return torch.backends.mkldnn.is_available() and any(features.get(name) for name in _INTEGER_FEATURES)


def quantise_rows(values_MK: torch.Tensor, shift: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Round each row to 8-bit integers.

    Args:
        shift: added to the integers, which are unsigned then.

    Returns:
        integers (M, K), int8, or uint8 with a shift; and the float32 scales (M, 1) that restore the rows.
    """
    rows, width = values_MK.shape
    scales_M1 = torch.empty(rows, 1, dtype=torch.float32, device=values_MK.device)
    dtype = torch.uint8 if shift else torch.int8
    integers_MK = torch.empty(rows, width, dtype=dtype, device=values_MK.device)
    count = max(1, _AT_ONCE // max(width, 1))
    for start in range(0, rows, count):
        part = slice(start, start + count)
        floats_MK = values_MK[part].float()
        # A row of zeros keeps a scale above zero, and stays zero.
        scales = floats_MK.abs().amax(1, keepdim=True).div_(_STEPS).clamp_min_(torch.finfo(torch.float32).tiny)
        rounded_MK = (floats_MK * scales.reciprocal()).round_()
        integers_MK[part] = rounded_MK.add_(shift) if shift else rounded_MK
        scales_M1[part] = scales
    return integers_MK, scales_M1


# ------------------------------------------------------------------------------------------------- oneDNN's order


class RowPacker:
    """Brings weights into the order in which oneDNN multiplies them, as opaque tensors of oneDNN.

    oneDNN itself takes 5 ns for each weight, because it also sums each row, for which it has no fast routine. Where its
    order is the one known here (:func:`knows_order`), it packs only the first weight of each shape; the others are
    written over copies of that one, in 0.3 ns for each.
    """

    def __init__(self) -> None:
        self._first: dict[tuple[int, int], torch.Tensor] = {}

    def __call__(self, integers_OI: torch.Tensor) -> torch.Tensor:
        outputs, inputs = integers_OI.shape
        if not is_readable(outputs, inputs):
            return torch.ops.onednn.qlinear_prepack(integers_OI, None)
        if (outputs, inputs) not in self._first:
            packed = self._first[outputs, inputs] = torch.ops.onednn.qlinear_prepack(integers_OI, None)
            return packed
        # Python can copy a tensor of oneDNN but not make one: the copy brings the description of shape and order along,
        # and only its content is written over.
        packed = self._first[outputs, inputs].clone()
        words_BKR, sums_O = _contents(packed, inputs)
        words_BKR.copy_(_in_blocks(integers_OI))
        sums_O.copy_(_negative_sums(integers_OI))
        return packed


class PackedWeight:
    """The integers (O, I) of a weight as oneDNN multiplies them.

    A head is the only weight of its shape in a model, so that oneDNN itself would have to pack all of it, for seconds.
    It is therefore kept in pieces of :func:`piece_rows`, of which oneDNN packs the first, and the last if it is
    smaller; the others are written over copies of the first.

    Args:
        pieces: the integers of the pieces in order; each may be dropped when the next is asked for.
    """

    def __init__(self, pieces: Iterable[torch.Tensor], packer: RowPacker) -> None:
        self._pieces, sizes = [], []
        for piece_OI in pieces:
            sizes.append(piece_OI.shape)
            self._pieces.append(packer(piece_OI))
        (self._rows, self.inputs), self.outputs = sizes[0], sum(rows for rows, _ in sizes)
        self._zeros_O = torch.zeros(self._rows, dtype=torch.long)

    def multiply(self, integers_MI: torch.Tensor, scale_O: torch.Tensor) -> torch.Tensor:
        """Return the products with the rows of the weight, times their scales, float32 (M, O).

        Args:
            integers_MI: uint8, with a shift of :data:`_SHIFT`.
        """
        if len(self._pieces) == 1:
            return self._multiply(integers_MI, self._pieces[0], scale_O)
        rows_MO = torch.empty(len(integers_MI), self.outputs, dtype=torch.float32)
        parts = zip(rows_MO.split(self._rows, 1), self._pieces, scale_O.split(self._rows), strict=True)
        for part_MO, piece, part_O in parts:
            part_MO.copy_(self._multiply(integers_MI, piece, part_O))
        return rows_MO

    def _multiply(self, integers_MI: torch.Tensor, piece: torch.Tensor, scale_O: torch.Tensor) -> torch.Tensor:
        zeros_O = self._zeros_O[: len(scale_O)]
        # The operator knows one scale for all inputs. It is told 1, and the caller scales the rows.
        return torch.ops.onednn.qlinear_pointwise(
            integers_MI, 1.0, _SHIFT, piece, scale_O, zeros_O, None, 1.0, 0, torch.float32, "none", [], ""
        )

    def read(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows (*rows, I) of a weight that :func:`is_readable`."""
        integers = torch.empty(*rows.shape, self.inputs, dtype=torch.int8)
        pieces, rows = rows // self._rows, rows % self._rows
        for number in pieces.unique().tolist():
            is_here = pieces == number
            words_BKR, _ = _contents(self._pieces[number], self.inputs)
            words = words_BKR[rows[is_here] // _BLOCK, :, rows[is_here] % _BLOCK]
            integers[is_here] = words.contiguous().view(torch.int8)
        return integers


def piece_rows(outputs: int) -> int:
    """Return the number of rows of each piece, but perhaps the last, of a weight with so many outputs."""
    if outputs < _TALL:
        return outputs
    count = -(-outputs // _PIECE)
    return -(-outputs // (count * _BLOCK)) * _BLOCK


def is_readable(outputs: int, inputs: int) -> bool:
    """Return whether the order of a packed weight is known; it must fill its blocks, so that nothing is padding."""
    return outputs % _BLOCK == 0 and inputs % _BLOCK == 0 and multiplies_integers() and knows_order()


@cache
def knows_order() -> bool:
    """Return whether oneDNN packs weights on this processor in the order known here, found by packing one.

    In that order, which oneDNN calls ``BA16a64b4a``, a block holds 64 rows: the first four inputs of each row, then the
    next four of each, and so on. The negative sums of all rows, int32, follow behind the blocks.
    """
    side = 2 * _BLOCK
    integers_OI = torch.arange(side**2).remainder_(2 * _STEPS + 1).sub_(_STEPS).to(torch.int8).view(side, side)
    packed = torch.ops.onednn.qlinear_prepack(integers_OI, None)
    if torch.ops.mkldnn._nbytes(packed) != side * (side + 4):
        return False
    words_BKR, sums_O = _contents(packed, side)
    return torch.equal(words_BKR, _in_blocks(integers_OI)) and torch.equal(sums_O, _negative_sums(integers_OI))


def _in_blocks(integers_OI: torch.Tensor) -> torch.Tensor:
    """Return a view as words of four inputs, int32 (blocks, I / 4, rows of a block)."""
    return integers_OI.view(torch.int32).view(-1, _BLOCK, integers_OI.shape[1] // 4).transpose(1, 2)


def _negative_sums(integers_OI: torch.Tensor) -> torch.Tensor:
    # The sum converts all that it gets to its own type first.
    count = max(1, _AT_ONCE // integers_OI.shape[1])
    return torch.cat([part_OI.sum(1, dtype=torch.int32) for part_OI in integers_OI.split(count)]).neg_()


def _contents(packed: torch.Tensor, inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the memory of ``packed``, while it lives: words (blocks, I / 4, rows of a block) and sums (O,)."""
    size = torch.ops.mkldnn._nbytes(packed)
    # A row takes one byte for each input and four for its sum, so the size tells the number of rows.
    outputs = size // (inputs + 4)
    memory = (ctypes.c_byte * size).from_address(torch.ops.mkldnn.data_ptr(packed))
    words, sums_O = torch.frombuffer(memory, dtype=torch.int32).split((outputs * inputs // 4, outputs))
    return words.view(-1, inputs // 4, _BLOCK), sums_O


class Int8Linear(nn.Module):
    """A linear layer whose weight is kept in 8 bits; only for inference.

    Where the CPU multiplies integers, :meth:`pack` brings the weight into the order in which oneDNN reads it. Elsewhere
    the layer rounds the weight alone and computes in the dtype of its inputs.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=torch.int8), requires_grad=False)
        """The integers (O, I); empty once they are packed."""
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None
        # No buffers: a change of the model's dtype must not round them.
        self.scale_O = torch.empty(0)
        self.packed: PackedWeight | None = None
        """The integers in oneDNN's order; None where the processor does not multiply integers."""

    @classmethod
    def like(cls, layer: nn.Linear) -> Int8Linear:
        """Return an unloaded layer of the same shape."""
        return cls(layer.in_features, layer.out_features, layer.bias is not None)

    def pack(self, packer: RowPacker | None = None) -> None:
        """Reorder the loaded weight for the processor, where it multiplies integers.

        Args:
            packer: that of the other layers of the model, which is then faster.
        """
        if multiplies_integers():
            pieces = self.weight.data.split(piece_rows(self.out_features))
            self.packed = PackedWeight(pieces, packer or RowPacker())
            self.weight = nn.Parameter(torch.empty(0, dtype=torch.int8), requires_grad=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows_MI = inputs.reshape(-1, self.in_features)
        rows_MO = self._of_floats(rows_MI) if self.packed is None else self._of_integers(rows_MI, self.packed)
        return rows_MO.view(*inputs.shape[:-1], self.out_features)

    def _of_integers(self, rows_MI: torch.Tensor, packed: PackedWeight) -> torch.Tensor:
        integers_MI, scales_M1 = quantise_rows(rows_MI, _SHIFT)
        rows_MO = packed.multiply(integers_MI, self.scale_O)
        if self.bias is None:
            rows_MO.mul_(scales_M1)
        else:
            rows_MO = torch.addcmul(self.bias.float(), rows_MO, scales_M1)
        return rows_MO.to(rows_MI.dtype)

    def _of_floats(self, rows_MI: torch.Tensor) -> torch.Tensor:
        scale_O = self.scale_O.to(rows_MI.dtype)
        if len(rows_MI) <= _FEW_ROWS:
            rows_MO = torch.ops.aten._weight_int8pack_mm(rows_MI.contiguous(), self.weight, scale_O)
            return rows_MO if self.bias is None else rows_MO + self.bias
        return F.linear(rows_MI, self.weight.to(rows_MI.dtype) * scale_O.unsqueeze(1), self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Int8Embedding(nn.Module):
    """An embedding whose rows are kept in 8 bits, each with a scale of its own; only for inference."""

    def __init__(self, num_embeddings: int, embedding_dim: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.dtype = num_embeddings, embedding_dim, dtype
        self.weight = nn.Parameter(torch.empty(num_embeddings, embedding_dim, dtype=torch.int8), requires_grad=False)
        self.scale_O = torch.empty(0)
        self.packed: PackedWeight | None = None
        """The integers, which a head that is the same multiplies with; None if they are in ``weight``."""

    @classmethod
    def like(cls, layer: nn.Embedding) -> Int8Embedding:
        """Return an unloaded layer of the same shape and dtype."""
        return cls(layer.num_embeddings, layer.embedding_dim, layer.weight.dtype)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = self.weight[ids] if self.packed is None else self.packed.read(ids)
        return (rows * self.scale_O[ids].unsqueeze(-1)).to(self.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"
