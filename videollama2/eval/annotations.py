"""Reads annotation files. An error names file, index and field; nothing is skipped or repaired silently."""

from __future__ import annotations

import csv
import json
import math
import posixpath
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from videollama2.errors import DataError, MissingDependencyError


def why_unreadable(error: OSError) -> str:
    """Return the part of an error message that follows the file's name; most often the file is missing."""
    return "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror or error})"


def read_annotation_json(path: Path, kind: type[list] | type[dict]) -> Any:
    """Read a JSON file that holds a list or an object, as ``kind`` says.

    Raises:
        DataError: the file is missing, unreadable, not JSON, or of the other kind.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: {why_unreadable(error)}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except RecursionError as error:
        raise DataError(f"{path}: holds lists or objects nested deeper than Python's JSON reader goes") from error
    if not isinstance(content, kind):
        expected = "a list" if kind is list else "an object"
        raise DataError(f"{path}: expected {expected}, got {type(content).__name__}")
    return content


class AnnotationEntry:
    """One row of an annotation file, whose fields are checked when they are read.

    Every method that reads a field raises a DataError naming file, index and field if the field is missing or invalid.

    Args:
        raw: the row, which must be an object.
        where: file and index, as error messages name the row.
    """

    def __init__(self, raw: Any, where: str) -> None:
        if not isinstance(raw, dict):
            raise DataError(f"{where}: expected an object, got {type(raw).__name__}")
        self.raw, self.where = raw, where

    def __contains__(self, name: str) -> bool:
        return name in self.raw

    def told(self, name: str) -> bool:
        """Whether the field has a value; files on the hub write null, "" or "None" for no value."""
        return self.raw.get(name) not in (None, "", "None")

    def text(self, name: str) -> str:
        """Return a text that is not empty."""
        value = self._get(name)
        if not isinstance(value, str) or not value.strip():
            raise self.problem(name, f"expected a text, got {value!r}")
        return value

    def answer(self, name: str) -> str:
        """Return a text; a bare number, which some files hold, is converted to one."""
        value = self._get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        return self.text(name)

    def texts(self, name: str, least: int = 1, most: int | None = None) -> tuple[str, ...]:
        """Return a list of at least ``least`` and at most ``most`` texts."""
        value = self._get(name)
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
            raise self.problem(name, f"expected a list of texts, got {value!r}")
        if len(value) < least or (most is not None and len(value) > most):
            wanted = f"{least}" if most == least else f"{least} to {most}" if most else f"at least {least}"
            raise self.problem(name, f"expected {wanted} texts, got {len(value)}")
        return tuple(value)

    def index(self, name: str, count: int) -> int:
        """Return a whole number from 0 to ``count - 1``, which may be written as a text."""
        value = self._get(name)
        if isinstance(value, str) and value.strip().isdecimal():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
            raise self.problem(name, f"expected a whole number from 0 to {count - 1}, got {value!r}")
        return value

    def seconds(self, name: str) -> float:
        """Return a time in seconds, which must be a finite number."""
        value = self._get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.problem(name, f"expected seconds, got {value!r}")
        return float(value)

    def path(self, name: str) -> str:
        """Return a relative path that stays inside the data folder."""
        value = self.text(name)
        if Path(value).is_absolute() or ".." in Path(value).parts or "\0" in value:
            raise self.problem(name, f"expected a path inside the data folder, got {value!r}")
        return posixpath.normpath(value)

    def foreign_path(self, name: str) -> str:
        """Return a path on whichever machine the file was written; it must end with the name of a file."""
        value = self.text(name)
        if PurePosixPath(value).name in ("", "..") or "\0" in value:
            raise self.problem(name, f"expected the path of a file, got {value!r}")
        return value

    def record(self, name: str) -> AnnotationEntry:
        """Return a nested object."""
        return AnnotationEntry(self._get(name), f"{self.where}, field {name!r}")

    def records(self, name: str) -> list[AnnotationEntry]:
        """Return a nested list of objects."""
        value = self._get(name)
        if not isinstance(value, list):
            raise self.problem(name, f"expected a list, got {value!r}")
        return [AnnotationEntry(raw, f"{self.where}, {name}[{index}]") for index, raw in enumerate(value)]

    def problem(self, name: str, what: str) -> DataError:
        """Return the error for one field; the caller raises it."""
        return DataError(f"{self.where}, field {name!r}: {what}")

    def _get(self, name: str) -> Any:
        if name not in self.raw:
            raise self.problem(name, "is missing")
        return self.raw[name]


def read_entries(path: Path) -> list[AnnotationEntry]:
    """Read the entries of a JSON list, JSON Lines, a CSV table with a header or a parquet file, by the file's suffix.

    Raises:
        DataError: see :func:`read_annotation_json`; or the file has no entries.
        MissingDependencyError: the file is a parquet file and pyarrow is not installed.
    """
    readers = {".parquet": _read_parquet, ".jsonl": _read_lines, ".csv": _read_csv}
    read = readers.get(path.suffix.lower())
    rows = read(path) if read else read_annotation_json(path, list)
    entries = [AnnotationEntry(raw, f"{path}: index {index}") for index, raw in enumerate(rows)]
    if not entries:
        raise DataError(f"{path}: there is no record in this file")
    return entries


def find_annotations(data: Path, first: str, *others: str) -> list[Path]:
    """Return the files that match the first of these patterns (relative to ``data``) to match any.

    If several files match, each holds a part of the annotations.

    Raises:
        DataError: no file matches any pattern; the message names the patterns.
    """
    for pattern in (first, *others):
        if paths := sorted(data.glob(pattern)):
            return paths
    as_well = f" (as are {', '.join(others)})" if others else ""
    raise DataError(f"{data / first}: is missing{as_well}")


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet as parquet
        from pyarrow import ArrowException
    except ImportError as error:
        raise MissingDependencyError.of(f"{path}: reading it needs pyarrow", "[data]") from error
    try:
        return parquet.ParquetFile(path).read().to_pylist()
    except (OSError, ArrowException) as error:
        raise DataError(f"{path}: cannot be read as a parquet file ({error})") from error


def _read_csv(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise DataError(f"{path}: {why_unreadable(error)}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: is not a table in UTF-8 ({error})") from error


def _read_lines(path: Path) -> list[Any]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise DataError(f"{path}: {why_unreadable(error)}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: line {number} is not JSON ({error})") from error
    return rows


def check_unique(ids: Iterable[str], path: Path) -> None:
    """Raise DataError if an id occurs twice."""
    seen: dict[str, int] = {}
    for index, name in enumerate(ids):
        if name in seen:
            raise DataError(f"{path}: index {index} has the id {name!r} of index {seen[name]}")
        seen[name] = index
