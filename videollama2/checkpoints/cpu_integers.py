"""Weights of 8 and 4 bits on a CPU: quantises a model while its weights are read.

:mod:`videollama2.model.int8` and :mod:`videollama2.model.int4` have the layers. transformers calls the quantiser as it
calls those of other libraries. One weight at a time is in floating point, so loading takes no more memory than the
quantised model.
"""

from __future__ import annotations

import warnings
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
                integers_OI, module.scales_GO2 = int4.quantise_groups(weight_OI)
                integers_OI = int4.pack(integers_OI)
            else:
                integers_OI, scales_O1 = quantise_rows(weight_OI)
                module.scale_O = scales_O1.squeeze(1)
            result[name] = nn.Parameter(integers_OI, requires_grad=False)
        return result


register_quantization_config(METHOD)(CpuIntegerConfig)
register_quantizer(METHOD)(CpuIntegerQuantizer)
