"""Access to the files of a model in a folder or in a repository of the Hugging Face hub."""

from __future__ import annotations

import json
from pathlib import Path
from types import UnionType
from typing import Any

from transformers.utils.hub import cached_file

from videollama2.constants import BUILT_IN_MODELS
from videollama2.errors import CheckpointError, CheckpointNotFoundError, first_line
from videollama2.hub_connection import check_name, hub_options
from videollama2.stand_ins import HEAD_BYTES, stand_in

OPTIONS = ("revision", "token", "cache_dir", "local_files_only")
"""Options of access to a repository; the keyword arguments ``**hub`` of all functions that open one."""

OPTIONS_OF_ANY_REPOSITORY = OPTIONS[1:]
"""The options that also apply to other repositories named by a model, which excludes a revision."""

_MAX_JSON_BYTES = 256 << 20


def built_in_folder(name: str) -> Path:
    """Return the folder of a model that ships inside the package, one of :data:`.constants.BUILT_IN_MODELS`."""
    return Path(__file__).parent / "assets" / name


def resolve_name(name_or_path: str | Path) -> str:
    """Map the name of a built-in model to its folder; return any other name unchanged, and that of an own folder.

    Raises:
        CheckpointNotFoundError: the folder of the built-in model is missing.
    """
    name = str(name_or_path)
    if name not in BUILT_IN_MODELS or Path(name).exists():
        return name
    folder = built_in_folder(name)
    if not folder.is_dir():
        raise CheckpointNotFoundError(f"{name} is not in {folder}: the installation is incomplete")
    return str(folder)


def find_file(name_or_path: str | Path, filename: str, **hub: Any) -> Path | None:
    """Return the path of a model's file, local or from the hub, or None if the folder or repository does not have it.

    Raises:
        CheckpointNotFoundError: there is no such folder, and no such hub repository can be reached. Without a network,
            this takes seconds, see :func:`videollama2.hub_connection.hub_options`.
    """
    if Path(name_or_path).is_dir():
        path = Path(name_or_path) / filename
        return path if path.is_file() else None
    check_name(str(name_or_path))
    hub = hub_options(name_or_path, **hub)
    try:
        cached = cached_file(str(name_or_path), filename, _raise_exceptions_for_missing_entries=False, **hub)
    except (OSError, ValueError) as error:
        raise CheckpointNotFoundError(
            f"{name_or_path} is neither a folder nor a model repository that can be reached ({first_line(error)})"
        ) from error
    return None if cached is None else Path(cached)


def first_file(name_or_path: str | Path, names: tuple[str, ...], **hub: Any) -> Path | None:
    """Return the first of several files that exists, see :func:`find_file`."""
    return next((path for name in names if (path := find_file(name_or_path, name, **hub)) is not None), None)


def read_json(path: Path, kind: type | UnionType = dict) -> Any:
    """Read a JSON value from a file.

    Args:
        kind: type that the value must have.

    Raises:
        CheckpointError: the file cannot be read, or holds a different type.
    """
    check_is_no_pointer(path)
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise CheckpointError(f"{path} is larger than {_MAX_JSON_BYTES >> 20} MiB, too much for a JSON file")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    except RecursionError as error:
        raise CheckpointError(f"{path} is not JSON that can be read: it is nested too deep") from error
    if not isinstance(value, kind):
        raise CheckpointError(f"{path} is not a JSON object but a {type(value).__name__}")
    return value


def read_config(name_or_path: str | Path, **hub: Any) -> dict[str, Any]:
    """Read the ``config.json`` of a model.

    Raises:
        CheckpointNotFoundError: there is no such model. CheckpointError: ``config.json`` is missing or damaged.
    """
    path = find_file(name_or_path, "config.json", **hub)
    if path is None:
        raise CheckpointError(f"{name_or_path} holds no config.json, so it is not a checkpoint")
    return read_json(path)


def check_json_files(folder: str | Path) -> None:
    """Look for a damaged file in a folder after a library failed on it without naming the file.

    Raises:
        CheckpointError: one of its JSON files cannot be read.
    """
    for path in sorted(Path(folder).glob("*.json")):
        read_json(path, dict | list)


def check_is_no_pointer(path: Path) -> None:
    """Check that a large file is not a stand-in, such as the text that a clone without Git LFS leaves in its place.

    Raises:
        CheckpointError: the file is a stand-in, see :func:`videollama2.stand_ins.stand_in`.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return  # opening the file later reports why it cannot be read
    if (reason := stand_in(head)) is not None:
        raise CheckpointError(f"{path} {reason}")
