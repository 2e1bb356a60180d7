"""8-bit weights on a CPU: quantises a model with :mod:`videollama2.model.int8` while its weights are read.

transformers calls the quantiser as it calls those of other libraries. One weight at a time is in floating point, so
loading takes no more memory than the quantised model.
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

from videollama2.model.int8 import SMALLEST_WEIGHT, Int8Embedding, Int8Linear, quantise_rows

METHOD = "videollama2_cpu_int8"
"""The name of the method in transformers."""

NOT_QUANTISED = ("mm_projector", "mm_projector_a", "audio_tower")
"""Modules that stay as they are: connectors are mostly convolutions, and the audio encoder is small."""


class CpuInt8Config(QuantizationConfigMixin):
    """The request for 8-bit weights on a CPU.

    Args:
        smallest_weight: the number of elements from which a weight is quantised; by default :data:`SMALLEST_WEIGHT`.
    """

    load_in_4bit, load_in_8bit = False, True

    def __init__(self, smallest_weight: int | None = None, **_: Any) -> None:
        self.quant_method = METHOD  # pyright: ignore[reportAttributeAccessIssue] - annotated for its own methods
        self.smallest_weight = SMALLEST_WEIGHT if smallest_weight is None else smallest_weight


class CpuInt8Quantizer(HfQuantizer):
    """Replaces linear layers and token embeddings by those with 8-bit weights."""

    quantization_config: CpuInt8Config

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        path, _, name = param_name.rpartition(".")
        return name == "weight" and isinstance(model.get_submodule(path), (Int8Linear, Int8Embedding))

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
            warnings.warn(
                f"no layer has the {smallest} weights from which 8 bits pay: all stay as they are", stacklevel=2
            )
        for path, module in found.items():
            with torch.device("meta"):
                new = Int8Linear.like(module) if isinstance(module, nn.Linear) else Int8Embedding.like(module)
            model.set_submodule(path, new)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        embeddings = model.get_input_embeddings()
        for module in model.modules():
            if isinstance(module, Int8Linear):
                if module.weight is embeddings.weight:  # a head that shares the embeddings
                    module.scale_O = embeddings.scale_O
                module.pack()
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
            integers_OI, scales_O1 = quantise_rows(value[0] if isinstance(value, list) else value)
            model.get_submodule(name.rpartition(".")[0]).scale_O = scales_O1.squeeze(1)
            result[name] = nn.Parameter(integers_OI, requires_grad=False)
        return result


register_quantization_config(METHOD)(CpuInt8Config)
register_quantizer(METHOD)(CpuInt8Quantizer)
