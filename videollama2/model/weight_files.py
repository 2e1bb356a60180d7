"""Reads files of weights one tensor at a time where a model does not keep their bytes.

transformers maps files into memory. That costs nothing if the model keeps the tensors as they are stored, for the pages
are then its weights. A model with another dtype, or with quantised weights, makes new tensors from them, while the
pages count as memory of the process until the last weight is read: half as much again in float32 of a file in bfloat16.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from safetensors import safe_open
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Floating-point dtypes by the names that headers of safetensors files use."""

_SUFFIX = ".safetensors"


@contextmanager
def read_apart(files: Sequence[str] | None, load_config: Any) -> Iterator[Mapping[str, Any] | None]:
    """Give the slices of all tensors of ``files`` by name, as transformers loads them, but read with ``pread``.

    Args:
        load_config: transformers' settings of this load: ``dtype``, ``device_map``, ``is_quantized``, ``disable_mmap``.

    Yields:
        the slices, valid inside the block; or None where mapping is better or needed: some tensor is kept as it is
        stored, weights go to another device than the CPU, files are of another kind, or DeepSpeed divides the weights.
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
        file = opened.enter_context(safe_open(path, framework="pt", device="cpu", backend="pread"))
        found.update({name: file.get_slice(name) for name in file.keys()})  # noqa: SIM118 - not a dict
    return found


def give_back_freed_memory() -> None:
    """Let glibc return the memory that it keeps after tensors were freed: of a load, up to a fifth of the process."""
    if sys.platform == "linux":
        # Other libraries of C have no such function and keep less.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
