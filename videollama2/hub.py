"""Files of a model, which lies in a folder or in a repository of the Hugging Face hub."""

from __future__ import annotations

import json
from pathlib import Path
from types import UnionType
from typing import Any

from transformers.utils import cached_file

from videollama2.errors import CheckpointError, CheckpointNotFoundError, first_line
from videollama2.stand_ins import HEAD_BYTES, stand_in

OPTIONS = ("revision", "token", "cache_dir", "local_files_only")
"""How a repository is reached; keyword arguments ``**hub`` of everything that opens one."""

OPTIONS_OF_ANY_REPOSITORY = OPTIONS[1:]
"""The options that also hold for the other repositories a model names: a revision belongs to one repository."""

_MAX_JSON_BYTES = 256 << 20


def find_file(name_or_path: str | Path, filename: str, **hub: Any) -> Path | None:
    """A model's file, local or from the hub; None where folder or repository has none.

    Raises:
        CheckpointNotFoundError: no such folder, and no such hub repository within reach.
    """
    if Path(name_or_path).is_dir():
        path = Path(name_or_path) / filename
        return path if path.is_file() else None
    if Path(name_or_path).exists():
        raise CheckpointNotFoundError(f"{name_or_path} is a file; a checkpoint is a folder or a hub name")
    try:
        cached = cached_file(str(name_or_path), filename, _raise_exceptions_for_missing_entries=False, **hub)
    except (OSError, ValueError) as error:
        raise CheckpointNotFoundError(
            f"{name_or_path} is neither a folder nor a model repository that can be reached ({first_line(error)})"
        ) from error
    return None if cached is None else Path(cached)


def first_file(name_or_path: str | Path, names: tuple[str, ...], **hub: Any) -> Path | None:
    """The first of several files that is there, see :func:`find_file`."""
    return next((path for name in names if (path := find_file(name_or_path, name, **hub)) is not None), None)


def read_json(path: Path, kind: type | UnionType = dict) -> Any:
    """A JSON object from a file.

    Args:
        kind: what the file must hold.

    Raises:
        CheckpointError: the file cannot be read, or holds anything else.
    """
    check_is_no_pointer(path)
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise CheckpointError(f"{path} is larger than {_MAX_JSON_BYTES >> 20} MiB, too much for a JSON file")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from error
    except RecursionError as error:
        raise CheckpointError(f"{path} is no JSON that can be read: it is nested too deep") from error
    if not isinstance(value, kind):
        raise CheckpointError(f"{path} is no JSON object but a {type(value).__name__}")
    return value


def read_config(name_or_path: str | Path, **hub: Any) -> dict[str, Any]:
    """The ``config.json`` of a model.

    Raises:
        CheckpointNotFoundError: no such model. CheckpointError: it has no ``config.json``, or a damaged one.
    """
    path = find_file(name_or_path, "config.json", **hub)
    if path is None:
        raise CheckpointError(f"{name_or_path} holds no config.json, so it is no checkpoint")
    return read_json(path)


def check_json_files(folder: str | Path) -> None:
    """Find the damaged file of a folder, after a library failed on it without saying where.

    Raises:
        CheckpointError: one of its JSON files cannot be read.
    """
    for path in sorted(Path(folder).glob("*.json")):
        read_json(path, dict | list)


def check_is_no_pointer(path: Path) -> None:
    """Refuse the few lines of text that a clone without Git LFS leaves in place of a large file, and its like.

    Raises:
        CheckpointError: the file stands in place of another, see :func:`videollama2.stand_ins.stand_in`.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return  # whoever opens it in earnest says why it cannot be read
    if (reason := stand_in(head)) is not None:
        raise CheckpointError(f"{path} {reason}")
