"""Makes the sources of media (paths, bytes and open files) into files that can be read from their start."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from videollama2.errors import SHOWN_CHARACTERS, MediaError, MediaNotFoundError
from videollama2.media.arrays import is_array
from videollama2.media.kinds import VIDEO, is_told_by, kind_of, with_article
from videollama2.stand_ins import HEAD_BYTES

_LONGEST_PATH = 8192
"""Characters; no system has longer paths."""


def describe_source(source: Any) -> str:
    """Return how messages call a source: its path or file name, else what it is."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source) if isinstance(os.fspath(source), str) else os.fsdecode(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<{len(source)} bytes in memory>"
    if is_array(source):
        return f"<array of shape {tuple(source.shape)}>"
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or f"<image of {source.width}x{source.height}>"
    if isinstance(source, Sequence):
        return f"<list of {len(source)} frames>"
    file_name = getattr(source, "name", None)
    return file_name if isinstance(file_name, str) else f"<{type(source).__name__}>"


def check_path(path: str | os.PathLike) -> Path:
    """Return the path after checking that something exists there.

    Raises:
        MediaNotFoundError: there is nothing at this path.
        MediaError: it is empty or too long, an address, a device, or a file of zero bytes.
    """
    text = describe_source(path)
    _status_of(text)
    return Path(text)


def _shortened(path: str) -> str:
    """Return a path for a message: whole, unless it is no path but the text of a medium, as base64 would be."""
    return path if len(path) <= _LONGEST_PATH else f"{path[:SHOWN_CHARACTERS]}..."


def _status_of(text: str) -> os.stat_result:
    """Return the status of the file or folder at a path; for the errors see :func:`check_path`."""
    if not text:
        raise MediaError("the path of the video or image is empty")
    if "://" in text:
        raise MediaError(f"{text}: addresses are not opened here; download the file and give its path")
    try:
        status = os.stat(text)
    except FileNotFoundError as error:
        raise MediaNotFoundError(f"{text}: no such file or folder") from error
    except OSError as error:
        raise MediaError(f"{_shortened(text)}: cannot be opened ({error.strerror})") from error
    except ValueError as error:
        raise MediaError(f"{_shortened(text)}: cannot be opened ({error})") from error
    if stat.S_ISREG(status.st_mode) and status.st_size == 0:
        raise MediaError(f"{text}: the file is empty")
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise MediaError(f"{text}: is neither a file nor a folder")
    return status


@contextmanager
def opened(source: Any, name: str, kind: str) -> Iterator[BinaryIO]:
    """Open a path, bytes or a binary file as a binary file that stands at its start and can seek.

    A file that was opened here is closed at the end; one that was given stays open. What cannot seek is read into
    memory. ``kind`` says what was hoped for, in messages.

    Raises:
        MediaNotFoundError: the path does not exist.
        MediaError: the source is a folder, is empty, cannot be opened, or is none of the three.
    """
    if not isinstance(source, (str, os.PathLike)):
        yield seekable_file(source, name, kind)
        return
    path = check_path(source)
    if path.is_dir():
        raise MediaError(f"{name}: is a folder, not {with_article(kind)}")
    try:
        file = path.open("rb")
    except OSError as error:
        raise MediaError(f"{name}: cannot be opened ({error.strerror})") from error
    with file:
        yield file


def seekable_file(source: Any, name: str, kind: str) -> BinaryIO:
    """Return what :func:`opened` yields, for bytes and binary files alone: there is nothing to close.

    Raises:
        MediaError: the source is empty, or neither bytes nor a file.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        file: BinaryIO = io.BytesIO(source)
    elif hasattr(source, "read"):
        can_seek = hasattr(source, "seekable") and source.seekable()
        file = source if can_seek else io.BytesIO(source.read())
        file.seek(0)
    else:
        raise MediaError(f"{name}: a {type(source).__name__} is not {with_article(kind)}")
    if not file.read(1):
        raise MediaError(f"{name}: the file is empty")
    file.seek(0)
    return file


def kind_of_path(path: str | os.PathLike) -> str:
    """Return the kind of the medium at a path, as :func:`videollama2.media.kinds.kind_of`; a folder is a video.

    Raises:
        MediaNotFoundError: the path does not exist.
        MediaError: the file is empty, cannot be opened, or is of no kind that is read here.
    """
    # Millions of files are looked at, so the system is asked for as little as possible.
    text = describe_source(path)
    if stat.S_ISDIR(_status_of(text).st_mode):
        return VIDEO
    try:
        head = _head_of(text)
        if is_told_by(head):
            return kind_of(head, text)
        with open(text, "rb") as file:
            return kind_of(file, text)
    except OSError as error:
        raise MediaError(f"{text}: cannot be opened ({error.strerror})") from error


def _head_of(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        return os.read(descriptor, HEAD_BYTES)
    finally:
        os.close(descriptor)
