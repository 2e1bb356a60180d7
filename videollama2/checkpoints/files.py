"""What a checkpoint holds and where its files are: a folder, a hub repository or the built-in model.

What a folder is, is told by the files in it, never by its name.
"""

from __future__ import annotations

import pickle
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from videollama2.constants import TINY_MODEL_NAME
from videollama2.errors import CheckpointError, CheckpointNotFoundError, first_line
from videollama2.hub import check_is_no_pointer, find_file, first_file, read_config, read_json

TINY_FOLDER = Path(__file__).parent.parent / "assets" / TINY_MODEL_NAME
FULL_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
CONNECTOR_FILE = "mm_projector.bin"
CONNECTOR_FILES = ("mm_projector.safetensors", CONNECTOR_FILE)
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_FILES = (ADAPTER_FILE, "adapter_model.bin")
OTHERS_FILE = "non_lora_trainables.bin"
OTHERS_FILES = ("non_lora_trainables.safetensors", OTHERS_FILE)

# What the readers of weight files raise on a damaged, foreign or dangerous file.
UNREADABLE = (OSError, RuntimeError, ValueError, LookupError, EOFError, pickle.UnpicklingError, SafetensorError)


def resolve_name(name_or_path: str | Path) -> str:
    """The name of the built-in model -> its folder; anything else as it is."""
    name = str(name_or_path)
    return str(TINY_FOLDER) if name == TINY_MODEL_NAME and not Path(name).exists() else name


def base_of(path: str, model_base: str | Path | None = None, **hub: Any) -> str:
    """Folder or hub name of the model that a LoRA or connector folder is added to; empty where nothing tells.

    Args:
        path: of kind ``lora`` or ``connector``, see :func:`checkpoint_kind`.
        model_base: comes before what the folder itself names.
    """
    adapter = find_file(path, ADAPTER_CONFIG, **hub)
    if model_base:
        named = model_base
    elif adapter is not None:
        named = read_json(adapter).get("base_model_name_or_path")
    else:
        named = read_config(path, **hub).get("_name_or_path")
    return resolve_name(named or "")


def check_model_type(config: dict[str, Any], name_or_path: str) -> None:
    """Raise CheckpointError where a config.json does not say what it describes."""
    if not config.get("model_type"):
        raise CheckpointError(f"{name_or_path}/config.json names no model_type, so it describes no model")


def checkpoint_kind(name_or_path: str, **hub: Any) -> str:
    """``full``, ``connector`` or ``lora``, by the files it holds.

    Raises:
        CheckpointNotFoundError: nothing there.
        CheckpointError: none of the three.
    """
    if find_file(name_or_path, ADAPTER_CONFIG, **hub) is not None:
        return "lora"
    if any(find_file(name_or_path, name, **hub) is not None for name in FULL_WEIGHTS):
        return "full"
    if any(find_file(name_or_path, name, **hub) is not None for name in CONNECTOR_FILES):
        return "connector"
    if not Path(name_or_path).is_dir() and find_file(name_or_path, "config.json", **hub) is None:
        raise CheckpointNotFoundError(
            f"{name_or_path} is no folder, and no model repository of that name is in the hub's cache or within reach"
        )
    raise CheckpointError(
        f"{name_or_path} holds no weights: expected model.safetensors (or its shards), {ADAPTER_CONFIG} "
        f"or {' / '.join(CONNECTOR_FILES)}"
    )


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a ``.safetensors`` or ``.bin`` file; pickles are read with ``weights_only=True``.

    Raises:
        CheckpointError: the file is damaged, or a pickle holds anything but tensors.
    """
    check_is_no_pointer(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise CheckpointError(f"{path}: cannot be read as weights ({first_line(error)})") from error
    if not isinstance(tensors, dict) or not all(torch.is_tensor(t) for t in tensors.values()):
        raise CheckpointError(f"{path}: expected a dictionary of tensors")
    return tensors


_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def stored_dtype(name_or_path: str, **hub: Any) -> torch.dtype:
    """The dtype the tensors of a full checkpoint are stored in, whatever its config.json says.

    Where they are of several, the narrowest one that holds every value of them all.

    Raises:
        CheckpointError: a file is missing or cannot be read.
    """
    found = {dtype for path in _weight_files(name_or_path, **hub) for dtype in _float_dtypes(path)}
    return reduce(torch.promote_types, found) if found else torch.float32


def _weight_files(name_or_path: str, **hub: Any) -> list[Path]:
    first = first_file(name_or_path, FULL_WEIGHTS, **hub)
    if first is None:
        raise CheckpointError(f"{name_or_path} holds no weights: expected one of {', '.join(FULL_WEIGHTS)}")
    if first.suffix != ".json":
        return [first]
    shards = {name: find_file(name_or_path, name, **hub) for name in set(read_json(first)["weight_map"].values())}
    missing = sorted(name for name, path in shards.items() if path is None)
    if missing:
        raise CheckpointError(f"{name_or_path}: {first.name} names files that are missing: {', '.join(missing[:8])}")
    return list(shards.values())


def _float_dtypes(path: Path) -> set[torch.dtype]:
    if path.suffix != ".safetensors":
        return {tensor.dtype for tensor in read_tensors(path).values() if tensor.is_floating_point()}
    try:
        with safe_open(path, framework="pt") as file:
            names = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - it is no dict
    except UNREADABLE as error:
        raise CheckpointError(f"{path}: cannot be read as weights ({first_line(error)})") from error
    return {_FLOATS[name] for name in names if name in _FLOATS}
