"""Maps files of weights one tensor at a time where a model does not keep their bytes.

transformers maps files into memory. That costs nothing if the model keeps the tensors as they are stored, for the pages
are then its weights. A model with another dtype, or with quantised weights, makes new tensors from them, while the
pages count as memory of the process until the last weight is read: half as much again in float32 of a file in bfloat16.
Here each tensor is mapped by itself, so that its pages are given back with it. (Reading it into memory of its own does
the same, but copying it takes half of the time of converting it to float32.)
"""

from __future__ import annotations

import ctypes
import json
import math
import mmap
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Floating-point dtypes by the names that headers of safetensors files use."""

_SUFFIX = ".safetensors"


@contextmanager
def read_apart(files: Sequence[str] | None, load_config: Any) -> Iterator[Mapping[str, Any] | None]:
    """Give the slices of all tensors of ``files`` by name, as transformers loads them, but each mapped by itself.

    Args:
        load_config: transformers' settings of this load: ``dtype``, ``device_map``, ``is_quantized``, ``disable_mmap``.

    Yields:
        the slices, valid inside the block; or None where mapping whole files is better or needed: some tensor is kept
        as it is stored, weights go to another device than the CPU, files are of another kind, or DeepSpeed divides the
        weights.
    """
    with ExitStack() as opened:
        slices = _slices(files, opened) if _is_for_a_cpu(files, load_config) else None
        if slices is not None and not _changes_all(slices, load_config):
            opened.close()
            slices = None
        yield slices


def _is_for_a_cpu(files: Sequence[str] | None, load_config: Any) -> bool:
    if not files or load_config.disable_mmap or is_deepspeed_zero3_enabled():
        return False
    devices = {str(device) for device in (load_config.device_map or {"": "cpu"}).values()}
    return devices == {"cpu"} and all(file.endswith(_SUFFIX) for file in files)


def _changes_all(slices: Mapping[str, Any], load_config: Any) -> bool:
    """Whether no tensor is kept as it is stored; quantised models count as such, although small weights stay."""
    stored = {FLOATS.get(each.get_dtype()) for each in slices.values()}
    return load_config.is_quantized or load_config.dtype not in stored


def _slices(files: Sequence[str] | None, opened: ExitStack) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in files or ():
        checked = opened.enter_context(safe_open(path, framework="pt", device="cpu", backend="pread"))
        file = opened.enter_context(open(path, "rb"))  # noqa: SIM115 - the stack closes it
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        for name in checked.keys():  # noqa: SIM118 - not a dict
            fields = header[name]
            is_float = fields["dtype"] in FLOATS
            found[name] = _MappedTensor(file, 8 + size, fields) if is_float else checked.get_slice(name)
    return found


class _MappedTensor:
    """A tensor in a file with the methods of a slice of safetensors; reading it maps it, without a copy.

    Args:
        file: the file of weights, open as long as the tensor is read.
        start: the position in the file behind its header.
        fields: what the header says of the tensor.
    """

    def __init__(self, file: BinaryIO, start: int, fields: Mapping[str, Any]) -> None:
        self._file, self._dtype, self._shape = file, fields["dtype"], fields["shape"]
        first, end = fields["data_offsets"]
        self._first, self._end = start + first, start + end

    def get_dtype(self) -> str:
        return self._dtype

    def get_shape(self) -> list[int]:
        return self._shape

    def __getitem__(self, index: Any) -> torch.Tensor:
        if not math.prod(self._shape):
            return torch.empty(self._shape, dtype=FLOATS[self._dtype])[index]
        skipped = self._first % mmap.ALLOCATIONGRANULARITY  # maps begin at a multiple
        length, place = self._end - self._first + skipped, self._first - skipped
        # Private pages: torch wants memory that may be written. The tensor keeps the map, which ends with it.
        pages = mmap.mmap(self._file.fileno(), length, offset=place, access=mmap.ACCESS_COPY)
        values = torch.frombuffer(pages, dtype=FLOATS[self._dtype], count=math.prod(self._shape), offset=skipped)
        return values.view(self._shape)[index]


def give_back_freed_memory() -> None:
    """Let glibc return the memory that it keeps after tensors were freed: of a load, up to a fifth of the process."""
    if sys.platform == "linux":
        # Other libraries of C have no such function and keep less.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
