"""Reads media wherever they lie: on a disk, in a store, or inside a tar shard, a Parquet file or a saved dataset."""

from __future__ import annotations

from videollama2.data.formats.storage import MEMBER, is_member, is_store_address, open_file
from videollama2.data.formats.tables import parquet_content
from videollama2.errors import DataError, MediaError
from videollama2.media.kinds import kind_of
from videollama2.media.sources import kind_of_path


def source_of(path: str) -> str | bytes:
    """Return what a medium is read from: the path of a file on a disk, and otherwise the content.

    Raises:
        MediaError: see :func:`content_of`.
    """
    return content_of(path) if is_member(path) or is_store_address(path) else path


def content_of(path: str) -> bytes:
    """Return the content of a medium that lies in a store or inside a file.

    Raises:
        MediaError: the file cannot be read, or is shorter than it was.
    """
    member = MEMBER.fullmatch(path)
    try:
        if member is None:
            return _part(path, 0, -1)
        if member["size"] is None:
            item = None if member["item"] is None else int(member["item"])
            column = member["name"].partition("/")[0]
            return parquet_content(member["file"], int(member["group"]), int(member["row"]), column, item)
        content = _part(member["file"], int(member["offset"]), int(member["size"]))
    except (OSError, DataError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"{path}: cannot be opened ({reason})") from error
    if len(content) != int(member["size"]):
        raise MediaError(f"{path}: the shard ends within this file")
    return content


def kind_at(path: str) -> str:
    """Return the kind of a medium anywhere; see :func:`videollama2.media.kinds.kind_of`.

    Raises:
        MediaError: it cannot be read, or is of no kind that is read here.
    """
    if is_member(path):
        return kind_of(content_of(path), path)
    if not is_store_address(path):
        return kind_of_path(path)
    try:
        with open_file(path) as file:
            return kind_of(file, path)
    except (OSError, DataError) as error:
        raise MediaError(f"{path}: cannot be opened ({getattr(error, 'strerror', None) or error})") from error


def _part(file: str, offset: int, size: int) -> bytes:
    with open_file(file) as opened:
        opened.seek(offset)
        return opened.read(size)
