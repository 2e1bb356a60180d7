"""What a checkpoint holds and where its files are: a folder, a hub repository or the built-in model.

What a folder is, is told by the files in it, never by its name.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import PreTrainedConfig

from videollama2.config_bounds import quoted
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

# Two weights share a byte in 4 bits.
_MOST_PER_BYTE, _HARMLESS = 2, 1 << 28

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
    if not isinstance(config["model_type"], str):
        raise CheckpointError(
            f"{name_or_path}/config.json: model_type must be a name, got {quoted(config['model_type'])}"
        )


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
        raise CheckpointError(f"{path}: cannot be read as weights ({why_unreadable(error)})") from error
    if not isinstance(tensors, dict) or not all(torch.is_tensor(t) for t in tensors.values()):
        raise CheckpointError(f"{path}: expected a dictionary of tensors")
    return tensors


def why_unreadable(error: BaseException) -> str:
    """What a reader of weights says, in one line; but not torch's advice to run what a pickle holds."""
    text = first_line(error)
    is_advice = "weights only" in text.lower().replace("_", " ")
    return "it is damaged, or a pickle of more than tensors" if is_advice else text


_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def stored_dtype(name_or_path: str, **hub: Any) -> torch.dtype:
    """The dtype the tensors of a full checkpoint are stored in, whatever its config.json says.

    Where they are of several, the narrowest one that holds every value of them all.

    Raises:
        CheckpointError: a file is missing or cannot be read.
    """
    found = {dtype for path in _weight_files(name_or_path, **hub) for dtype in _float_dtypes(path)}
    return reduce(torch.promote_types, found) if found else torch.float32


def check_weight_files(name_or_path: str, *parts: PreTrainedConfig, **hub: Any) -> None:
    """Look at the weight files of a checkpoint before transformers reads them.

    Args:
        parts: configurations of decoder and encoder in these files.

    Raises:
        CheckpointError: an index that is damaged or names files elsewhere, a shard that is missing, a Git LFS pointer
            in place of a file, or files too small for what the configurations describe.
    """
    if first_file(name_or_path, FULL_WEIGHTS, **hub) is None:
        return
    paths = _weight_files(name_or_path, **hub)
    for path in paths:
        check_is_no_pointer(path)
    held, described = sum(path.stat().st_size for path in paths), sum(map(_least_weights, parts))
    # Weights of a wrong shape are told by name after loading, but not where their place in memory could not be had.
    if described > _HARMLESS and described > held * _MOST_PER_BYTE:
        raise CheckpointError(
            f"{name_or_path}/config.json describes more than {described:,} weights, its files hold {held:,} bytes"
        )


def _least_weights(config: PreTrainedConfig) -> int:
    """A number of weights that a transformer of these sizes exceeds."""
    width, inner = config.hidden_size, getattr(config, "intermediate_size", None) or 0
    return width * (getattr(config, "vocab_size", None) or 0) + config.num_hidden_layers * width * (width + inner)


def _weight_files(name_or_path: str, **hub: Any) -> list[Path]:
    first = first_file(name_or_path, FULL_WEIGHTS, **hub)
    if first is None:
        raise CheckpointError(f"{name_or_path} holds no weights: expected one of {', '.join(FULL_WEIGHTS)}")
    if first.suffix != ".json":
        return [first]
    shards = {name: find_file(name_or_path, name, **hub) for name in _shard_names(first)}
    missing = sorted(name for name, path in shards.items() if path is None)
    if missing:
        raise CheckpointError(f"{name_or_path}: {first.name} names files that are missing: {', '.join(missing[:8])}")
    return [path for path in shards.values() if path is not None]


def stored_names(name_or_path: str, **hub: Any) -> set[str]:
    """Names of the tensors in a full checkpoint's weight files.

    Raises:
        CheckpointError: a file is missing or cannot be read.
    """
    names: set[str] = set()
    for path in _weight_files(name_or_path, **hub):
        if path.suffix != ".safetensors":
            names |= read_tensors(path).keys()
            continue
        with _opened(path) as file:
            names |= set(file.keys())
    return names


def _shard_names(index: Path) -> set[str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index}: weight_map must say for each weight which file holds it")
    names = set(weight_map.values())
    # Whatever a folder says of itself, nothing is read from outside it.
    strange = sorted(name for name in names if Path(name).name != name or "\\" in name)
    if strange:
        raise CheckpointError(f"{index}: weight_map names {quoted(strange[0])}, which is no file beside it")
    return names


def _float_dtypes(path: Path) -> set[torch.dtype]:
    if path.suffix != ".safetensors":
        return {tensor.dtype for tensor in read_tensors(path).values() if tensor.is_floating_point()}
    with _opened(path) as file:
        names = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - it is no dict
    return {_FLOATS[name] for name in names if name in _FLOATS}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A ``.safetensors`` file whose header has been read."""
    check_is_no_pointer(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except UNREADABLE as error:
        raise CheckpointError(f"{path}: cannot be read as weights ({why_unreadable(error)})") from error
