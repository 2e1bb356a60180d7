"""Linear layers and embeddings with 8-bit weights, for CPUs.

Each row of a weight has a scale of its own. Inputs are quantised while the model runs, each position with its own
scale, and are multiplied as integers, so what a position gets does not depend on what else is in the batch. The
products are exact; only inputs and weights are rounded, each to 127 steps of their largest value.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

SMALLEST_WEIGHT = 1 << 19
"""The number of elements from which a weight is quantised: with smaller ones, rounding the inputs takes longer than it
saves (one row of 512 x 512: 0.02 ms in float32 and 0.06 ms; of 1024 x 1024: 0.21 and 0.08 ms)."""

_INTEGER_FEATURES = ("amx_int8", "avx512_vnni", "avx_vnni")
"""Features of CPUs, as torch names them, that multiply 8-bit integers without overflow."""

_STEPS = 127
_AT_ONCE = 1 << 17
"""The number of values that are rounded at once, so that what lies between two operations stays in the cache."""

_FEW_ROWS = 4
"""Up to so many rows, a CPU that cannot multiply integers reads 8-bit weights faster than it restores them."""


def multiplies_integers() -> bool:
    """Return whether this CPU and this build of torch multiply 8-bit integers."""
    features = torch.cpu.get_capabilities()
    return torch.backends.mkldnn.is_available() and any(features.get(name) for name in _INTEGER_FEATURES)


def quantise_rows(values_MK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round each row to 8-bit integers; returns them (M, K) and the float32 scales (M, 1) that restore the row."""
    rows, width = values_MK.shape
    largest_M1 = torch.maximum(values_MK.amax(1, keepdim=True), -values_MK.amin(1, keepdim=True))
    # A row of zeros keeps a scale above zero, and stays zero.
    scales_M1 = largest_M1.float().div_(_STEPS).clamp_min_(torch.finfo(torch.float32).tiny)
    steps_M1 = scales_M1.reciprocal()
    integers_MK = torch.empty(rows, width, dtype=torch.int8, device=values_MK.device)
    count = max(1, _AT_ONCE // max(width, 1))
    for start in range(0, rows, count):
        part = slice(start, start + count)
        integers_MK[part] = (values_MK[part] * steps_M1[part]).round_()
    return integers_MK, scales_M1


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
        self._zeros_O = torch.empty(0)
        self._packed: torch.Tensor | None = None

    @classmethod
    def like(cls, layer: nn.Linear) -> Int8Linear:
        """Return an unloaded layer of the same shape."""
        return cls(layer.in_features, layer.out_features, layer.bias is not None)

    def pack(self) -> None:
        """Reorder the loaded weight for the processor, where it multiplies integers."""
        if multiplies_integers():
            self._packed = torch.ops.onednn.qlinear_prepack(self.weight.data, None)
            self._zeros_O = torch.zeros(self.out_features, dtype=torch.long)
            self.weight = nn.Parameter(torch.empty(0, dtype=torch.int8), requires_grad=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows_MI = inputs.reshape(-1, self.in_features)
        rows_MO = self._of_integers(rows_MI) if self._packed is not None else self._of_floats(rows_MI)
        return rows_MO.view(*inputs.shape[:-1], self.out_features)

    def _of_integers(self, rows_MI: torch.Tensor) -> torch.Tensor:
        integers_MI, scales_M1 = quantise_rows(rows_MI)
        # The operator knows one scale for all inputs. It is told 1, and the rows are scaled behind it.
        rows_MO = torch.ops.onednn.qlinear_pointwise(
            integers_MI, 1.0, 0, self._packed, self.scale_O, self._zeros_O, None, 1.0, 0, torch.float32, "none", [], ""
        )
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

    @classmethod
    def like(cls, layer: nn.Embedding) -> Int8Embedding:
        """Return an unloaded layer of the same shape and dtype."""
        return cls(layer.num_embeddings, layer.embedding_dim, layer.weight.dtype)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return (self.weight[ids] * self.scale_O[ids].unsqueeze(-1)).to(self.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"
