"""Opens files on disks and in stores: a path is opened as such, an address (``s3://...``) by fsspec.

Places inside a file have the form ``FILE::PLACE::NAME``. ``PLACE`` is ``OFFSET+SIZE`` where the content lies in the
file as it is, as in tar shards and Arrow files, so that it can be read in any order without a look at the rest; or
``GROUP.ROW`` or ``GROUP.ROW.ITEM`` in Parquet files, whose row groups are compressed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import BinaryIO, cast

from videollama2.errors import DataError, MissingDependencyError

_ADDRESS = re.compile(r"(?!https?:)[A-Za-z][A-Za-z0-9+.-]+://")
"""The beginning of an address of a store. Web pages are none, and the drives of Windows have one letter."""

_WEB_PAGE = re.compile(r"https?://", re.IGNORECASE)

MEMBER = re.compile(
    r"(?P<file>.*)::(?:(?P<offset>\d+)\+(?P<size>\d+)|(?P<group>\d+)\.(?P<row>\d+)(?:\.(?P<item>\d+))?)::(?P<name>[^:]*)"
)


def is_store_address(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an address of a store, such as ``s3://bucket/clip.mp4``."""
    return _ADDRESS.match(os.fspath(path)) is not None


def whole_path(file: str | os.PathLike[str]) -> str:
    """Return the absolute path of a file; an address is returned as it is."""
    return os.fspath(file) if is_store_address(file) else os.path.abspath(file)


def folder_of(file: str | os.PathLike[str]) -> str:
    """Return the folder of a file, without a slash at the end."""
    return os.fspath(file).rpartition("/")[0] if is_store_address(file) else str(Path(file).parent)


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading.

    Raises:
        OSError: it cannot be opened.
        DataError: it is a web page, or an address of a kind that fsspec does not know.
        MissingDependencyError: the package that fsspec needs for the address is not installed.
    """
    if _WEB_PAGE.match(os.fspath(path)):
        raise DataError(f"{path}: web pages are not read; download the file and give its path")
    if not is_store_address(path):
        return open(path, "rb")
    import fsspec.core  # a dependency of huggingface_hub; imported here because few runs need it

    address = os.fspath(path)
    try:
        filesystem, name = fsspec.core.url_to_fs(address)
        return cast("BinaryIO", filesystem.open(name, "rb"))
    except ImportError as error:
        raise MissingDependencyError(f"{address}: {error}") from error
    except ValueError as error:
        raise DataError(f"{address}: cannot be opened ({error})") from error


def member_path(file: str, place: str, name: str) -> str:
    """Return the path of a medium inside a file; see the top of this module."""
    return f"{file}::{place}::{name.replace(':', '_')}"


def is_member(path: str) -> bool:
    """Whether a path leads into a file."""
    return "::" in path and MEMBER.fullmatch(path) is not None
