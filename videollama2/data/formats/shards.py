"""Reads tar shards as WebDataset writes them: the members ``KEY.json``, ``KEY.mp4``, ... together are one record.

The media stay in the shard, and their paths say where (:mod:`videollama2.data.formats.storage`), so that records can be
read in any order, and a run goes on within a shard exactly.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from videollama2.data.formats.contents import content_of, kind_at
from videollama2.data.formats.storage import member_path, open_file, whole_path
from videollama2.errors import DataError, MediaError
from videollama2.media.kinds import KINDS, kind_by_name

_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
"""Names of archives end so. Those that are compressed are refused, for their members cannot be read in any order."""


_PART_KEYS = tuple(name for kind in KINDS for name in (kind, f"{kind}_url"))
"""Keys of a message's part that name a medium."""


def is_shard(file: str | os.PathLike[str]) -> bool:
    """Whether an annotation file is a tar archive; only its name counts, since any file may begin like one."""
    return os.fspath(file).lower().endswith(_ENDINGS)


def shard_rows(file: str | os.PathLike[str]) -> Iterator[Any]:
    """Yield the row of each record of a shard, in the order in which their first members stand in it.

    A row is the content of ``KEY.json``. A path in it, or in a part of its ``messages``, that names a member of the
    record, or a file ending as a member does (``mp4`` for ``KEY.mp4``), becomes that member's. If it names no media,
    the media among the record's members are its media. As in WebDataset, capital letters in endings are like small
    ones, and files whose names have no ending or begin with a dot are no members of records. The members of a record
    need not stand together.

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
        except (ValueError, RecursionError) as error:
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
            for member in archive:
                if member.issparse():
                    raise DataError(f"{source}: {member.name} is stored with holes: make the archive without --sparse")
                if member.isfile():
                    yield member
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
        if isinstance(value, dict):
            return {name: inside(each) if name in ("path", "url") else each for name, each in value.items()}
        if not isinstance(value, str):
            return value
        base, dot, ending = Path(value).name.partition(".")
        return names.get(base + dot + ending.lower()) or names.get(Path(value).name.lower(), value)

    found = {name: inside(row[name]) for kind in KINDS for name in (kind, f"{kind}s") if row.get(name)}
    messages, is_named = _with_named_parts(row.get("messages"), inside)
    if not found and not is_named:
        found = _media_among(paths)
    return {"id": key, **row, **({"messages": messages} if is_named else {}), **found}


def _with_named_parts(messages: Any, inside: Callable[[Any], Any]) -> tuple[Any, bool]:
    """Return messages whose parts name members of the record by their paths, and whether any part names a medium."""
    is_named = False

    def placed(part: Any) -> Any:
        nonlocal is_named
        media = {name: part[name] for name in _PART_KEYS if part.get(name)} if isinstance(part, dict) else {}
        is_named = is_named or bool(media)
        return {**part, **{name: inside(value) for name, value in media.items()}} if media else part

    if not isinstance(messages, list):
        return messages, False
    placed_messages = [
        {**each, "content": [placed(part) for part in each["content"]]}
        if isinstance(each, dict) and isinstance(each.get("content"), list)
        else each
        for each in messages
    ]
    return placed_messages, is_named


def _media_among(paths: dict[str, str]) -> dict[str, Any]:
    """Return the media among the members of a record by their kinds; other members, such as ``KEY.txt``, are none."""
    found: dict[str, Any] = {}
    for path in paths.values():
        try:
            kind = kind_at(path)
        except MediaError:
            kind = kind_by_name(path)
        if kind is not None:  # a damaged medium is told by the record's check
            found.setdefault(kind, []).append(path)
    return found
