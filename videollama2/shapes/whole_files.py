"""Files that are whole or not there at all: written under a temporary name and renamed when they are complete."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from videollama2.errors import DataError


def _part_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; the file is renamed to ``path`` when the block ends and removed if the block raises.

    Raises:
        DataError: the file cannot be written.
    """
    part = _part_path(path)
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        raise _write_error(path, error) from error
    finally:
        part.unlink(missing_ok=True)


def _write_error(path: Path, error: OSError) -> DataError:
    return DataError(f"cannot write {path}: {error.strerror or error}")


def write_file(path: Path, content: bytes) -> None:
    """Write a file at once."""
    with whole_file(path) as part:
        part.write_bytes(content)


@contextmanager
def json_list(path: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a function that appends one row (a line) to a JSON list, so that a set need not fit into memory."""
    separator = "[\n"
    with whole_file(path) as part, part.open("w", encoding="utf-8") as file:

        def add(row: dict[str, Any]) -> None:
            nonlocal separator
            try:
                file.write(separator + json.dumps(row, ensure_ascii=False))
            except OSError as error:  # caught here, because several files are open and the error names one
                raise _write_error(path, error) from error
            separator = ",\n"

        yield add
        file.write("[]\n" if separator == "[\n" else "\n]\n")


def write_list(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as a JSON list, one row per line."""
    with json_list(path) as add:
        for row in rows:
            add(row)


def as_json(value: Any) -> bytes:
    """Return a value as the content of a JSON file."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
