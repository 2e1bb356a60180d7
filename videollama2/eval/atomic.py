"""Writes files atomically."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from videollama2.errors import DataError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a temporary file beside the target, flush it to the disk and rename it to the target.

    A reader therefore sees the old file or the new one, but never a part of one.

    Raises:
        DataError: the file cannot be written (the disk is full or read-only); an old file is unchanged.
    """
    data = content.encode() if isinstance(content, str) else content
    # Each thread of each process has a temporary file of its own, so that writers of one target do not collide.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # the folder could not be created
        return
