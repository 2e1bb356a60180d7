"""Reads files of the operator's media folder, without letting any name lead out of it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from videollama2.serve.untrusted_media.errors import RefusedMediaError

# If a name turns out to be a pipe or a terminal after all, opening it must not block or make it the controlling one.
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

    Links are followed as long as they stay below the root. The check applies to the file that was opened, not to the
    name that led there.

    Raises:
        RefusedMediaError: there is no root, or the path is not below it, not a regular file, or too large. The message
            does not reveal whether a file outside the root exists.
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
    # The type is checked before opening, because merely opening some devices has side effects.
    if not stat.S_ISREG(_status(place).st_mode):
        raise _refused(f"{place} is not a regular file")
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
    """Return the real path of the open file. Linux reports it; elsewhere the name must still lead to the same file."""
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
