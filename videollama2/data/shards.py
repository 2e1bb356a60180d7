"""Reads tar shards as WebDataset writes them: the members ``KEY.json``, ``KEY.mp4``, ... together are one record.

The media stay in the shard, and their paths say where (:mod:`videollama2.data.storage`), so that records can be read in
any order, and a run goes on within a shard exactly.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from videollama2.data.contents import content_of, kind_at
from videollama2.data.storage import member_path, open_file, whole_path
from videollama2.errors import DataError
from videollama2.media.kinds import KINDS

_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
"""Names of archives end so. Those that are compressed are refused, for their members cannot be read in any order."""


def is_shard(file: str | os.PathLike[str]) -> bool:
    """Whether an annotation file is a tar archive; only its name counts, since any file may begin like one."""
    return os.fspath(file).lower().endswith(_ENDINGS)


def shard_rows(file: str | os.PathLike[str]) -> Iterator[Any]:
    """Yield the row of each record of a shard, in the order in which their first members stand in it.

    A row is the content of ``KEY.json``. A path in it that names a member of the record, or a file ending as a member
    does (``mp4`` for ``KEY.mp4``), becomes that member's; if it names no media, the record's members are its media.
    As in WebDataset, capital letters in endings are like small ones, and files whose names have no ending or begin with
    a dot are no members of records. The members of a record need not stand together.

    Raises:
        DataError: the shard cannot be read, is compressed, or has two members of the same name; or a record has no
            ``.json`` member or one that is not JSON.
    """
    source = whole_path(file)
    for key, paths in _records(source).items():
        described = paths.pop("json", None)
        if described is None:
            raise DataError(f"{file}: {key} has no member {key}.json that describes it")
        try:
            row = json.loads(content_of(described))
        except ValueError as error:
            raise DataError(f"{file}: {key}.json is not JSON ({error})") from error
        yield _with_media(row, key, paths) if isinstance(row, dict) else row


def shard_digest(file: str | os.PathLike[str]) -> str:
    """Return a digest of a shard's records and of the names, places, sizes and times of its media, which are not read.

    Raises:
        DataError: the shard cannot be read.
    """
    digest = hashlib.sha256()
    source = whole_path(file)
    for member in _members(source):
        digest.update(f"{member.name} {member.offset_data} {member.size} {member.mtime}\n".encode())
        if member.name.lower().endswith(".json"):
            digest.update(content_of(_path(source, member)))
    return digest.hexdigest()


def _records(source: str) -> dict[str, dict[str, str]]:
    """Return the paths of the members of each record by their endings."""
    records: dict[str, dict[str, str]] = {}
    for member in _members(source):
        key, ending = _split(member.name)
        if not ending or key.endswith("/") or not key:
            continue
        paths = records.setdefault(key, {})
        if ending in paths:
            raise DataError(f"{source}: {key}.{ending} stands in it twice")
        paths[ending] = _path(source, member)
    return records


def _members(source: str) -> Iterator[tarfile.TarInfo]:
    try:
        with open_file(source) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            yield from (member for member in archive if member.isfile())
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{source}: cannot be read as an uncompressed tar archive ({error})") from error


def _path(source: str, member: tarfile.TarInfo) -> str:
    return member_path(source, f"{member.offset_data}+{member.size}", member.name)


def _split(name: str) -> tuple[str, str]:
    """Return the key of a member and its ending in small letters, divided at the first dot of the file's name."""
    folder, slash, base = name.rpartition("/")
    key, _, ending = base.partition(".")
    return folder + slash + key, ending.lower()


def _with_media(row: dict[str, Any], key: str, paths: dict[str, str]) -> dict[str, Any]:
    names = {name: path for ending, path in paths.items() for name in (ending, f"{Path(key).name}.{ending}")}

    def inside(value: Any) -> Any:
        if isinstance(value, list):
            return [inside(each) for each in value]
        if not isinstance(value, str):
            return value
        base, dot, ending = Path(value).name.partition(".")
        return names.get(base + dot + ending.lower()) or names.get(Path(value).name.lower(), value)

    found = {name: inside(row[name]) for kind in KINDS for name in (kind, f"{kind}s") if row.get(name)}
    if not found:
        for path in paths.values():
            found.setdefault(kind_at(path), []).append(path)
    return {"id": key, **row, **found}
