"""Quantises a model for a CPU, to weights of 8 and 4 bits, while these are read.

:mod:`videollama2.model.int8` and :mod:`videollama2.model.int4` have the layers. transformers calls the quantiser as it
calls those of other libraries. One weight at a time is in floating point, so loading takes no more memory than the
quantised model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from videollama2.checkpoints.placement import is_bfloat16_faster
from videollama2.model import int4
from videollama2.model.int4 import Int4Linear
from videollama2.model.int8 import (
    SMALLEST_QUANTISED,
    Int8Embedding,
    Int8Linear,
    PackedWeight,
    RowPacker,
    is_readable,
    multiplies_integers,
    piece_rows,
    quantise_rows,
)
from videollama2.model.stored import StoredLayer, stored_like

_CONVERTED = (Int4Linear, Int8Linear, Int8Embedding, StoredLayer)
"""The layers whose weights are converted as they are read."""

METHOD = "videollama2_cpu_integers"
"""The name of the method in transformers."""

CONNECTORS = ("mm_projector", "mm_projector_a")
"""Modules whose weights are not rounded, but kept in 16 bits if they are stored so: they are mostly convolutions."""

NOT_ROUNDED = (*CONNECTORS, "audio_tower")
"""Modules whose weights are not rounded. The audio encoder is small, and stays as it is."""

IN_4_BITS = "layers"
"""The part of a path that 4 bits are for: layers of the decoder. Its embeddings and head get 8 bits, as does the vision
encoder (whose layers are part of ``vision_tower``), because their 4-bit errors cost more and save little."""

_AT_ONCE = 1 << 20
"""The number of weights that a thread rounds before it takes the next ones."""


class CpuIntegerConfig(QuantizationConfigMixin):
    """The request for integer weights on a CPU.

    Args:
        bits: 8; or 4 for the decoder's layers.
        smallest_weight: the number of elements from which a weight is quantised; by default :data:`SMALLEST_QUANTISED`.
    """

    def __init__(self, bits: int = 8, smallest_weight: int | None = None, **_: Any) -> None:
        self.quant_method = METHOD  # pyright: ignore[reportAttributeAccessIssue] - annotated for its own methods
        self.bits = bits
        self.load_in_4bit, self.load_in_8bit = bits == 4, bits == 8
        self.smallest_weight = SMALLEST_QUANTISED if smallest_weight is None else smallest_weight


class CpuIntegerQuantizer(HfQuantizer):
    """Replaces linear layers and token embeddings by those with integer weights."""

    quantization_config: CpuIntegerConfig
    takes_stored_dtype = True
    """Weights are rounded from the dtype in which they are stored, see ``VideoLlama2PreTrainedModel``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._packer = RowPacker()
        self._misfits: set[str] = set()

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        path, _, name = param_name.rpartition(".")
        # transformers compares the shapes of all other weights and reports those that do not fit.
        is_converted = name == "weight" and isinstance(model.get_submodule(path), _CONVERTED)
        return is_converted and param_name not in self._misfits

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        embeddings, smallest = model.get_input_embeddings(), self.quantization_config.smallest_weight
        found = {
            path: module
            for path, module in model.named_modules()
            if (type(module) is nn.Linear or module is embeddings)
            and module.weight.numel() >= smallest
            and set(NOT_ROUNDED).isdisjoint(path.split("."))
        }
        if not found:
            bits = self.quantization_config.bits
            warnings.warn(
                f"no layer has the {smallest} weights from which {bits} bits pay: all stay as they are", stacklevel=2
            )
        for path, module in found.items():
            # The replacements need no memory of their own: they get the integers that are made of the file's weights.
            with torch.device("meta"):
                model.set_submodule(path, self._replacement(path, module))
        self._keep_connectors(model)

    def _keep_connectors(self, model: nn.Module) -> None:
        """Replace the large layers of connectors by those that keep weights as they are stored."""
        for path, module in list(model.named_modules()):
            if set(CONNECTORS).isdisjoint(path.split(".")):
                continue
            with torch.device("meta"):
                kept = stored_like(module)
            if kept is not None and kept.weight.numel() >= self.quantization_config.smallest_weight:
                model.set_submodule(path, kept)

    def _replacement(self, path: str, module: nn.Module) -> nn.Module:
        if not isinstance(module, nn.Linear):
            return Int8Embedding.like(module)  # pyright: ignore[reportArgumentType] - the token embeddings
        parts = path.split(".")
        is_decoder = IN_4_BITS in parts and "vision_tower" not in parts
        if self.quantization_config.bits == 4 and is_decoder and int4.fits(module):
            return Int4Linear.like(module, torch.bfloat16 if is_bfloat16_faster() else torch.float32)
        return Int8Linear.like(module)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        embeddings = model.get_input_embeddings()
        for module in model.modules():
            # Only the embeddings were read where the head is the same.
            if isinstance(module, Int8Linear) and module.weight is embeddings.weight:
                module.scale_O, module.packed = embeddings.scale_O, embeddings.packed
                if module.packed is None:
                    module.pack()
        return model

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantise(self._packer, self._misfits)

    def is_serializable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride] - the base has no annotation
        return False

    @property
    def is_trainable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride] - the base has no annotation
        return False


class _Quantise(ConversionOps):
    """Rounds a weight that was read, and gives its module the scales, and the integers in the processor's order.

    Args:
        misfits: gets the names of weights of another shape than the model's, which stay as they are.
    """

    def __init__(self, packer: RowPacker, misfits: set[str]) -> None:
        self._packer, self._misfits = packer, misfits

    def convert(self, input_dict: dict[str, Any], *args: Any, model: Any = None, **kwargs: Any) -> dict[str, Any]:
        result = {}
        for name, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            module = model.get_submodule(name.rpartition(".")[0])
            if weight.shape != _shape(module):
                self._misfits.add(name)
                result[name] = weight
            elif isinstance(module, StoredLayer):
                result[name] = module.keep(weight)
            else:
                with one_thread() as threads:
                    integers = self._rounded(module, weight, model, threads)
                result[name] = nn.Parameter(integers, requires_grad=False)
        return result

    def _rounded(self, module: Any, weight_OI: torch.Tensor, model: Any, threads: int) -> torch.Tensor:
        """Round a weight, give its module what belongs to the integers, and return these, unless they are packed."""
        if isinstance(module, Int4Linear):
            integers, module.scales_GO2 = in_4_bits(weight_OI, threads)
        elif _is_packed(module, model):
            module.packed, module.scale_O = self._packed(weight_OI, threads)
            integers = torch.empty(0, dtype=torch.int8)
        else:
            integers, module.scale_O = in_8_bits(weight_OI, threads)
        return integers

    def _packed(self, weight_OI: torch.Tensor, threads: int) -> tuple[PackedWeight, torch.Tensor]:
        """Return the packed integers and the scales (O,). One piece at a time is in the order of rows."""
        scales: list[torch.Tensor] = []

        def pieces() -> Iterator[torch.Tensor]:
            for part_OI in weight_OI.split(piece_rows(len(weight_OI))):
                integers_OI, scale_O = in_8_bits(part_OI, threads)
                scales.append(scale_O)
                yield integers_OI

        packed = PackedWeight(pieces(), self._packer)
        return packed, torch.cat(scales)


def _shape(module: Any) -> torch.Size:
    """Return the shape of a module's weight in a checkpoint."""
    if isinstance(module, Int4Linear):
        return torch.Size((module.out_features, module.in_features))
    return module.weight.shape


def _is_packed(module: nn.Module, model: Any) -> bool:
    """Whether the integers of a module are kept as the processor multiplies them, and not by rows."""
    if isinstance(module, Int8Embedding):
        # Its rows are for a head that is the same, and looked up in its order.
        return model.config.tie_word_embeddings and is_readable(module.num_embeddings, module.embedding_dim)
    return multiplies_integers()


@contextmanager
def one_thread() -> Iterator[int]:
    """Let torch compute on one thread inside the block, and yield how many it may use.

    Rounding and packing are chains of short operations. torch divides each of them among its threads and waits for all,
    and where another program has one of the cores, most of the time is waiting.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def in_8_bits(weight_OI: torch.Tensor, threads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a weight as :func:`quantise_rows` does; returns integers, int8 (O, I), and scales (O,)."""
    integers_OI = torch.empty(weight_OI.shape, dtype=torch.int8)
    scale_O = torch.empty(len(weight_OI), dtype=torch.float32)

    def work(rows: slice) -> None:
        integers_OI[rows], scales_O1 = quantise_rows(weight_OI[rows])
        scale_O[rows] = scales_O1.squeeze(1)

    _on_threads(work, weight_OI.shape, threads)
    return integers_OI, scale_O


def in_4_bits(weight_OI: torch.Tensor, threads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a weight as :func:`int4.quantise_groups` does.

    Returns:
        the integers in the kernel's order, uint8 (O, I / 2), and bfloat16 scales and offsets (I / GROUP, O, 2).
    """
    outputs, inputs = weight_OI.shape
    packed = torch.empty(outputs, inputs // 2, dtype=torch.uint8)
    scales_GO2 = torch.empty(inputs // int4.GROUP, outputs, 2, dtype=torch.bfloat16)

    def work(rows: slice) -> None:
        integers_OI, scales_GO2[:, rows] = int4.quantise_groups(weight_OI[rows])
        packed[rows] = int4.pack_int4(integers_OI)

    _on_threads(work, weight_OI.shape, threads)
    return packed, scales_GO2


def _on_threads(work: Callable[[slice], None], shape: torch.Size, threads: int) -> None:
    """Call ``work`` with parts of the rows of a weight on so many threads, inside :func:`one_thread`."""
    outputs, inputs = shape
    count = max(1, _AT_ONCE // inputs // int4.OUTPUTS) * int4.OUTPUTS
    is_inference = torch.is_inference_mode_enabled()

    def call(start: int) -> None:
        with torch.inference_mode(is_inference):  # otherwise, tensors made in that mode could not be written
            work(slice(start, start + count))

    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(call, range(0, outputs, count)))


register_quantization_config(METHOD)(CpuIntegerConfig)
register_quantizer(METHOD)(CpuIntegerQuantizer)
