"""Layers that keep their weights in the 16 bits in which checkpoints store them, for CPUs; only for inference.

They compute in the dtype of their inputs. A weight is converted when the layer is used, some outputs at a time. From
bfloat16 or float16 to float32, that is exact: the result is that of float32 weights, which take twice the memory. It
takes 0.4 ns for each weight, which a connector multiplies with thousands of positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from videollama2.model.linear import linear

_AT_ONCE = 1 << 24
"""The number of weights that are converted at once: 64 MiB of float32."""


class _StoredWeight(nn.Module):
    """What the layers below have in common: ``stored`` is the weight, and ``weight`` is empty once it is loaded.

    Were it a parameter, its dtype would say in which dtype the layer computes. In a ``state_dict`` it is the weight.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    stored: torch.Tensor | None = None

    def keep(self, weight: torch.Tensor) -> nn.Parameter:
        """Take the weight as a file stores it; returns what ``weight`` becomes.

        One of more than 16 bits is converted to the dtype that the layer was made with.
        """
        self.stored = weight.clone() if weight.dtype.itemsize == 2 else weight.to(self.weight.dtype, copy=True)
        return nn.Parameter(torch.empty(0, dtype=self.weight.dtype), requires_grad=False)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.stored is not None:
            destination[f"{prefix}weight"] = self.stored

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        weight = state_dict.get(f"{prefix}weight")
        if self.stored is not None and weight is not None and weight.shape == self.stored.shape:
            self.weight = self.keep(weight)
            state_dict = {**state_dict, f"{prefix}weight": self.weight}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _parts(self, dtype: torch.dtype) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Yield the weight in ``dtype`` and the bias of some outputs after the other."""
        assert self.stored is not None, "the weight was not loaded"
        outputs = len(self.stored)
        count = max(1, _AT_ONCE * outputs // self.stored.numel())
        for start in range(0, outputs, count):
            part = slice(start, start + count)
            yield self.stored[part].to(dtype), None if self.bias is None else self.bias[part].to(dtype)


class StoredLinear(_StoredWeight, nn.Linear):
    """A linear layer of this kind."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _joined([linear(input, *part) for part in self._parts(input.dtype)], -1)


class StoredConv2d(_StoredWeight, nn.Conv2d):
    """A two-dimensional convolution of this kind, of one group."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _joined([self._conv_forward(input, *part) for part in self._parts(input.dtype)], 1)


class StoredConv3d(_StoredWeight, nn.Conv3d):
    """A three-dimensional convolution of this kind, of one group."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _joined([self._conv_forward(input, *part) for part in self._parts(input.dtype)], 1)


StoredLayer = StoredLinear | StoredConv2d | StoredConv3d


def stored_like(layer: nn.Module) -> StoredLayer | None:
    """Return an unloaded layer of the same shape and dtype; None for a layer of another kind."""
    if type(layer) is nn.Linear:
        return StoredLinear(layer.in_features, layer.out_features, layer.bias is not None, dtype=layer.weight.dtype)
    kinds: dict[type[nn.Module], Any] = {nn.Conv2d: StoredConv2d, nn.Conv3d: StoredConv3d}
    if type(layer) not in kinds or getattr(layer, "groups", 1) != 1:
        return None
    same = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode")
    options = {name: getattr(layer, name) for name in same}
    return kinds[type(layer)](**options, bias=layer.bias is not None, dtype=layer.get_parameter("weight").dtype)


def _joined(parts: list[torch.Tensor], dim: int) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
