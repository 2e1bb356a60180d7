"""Defines linear layers with 4-bit weights, for CPUs.

Every :data:`GROUP` weights of a row share a scale and an offset. Few rows of inputs, as in decoding, go to a kernel of
torch that reads the 4 bits: it is limited by memory, of which it reads an eighth of float32. For many rows, as in a
prompt, that kernel takes twice the time of float32, since it restores the weights for every few rows anew. These are
multiplied with weights that are restored once, a block of outputs at a time.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from videollama2.errors import ConfigError

GROUP = 64
"""The number of weights of a row with one scale and offset; inputs of a layer must be a multiple."""

OUTPUTS = 64
"""Outputs of a layer must be a multiple: the kernel's order of weights has blocks of so many on processors with AVX."""

_FEW_ROWS = 64
"""Up to so many rows, the kernel takes less time (0.12 ms a row at 4864 x 896) than restoring the weight (8 ms)."""

_RESTORED = 1024
"""The number of outputs whose weights are restored at once."""

_MIDDLE = 8
"""The integer, from 0 to 15, that stands for the offset itself."""


def fits(layer: nn.Linear) -> bool:
    """Return whether a layer's shape can be kept in 4 bits."""
    return layer.in_features % GROUP == 0 and layer.out_features % OUTPUTS == 0


def quantise_groups(weight_OI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round each group to 16 steps from its least to its largest value.

    Returns:
        integers from 0 to 15, int32 (O, I); and bfloat16 (I / GROUP, O, 2), the scale and the offset that restore a
        weight as (integer - 8) * scale + offset.
    """
    outputs, inputs = weight_OI.shape
    groups_OGK = weight_OI.float().view(outputs, inputs // GROUP, GROUP)
    least_OG, largest_OG = groups_OGK.amin(-1), groups_OGK.amax(-1)
    # A group of equal values keeps a scale above zero. Rounding uses the scales as bfloat16 stores them.
    scale_OG = ((largest_OG - least_OG) / 15).clamp_min_(1e-9).bfloat16()
    offset_OG = (least_OG + _MIDDLE * scale_OG.float()).bfloat16()
    steps_OGK = (groups_OGK - offset_OG.float().unsqueeze(-1)) / scale_OG.float().unsqueeze(-1) + _MIDDLE
    # The scale was rounded, so that the largest value of a group may come out a step above 15.
    integers_OI = steps_OGK.round_().clamp_(0, 15).to(torch.int32).view(outputs, inputs)
    return integers_OI, torch.stack((scale_OG, offset_OG), -1).transpose(0, 1).contiguous()


def pack_int4(integers_OI: torch.Tensor) -> torch.Tensor:
    """Bring integers from 0 to 15 into the kernel's order, two to a byte (O, I / 2)."""
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers_OI, 1)


@cache
def kernel_order() -> tuple[int, bool]:
    """Return how this processor's kernel orders weights: outputs per block, and whether a byte holds neighbours.

    In a block, the weights of all its outputs for one input stand together. A byte holds those of outputs ``n`` and
    ``n + 1``, or of ``n`` and the one half a block later.

    Raises:
        ConfigError: this build of torch has another order.
    """
    integers_OI = torch.randint(0, 16, (2 * OUTPUTS, GROUP), dtype=torch.int32, generator=torch.Generator())
    packed = pack_int4(integers_OI)
    for outputs in (64, 32, 16):
        for is_paired in (False, True):
            # torch does not say which order its kernel wants, and it differs with the processor. So random integers are
            # packed, and every order that is known is tried until one gives them back.
            blocks = unpack(packed.view(-1, GROUP, outputs // 2), is_paired, torch.int32)
            if torch.equal(blocks.transpose(1, 2).reshape_as(integers_OI), integers_OI):
                return outputs, is_paired
    raise ConfigError("this build of torch packs 4-bit weights in an order that is not known here; use --load-8bit")


def unpack(bytes_BIN: torch.Tensor, is_paired: bool, dtype: torch.dtype) -> torch.Tensor:
    """Return the integers of blocks of bytes (B, I, N), of which each holds two, as (B, I, 2N)."""
    *shape, half = bytes_BIN.shape
    integers = torch.empty(*shape, 2 * half, dtype=dtype)
    lower, upper = (slice(0, None, 2), slice(1, None, 2)) if is_paired else (slice(half), slice(half, None))
    integers[..., lower], integers[..., upper] = bytes_BIN & 15, bytes_BIN >> 4
    return integers


class Int4Linear(nn.Module):
    """A linear layer whose weight is kept in 4 bits; only for inference.

    Args:
        many_dtype: dtype in which many rows are multiplied; few rows are always rounded to bfloat16.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, many_dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features, self.many_dtype = in_features, out_features, many_dtype
        packed = torch.empty(out_features, in_features // 2, dtype=torch.uint8)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None
        # No buffer: a change of the model's dtype must not convert it.
        self.scales_GO2 = torch.empty(0)

    @classmethod
    def like(cls, layer: nn.Linear, many_dtype: torch.dtype) -> Int4Linear:
        """Return an unloaded layer of the same shape."""
        return cls(layer.in_features, layer.out_features, layer.bias is not None, many_dtype)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows_MI = inputs.reshape(-1, self.in_features)
        rows_MO = self._few(rows_MI) if len(rows_MI) <= _FEW_ROWS else self._many(rows_MI)
        rows_MO = rows_MO.to(inputs.dtype)
        if self.bias is not None:
            rows_MO = rows_MO + self.bias.to(inputs.dtype)
        return rows_MO.view(*inputs.shape[:-1], self.out_features)

    def _few(self, rows_MI: torch.Tensor) -> torch.Tensor:
        rows_MI = rows_MI.bfloat16().contiguous()
        return torch.ops.aten._weight_int4pack_mm_for_cpu(rows_MI, self.weight, GROUP, self.scales_GO2)

    def _many(self, rows_MI: torch.Tensor) -> torch.Tensor:
        rows_MI = rows_MI.to(self.many_dtype)
        # A block of outputs is restored, used and dropped, so that a prompt needs the memory of one block of float
        # weights and not of the whole layer.
        rows_MO = rows_MI.new_empty(len(rows_MI), self.out_features)
        for start in range(0, self.out_features, _RESTORED):
            end = min(start + _RESTORED, self.out_features)
            rows_MO[:, start:end] = rows_MI @ self.restored(start, end)
        return rows_MO

    def restored(self, start: int, end: int) -> torch.Tensor:
        """Return the weights of the outputs from ``start`` to ``end``, multiples of :data:`OUTPUTS`, as (I, O)."""
        outputs, is_paired = kernel_order()
        bytes_BIN = self.weight.data[start:end].view(-1, self.in_features, outputs // 2)
        weight_BGKN = unpack(bytes_BIN, is_paired, self.many_dtype).view(len(bytes_BIN), -1, GROUP, outputs)
        # weight = (integer - 8) * scale + offset, in two steps on the memory of the integers: integer * scale, then +
        # (offset - 8 * scale).
        scales_BG2N = self.scales_GO2[:, start:end].view(-1, len(bytes_BIN), outputs, 2).permute(1, 0, 3, 2).float()
        scale_BG1N, offset_BG1N = scales_BG2N.split(1, 2)
        weight_BGKN *= scale_BG1N.to(self.many_dtype)
        weight_BGKN += (offset_BG1N - _MIDDLE * scale_BG1N).to(self.many_dtype)
        return weight_BGKN.view(-1, self.in_features, outputs).transpose(0, 1).reshape(self.in_features, -1)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
