"""Reading annotation files. A broken one stops with file, index and field; nothing is skipped or repaired silently."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from videollama2.errors import DataError

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")
"""In the order in which they are looked for; the first four are the published ones."""


def why_unreadable(error: OSError) -> str:
    """What a message says after the file's name: most often the file is just not there."""
    return "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror or error})"


def read_json(path: Path, kind: type[list] | type[dict]) -> Any:
    """A JSON file that holds a list, or an object.

    Raises:
        DataError: missing, unreadable, not JSON, or of the other kind.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: {why_unreadable(error)}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    if not isinstance(content, kind):
        expected = "a list" if kind is list else "an object"
        raise DataError(f"{path}: expected {expected}, got {type(content).__name__}")
    return content


class AnnotationEntry:
    """One row of an annotation file, whose fields are checked as they are read.

    Args:
        where: how messages call it: file and index.
    """

    def __init__(self, raw: Any, where: str) -> None:
        if not isinstance(raw, dict):
            raise DataError(f"{where}: expected an object, got {type(raw).__name__}")
        self.raw, self.where = raw, where

    def __contains__(self, name: str) -> bool:
        return name in self.raw

    def text(self, name: str) -> str:
        """A text; may be empty nowhere."""
        value = self._get(name)
        if not isinstance(value, str) or not value.strip():
            raise self.problem(name, f"expected a text, got {value!r}")
        return value

    def answer(self, name: str) -> str:
        """A text, or a number written as one (some files hold bare numbers)."""
        value = self._get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        return self.text(name)

    def texts(self, name: str, least: int = 1, most: int | None = None) -> tuple[str, ...]:
        """A list of texts."""
        value = self._get(name)
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
            raise self.problem(name, f"expected a list of texts, got {value!r}")
        if len(value) < least or (most is not None and len(value) > most):
            wanted = f"{least}" if most == least else f"{least} to {most}" if most else f"at least {least}"
            raise self.problem(name, f"expected {wanted} texts, got {len(value)}")
        return tuple(value)

    def index(self, name: str, count: int) -> int:
        """A whole number from 0 to ``count - 1``."""
        value = self._get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
            raise self.problem(name, f"expected a whole number from 0 to {count - 1}, got {value!r}")
        return value

    def seconds(self, name: str) -> float:
        """A number."""
        value = self._get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.problem(name, f"expected seconds, got {value!r}")
        return float(value)

    def path(self, name: str) -> str:
        """A relative path that stays inside the data folder."""
        value = self.text(name)
        if Path(value).is_absolute() or ".." in Path(value).parts or "\0" in value:
            raise self.problem(name, f"expected a path inside the data folder, got {value!r}")
        return value

    def record(self, name: str) -> AnnotationEntry:
        """A nested object."""
        return AnnotationEntry(self._get(name), f"{self.where}, field {name!r}")

    def records(self, name: str) -> list[AnnotationEntry]:
        """A nested list of objects."""
        value = self._get(name)
        if not isinstance(value, list):
            raise self.problem(name, f"expected a list, got {value!r}")
        return [AnnotationEntry(raw, f"{self.where}, {name}[{index}]") for index, raw in enumerate(value)]

    def problem(self, name: str, what: str) -> DataError:
        """The error for one field."""
        return DataError(f"{self.where}, field {name!r}: {what}")

    def _get(self, name: str) -> Any:
        if name not in self.raw:
            raise self.problem(name, "is missing")
        return self.raw[name]


def read_records(path: Path) -> list[AnnotationEntry]:
    """The rows of a JSON list.

    Raises:
        DataError: see :func:`read_json`; or there is none.
    """
    records = [AnnotationEntry(raw, f"{path}: index {index}") for index, raw in enumerate(read_json(path, list))]
    if not records:
        raise DataError(f"{path}: there is no record in this file")
    return records


def check_unique(ids: Iterable[str], path: Path) -> None:
    """Raise DataError where an id occurs twice."""
    seen: dict[str, int] = {}
    for index, name in enumerate(ids):
        if name in seen:
            raise DataError(f"{path}: index {index} has the id {name!r} of index {seen[name]}")
        seen[name] = index


class VideoFolder:
    """Finds videos that annotations name without a suffix. The folder is listed once."""

    def __init__(self, data: Path, folder: str) -> None:
        self.folder = folder
        path = data / folder
        self._names: Collection[str] = {entry.name for entry in path.iterdir()} if path.is_dir() else ()

    def find(self, stem: str) -> str:
        """Path relative to the data folder; of a file that is not there, where it would be as mp4."""
        name = next((stem + suffix for suffix in VIDEO_SUFFIXES if stem + suffix in self._names), f"{stem}.mp4")
        return f"{self.folder}/{name}"
