"""Locates and inspects the files of a checkpoint: a folder, a hub repository or a built-in model.

The kind of a checkpoint is determined by its files, never by its name.
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
from videollama2.hub import (
    built_in_folder,
    check_is_no_pointer,
    find_file,
    first_file,
    read_config,
    read_json,
    resolve_name,
)
from videollama2.model.weight_files import FLOATS

TINY_FOLDER = built_in_folder(TINY_MODEL_NAME)
FULL_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
CONNECTOR_FILE = "mm_projector.bin"
CONNECTOR_FILES = ("mm_projector.safetensors", CONNECTOR_FILE)
AUDIO_CONNECTOR_FILE = "mm_projector_a.bin"
AUDIO_CONNECTOR_FILES = ("mm_projector_a.safetensors", AUDIO_CONNECTOR_FILE)
AUDIO_TOWER_FILE = "audio_tower.bin"
PART_FILES = (*CONNECTOR_FILES, *AUDIO_CONNECTOR_FILES)
"""Files of the connectors, at least one of which is in a folder of kind ``connector``."""
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_FILES = (ADAPTER_FILE, "adapter_model.bin")
RUN_FILE = "training_run.json"
"""What a run of ``train.py`` was started with, in its output folder and its checkpoints."""
OTHERS_FILE = "non_lora_trainables.bin"
OTHERS_FILES = ("non_lora_trainables.safetensors", OTHERS_FILE)

# In 4 bits, two weights share a byte. Configurations below 2^28 weights are not checked: they fit into memory anyway.
_MOST_PER_BYTE, _HARMLESS = 2, 1 << 28

# What the readers of weight files raise on a damaged, foreign or dangerous file.
UNREADABLE = (OSError, RuntimeError, ValueError, LookupError, EOFError, pickle.UnpicklingError, SafetensorError)


def base_of(path: str, model_base: str | Path | None = None, **hub: Any) -> str:
    """Return the folder or hub name of a LoRA or connector folder's base model, or "" if none is named.

    Args:
        path: a checkpoint of kind ``lora`` or ``connector``, see :func:`checkpoint_kind`.
        model_base: takes precedence over the base that the folder itself names.
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
    """Raise CheckpointError if a config.json has no ``model_type``."""
    if not config.get("model_type"):
        raise CheckpointError(f"{name_or_path}/config.json names no model_type, so it describes no model")
    if not isinstance(config["model_type"], str):
        raise CheckpointError(
            f"{name_or_path}/config.json: model_type must be a name, got {quoted(config['model_type'])}"
        )


def checkpoint_kind(name_or_path: str, **hub: Any) -> str:
    """Return ``full``, ``connector`` or ``lora``, depending on the files of the checkpoint.

    Raises:
        CheckpointNotFoundError: there is no such folder or repository.
        CheckpointError: it holds none of the three.
    """
    if find_file(name_or_path, ADAPTER_CONFIG, **hub) is not None:
        return "lora"
    if any(find_file(name_or_path, name, **hub) is not None for name in FULL_WEIGHTS):
        return "full"
    if any(find_file(name_or_path, name, **hub) is not None for name in PART_FILES):
        return "connector"
    if not Path(name_or_path).is_dir() and find_file(name_or_path, "config.json", **hub) is None:
        raise CheckpointNotFoundError(
            f"{name_or_path} is not a folder, and no model repository of that name is in the hub's cache or within "
            "reach"
        )
    raise CheckpointError(
        f"{name_or_path} holds no weights: expected model.safetensors (or its shards), {ADAPTER_CONFIG} "
        f"or {' / '.join(PART_FILES)}"
    )


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a ``.safetensors`` or ``.bin`` file; pickles are read with ``weights_only=True``.

    Raises:
        CheckpointError: the file is damaged, or is a pickle that holds anything but tensors.
    """
    check_is_no_pointer(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise CheckpointError(f"{path}: cannot be read as weights ({why_no_weights(error)})") from error
    if not isinstance(tensors, dict) or not all(torch.is_tensor(t) for t in tensors.values()):
        raise CheckpointError(f"{path}: expected a dictionary of tensors")
    return tensors


def why_no_weights(error: BaseException) -> str:
    """Return the reason of a failed read in one line, without torch's advice to execute the pickle."""
    text = first_line(error)
    is_advice = "weights only" in text.lower().replace("_", " ")
    return "it is damaged, or a pickle of more than tensors" if is_advice else text


def stored_dtype(name_or_path: str, **hub: Any) -> torch.dtype:
    """Return the dtype in which the tensors of a full checkpoint are stored, whatever its config.json states.

    If they have several dtypes, it is the narrowest one that can represent every value of all of them.

    Raises:
        CheckpointError: a file is missing or cannot be read.
    """
    found = {dtype for path in _weight_files(name_or_path, **hub) for dtype in _float_dtypes(path)}
    return reduce(torch.promote_types, found) if found else torch.float32


def check_weight_files(name_or_path: str, *parts: PreTrainedConfig, **hub: Any) -> None:
    """Check the weight files of a checkpoint before transformers reads them.

    Args:
        parts: configurations of the decoder and encoder stored in these files.

    Raises:
        CheckpointError: an index is damaged or names files outside the folder, a shard is missing, a Git LFS pointer
            takes the place of a file, or the files are too small for what the configurations describe.
    """
    if first_file(name_or_path, FULL_WEIGHTS, **hub) is None:
        return
    paths = _weight_files(name_or_path, **hub)
    for path in paths:
        check_is_no_pointer(path)
    held, described = sum(path.stat().st_size for path in paths), sum(map(_least_weights, parts))
    # Loading reports weights of the wrong shape by name, but only if memory for the described model can be allocated.
    if described > _HARMLESS and described > held * _MOST_PER_BYTE:
        raise CheckpointError(
            f"{name_or_path}/config.json describes more than {described:,} weights, its files hold {held:,} bytes"
        )


def _least_weights(config: PreTrainedConfig) -> int:
    """Return a lower bound of the number of weights in a transformer of this configuration."""
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
    """Return the names of the tensors in a full checkpoint's weight files.

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


def read_part(name_or_path: str, prefix: str, **hub: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of a full checkpoint whose names begin with ``prefix``, by the rest of their names.

    Of ``.safetensors`` files, no other tensor is read.

    Raises:
        CheckpointError: a file is missing or cannot be read.
    """
    found: dict[str, torch.Tensor] = {}
    for path in _weight_files(name_or_path, **hub):
        if path.suffix != ".safetensors":
            tensors = read_tensors(path)
            found |= {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
            continue
        with _opened(path) as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - not a dict
            found |= {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    return found


def _shard_names(index: Path) -> set[str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index}: weight_map must say for each weight which file holds it")
    names = set(weight_map.values())
    # An index may only name files of its own folder, so that a foreign checkpoint cannot make us read other files.
    strange = sorted(name for name in names if Path(name).name != name or "\\" in name)
    if strange:
        raise CheckpointError(f"{index}: weight_map names {quoted(strange[0])}, which is not a file beside it")
    return names


def _float_dtypes(path: Path) -> set[torch.dtype]:
    if path.suffix != ".safetensors":
        return {tensor.dtype for tensor in read_tensors(path).values() if tensor.is_floating_point()}
    with _opened(path) as file:
        names = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - not a dict
    return {FLOATS[name] for name in names if name in FLOATS}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a ``.safetensors`` file and read its header."""
    check_is_no_pointer(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except UNREADABLE as error:
        raise CheckpointError(f"{path}: cannot be read as weights ({why_no_weights(error)})") from error
