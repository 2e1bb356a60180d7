"""Weights of 8 and 4 bits on a CPU: quantises a model while its weights are read.

:mod:`videollama2.model.int8` and :mod:`videollama2.model.int4` have the layers. transformers calls the quantiser as it
calls those of other libraries. One weight at a time is in floating point, so loading takes no more memory than the
quantised model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from videollama2.checkpoints.placement import bfloat16_feature
from videollama2.model import int4
from videollama2.model.int4 import Int4Linear
from videollama2.model.int8 import SMALLEST_WEIGHT, Int8Embedding, Int8Linear, RowPacker, quantise_rows

METHOD = "videollama2_cpu_integers"
"""The name of the method in transformers."""

NOT_QUANTISED = ("mm_projector", "mm_projector_a", "audio_tower")
"""Modules that stay as they are: connectors are mostly convolutions, and the audio encoder is small."""

IN_4_BITS = "layers"
"""The part of a path that 4 bits are for: layers of the decoder. Its embeddings and head get 8 bits, as does the vision
encoder (whose layers are part of ``vision_tower``), because their 4-bit errors cost more and save little."""

_AT_ONCE = 1 << 20
"""The number of weights that a thread rounds before it takes the next ones."""


class CpuIntegerConfig(QuantizationConfigMixin):
    """The request for integer weights on a CPU.

    Args:
        bits: 8; or 4 for the decoder's layers.
        smallest_weight: the number of elements from which a weight is quantised; by default :data:`SMALLEST_WEIGHT`.
    """

    def __init__(self, bits: int = 8, smallest_weight: int | None = None, **_: Any) -> None:
        self.quant_method = METHOD  # pyright: ignore[reportAttributeAccessIssue] - annotated for its own methods
        self.bits = bits
        self.load_in_4bit, self.load_in_8bit = bits == 4, bits == 8
        self.smallest_weight = SMALLEST_WEIGHT if smallest_weight is None else smallest_weight


class CpuIntegerQuantizer(HfQuantizer):
    """Replaces linear layers and token embeddings by those with integer weights."""

    quantization_config: CpuIntegerConfig
    takes_stored_dtype = True
    """Weights are rounded from the dtype in which they are stored, see ``VideoLlama2PreTrainedModel``."""

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        path, _, name = param_name.rpartition(".")
        return name == "weight" and isinstance(model.get_submodule(path), (Int4Linear, Int8Linear, Int8Embedding))

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        embeddings, smallest = model.get_input_embeddings(), self.quantization_config.smallest_weight
        found = {
            path: module
            for path, module in model.named_modules()
            if (type(module) is nn.Linear or module is embeddings)
            and module.weight.numel() >= smallest
            and set(NOT_QUANTISED).isdisjoint(path.split("."))
        }
        if not found:
            bits = self.quantization_config.bits
            warnings.warn(
                f"no layer has the {smallest} weights from which {bits} bits pay: all stay as they are", stacklevel=2
            )
        for path, module in found.items():
            with torch.device("meta"):
                model.set_submodule(path, self._replacement(path, module))

    def _replacement(self, path: str, module: nn.Module) -> nn.Module:
        if not isinstance(module, nn.Linear):
            return Int8Embedding.like(module)  # pyright: ignore[reportArgumentType] - the token embeddings
        parts = path.split(".")
        is_decoder = IN_4_BITS in parts and "vision_tower" not in parts
        if self.quantization_config.bits == 4 and is_decoder and int4.fits(module):
            return Int4Linear.like(module, torch.float32 if bfloat16_feature() is None else torch.bfloat16)
        return Int8Linear.like(module)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        embeddings, packer = model.get_input_embeddings(), RowPacker()
        for module in model.modules():
            if isinstance(module, Int8Linear):
                is_shared = module.weight is embeddings.weight
                if is_shared:
                    module.scale_O = embeddings.scale_O
                module.pack(packer)
                if is_shared:
                    embeddings.share(module.packed)
        return model

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantise()

    def is_serializable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride] - the base has no annotation
        return False

    @property
    def is_trainable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride] - the base has no annotation
        return False


class _Quantise(ConversionOps):
    """Rounds a weight that was read, and gives its module the scales."""

    def convert(self, input_dict: dict[str, Any], *args: Any, model: Any = None, **kwargs: Any) -> dict[str, Any]:
        result = {}
        for name, value in input_dict.items():
            weight_OI = value[0] if isinstance(value, list) else value
            module = model.get_submodule(name.rpartition(".")[0])
            if isinstance(module, Int4Linear):
                integers, module.scales_GO2 = in_4_bits(weight_OI)
            else:
                integers, module.scale_O = in_8_bits(weight_OI)
            result[name] = nn.Parameter(integers, requires_grad=False)
        return result


def in_8_bits(weight_OI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a weight as :func:`quantise_rows` does; returns integers, int8 (O, I), and scales (O,)."""
    integers_OI = torch.empty(weight_OI.shape, dtype=torch.int8)
    scale_O = torch.empty(len(weight_OI), dtype=torch.float32)

    def work(rows: slice) -> None:
        integers_OI[rows], scales_O1 = quantise_rows(weight_OI[rows])
        scale_O[rows] = scales_O1.squeeze(1)

    _on_threads(work, weight_OI.shape)
    return integers_OI, scale_O


def in_4_bits(weight_OI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a weight as :func:`int4.quantise_groups` does.

    Returns:
        the integers in the kernel's order, uint8 (O, I / 2), and bfloat16 scales and offsets (I / GROUP, O, 2).
    """
    outputs, inputs = weight_OI.shape
    packed = torch.empty(outputs, inputs // 2, dtype=torch.uint8)
    scales_GO2 = torch.empty(inputs // int4.GROUP, outputs, 2, dtype=torch.bfloat16)

    def work(rows: slice) -> None:
        integers_OI, scales_GO2[:, rows] = int4.quantise_groups(weight_OI[rows])
        packed[rows] = int4.pack(integers_OI)

    _on_threads(work, weight_OI.shape)
    return packed, scales_GO2


def _on_threads(work: Callable[[slice], None], shape: torch.Size) -> None:
    """Call ``work`` with parts of the rows of a weight, on as many threads as torch uses.

    Rounding is a chain of short operations. torch divides each of them among its threads and waits for all, and where
    another program has one of the cores, most of the time is waiting. Here, a thread takes rows of its own through the
    whole chain.
    """
    outputs, inputs = shape
    count = max(1, _AT_ONCE // inputs // int4.OUTPUTS) * int4.OUTPUTS
    threads, is_inference = torch.get_num_threads(), torch.is_inference_mode_enabled()

    def call(start: int) -> None:
        with torch.inference_mode(is_inference):  # otherwise, tensors made in that mode could not be written
            work(slice(start, start + count))

    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(call, range(0, outputs, count)))
    finally:
        torch.set_num_threads(threads)  # threads set it for those that start later, too


register_quantization_config(METHOD)(CpuIntegerConfig)
register_quantizer(METHOD)(CpuIntegerQuantizer)
