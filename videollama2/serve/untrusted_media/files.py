"""Reads files of the operator's media folder so that no name leads out of it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from videollama2.serve.untrusted_media.errors import RefusedMediaError

# Where a name turns out to be a pipe or terminal after all, opening must neither wait nor take it over.
_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_BINARY", 0)
)


def read_below(root: Path | None, path: str, max_bytes: int) -> bytes:
    """Return the content of a regular file below ``root``.

    Links are followed, but not out of the root. The file that was opened is checked, not the name it had before.

    Raises:
        RefusedMediaError: no root, not below it, not a regular file, or too large. What lies outside and what does not
            exist sound the same.
    """
    if root is None:
        raise RefusedMediaError(
            "file URLs are not allowed: the operator of this server has named no media folder", "media_not_allowed"
        )
    try:
        top = os.path.realpath(root, strict=True)
        place = os.path.realpath(path, strict=True)
    except (OSError, ValueError) as error:
        raise _refused(str(error)) from error
    if not _is_below(place, top):
        raise _refused(f"{place} is not below {top}")
    # Looked at before it is opened: merely opening some devices does something.
    if not stat.S_ISREG(_status(place).st_mode):
        raise _refused(f"{place} is no regular file")
    try:
        handle = os.open(place, _FLAGS)
    except (OSError, ValueError) as error:
        raise _refused(str(error)) from error
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or not _is_below(_place_of(handle, place, status), top):
            raise _refused(f"{place} was changed while it was opened")
        if status.st_size > max_bytes:
            raise RefusedMediaError(f"a file is larger than {max_bytes} bytes", "media_too_large", 413)
        data = file.read(max_bytes + 1)
    if not data:
        raise RefusedMediaError("a file is empty")
    if len(data) > max_bytes:
        raise RefusedMediaError(f"a file is larger than {max_bytes} bytes", "media_too_large", 413)
    return data


def _place_of(handle: int, place: str, status: os.stat_result) -> str:
    """Return where the open file lies. Linux tells; elsewhere the name must still lead to the file."""
    try:
        return os.readlink(f"/proc/self/fd/{handle}")
    except OSError:
        again = os.path.realpath(place)
        return again if os.path.samestat(_status(again), status) else ""


def _status(place: str) -> os.stat_result:
    try:
        return os.stat(place, follow_symlinks=False)
    except OSError as error:
        raise _refused(str(error)) from error


def _is_below(place: str, top: str) -> bool:
    return place.startswith(top.rstrip(os.sep) + os.sep)


def _refused(detail: str) -> RefusedMediaError:
    return RefusedMediaError("there is no such file in the media folder", "media_not_found", detail=detail)
