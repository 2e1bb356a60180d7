"""Writing a file whole or not at all."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from videollama2.errors import DataError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside the target, flush to the disk, rename: a reader sees the old file or the new one, never half.

    Raises:
        DataError: the disk does not take it (full, read-only); what stood there before is whole.
    """
    data = content.encode() if isinstance(content, str) else content
    # Its own name for each thread of each process, so that writers of one target do not meet.
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
    except OSError:  # its folder could not be made
        return
