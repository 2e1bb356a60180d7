"""Reads Parquet files, and the folders that ``Dataset.save_to_disk`` of Hugging Face ``datasets`` writes.

Each row is a record, with a column for each key. Under ``image``, ``video`` and ``audio`` (or their plurals) is the
path of a file, its content, or a struct of ``bytes`` and ``path``, as the features ``Image``, ``Video`` and ``Audio``
of ``datasets`` are stored; or a list of these. Content stays in the file and is read when a record is used. The files
are read with pyarrow; ``datasets`` itself is not needed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from videollama2.data.formats.storage import is_store_address, member_path, open_file, whole_path
from videollama2.errors import DataError, MissingDependencyError, first_line
from videollama2.media.kinds import KINDS

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET_SUFFIXES = (".parquet", ".pq")

_STATE_FILE, _SPLITS_FILE = "state.json", "dataset_dict.json"
"""Files in the folder of a saved ``Dataset``, and in that of a ``DatasetDict``."""

_MEDIA_COLUMNS = frozenset(name for kind in KINDS for name in (kind, f"{kind}s"))
_TURN_COLUMNS = ("conversations", "messages")
_KEPT_COLUMNS = 4
"""Number of columns of row groups that a process keeps; records of one row group mostly come soon after each other."""


def is_parquet(file: str | os.PathLike[str]) -> bool:
    """Whether an annotation file is a Parquet file; only its name counts."""
    return os.fspath(file).lower().endswith(PARQUET_SUFFIXES)


def is_dataset_folder(file: str | os.PathLike[str]) -> bool:
    """Whether an annotation file is the folder of a saved ``Dataset`` or ``DatasetDict``."""
    return not is_store_address(file) and any((Path(file) / name).is_file() for name in (_STATE_FILE, _SPLITS_FILE))


# --------------------------------------------------------------------------------------------------- Parquet files


def parquet_rows(file: str | os.PathLike[str]) -> Iterator[Any]:
    """Yield the row of each record of a Parquet file, one row group in memory at a time.

    Raises:
        DataError: the file cannot be read. MissingDependencyError: pyarrow is not installed.
    """
    source = whole_path(file)
    opened = _parquet(source)
    _check_names(source, opened.schema_arrow.names)
    for group in range(opened.num_row_groups):
        table = _read(source, lambda group=group: opened.read_row_group(group, use_threads=False))
        placed = {
            name: _placed_in_group(table.column(name).combine_chunks(), source, group, name)
            for name in table.column_names
            if name in _MEDIA_COLUMNS
        }
        yield from _rows(table, placed)


def parquet_digest(file: str | os.PathLike[str]) -> str:
    """Return a digest of a Parquet file's footer and of its columns without media.

    The footer has the sizes and positions of all columns. Of the media, nothing else is read.

    Raises:
        DataError, MissingDependencyError: see :func:`parquet_rows`.
    """
    source = whole_path(file)
    footer = _parquet(source).metadata
    digest = hashlib.sha256()
    with open_file(source) as stream:
        for group in range(footer.num_row_groups):
            for number in range(footer.num_columns):
                column = footer.row_group(group).column(number)
                digest.update(f"{column.path_in_schema} {column.num_values} {column.total_compressed_size}".encode())
                if column.path_in_schema.partition(".")[0] not in _MEDIA_COLUMNS:
                    stream.seek(column.dictionary_page_offset or column.data_page_offset)
                    digest.update(stream.read(column.total_compressed_size))
    digest.update(str(footer.schema.to_arrow_schema().remove_metadata()).encode())
    return digest.hexdigest()


def parquet_content(file: str, group: int, row: int, column: str, item: int | None) -> bytes:
    """Return the content of one medium of a Parquet file.

    Args:
        group, row: row group, and row within it.
        item: place in the cell's list; None if the cell is not a list.

    Raises:
        DataError: the file cannot be read, or has no such medium. MissingDependencyError: pyarrow is not installed.
    """
    try:
        cell = _column(file, group, column, _state(file))[row].as_py()
        value = cell if item is None else cell[item]
        content = value["bytes"] if isinstance(value, dict) else value
    except (IndexError, KeyError, TypeError) as error:
        raise DataError(f"{file}: no longer has this row") from error
    if not isinstance(content, bytes):
        raise DataError(f"{file}: no longer has content there")
    return content


def _state(file: str) -> tuple[int, ...]:
    """Return what tells whether something kept of a file may still be used: the process, and the file's version.

    A file that a loader worker inherits would share its position with the other workers.
    """
    if is_store_address(file):
        return (os.getpid(),)
    status = _read(file, lambda: os.stat(file))
    return os.getpid(), status.st_ino, status.st_size, status.st_mtime_ns


@lru_cache(_KEPT_COLUMNS)
def _column(file: str, group: int, column: str, state: tuple[int, ...]) -> Any:
    opened = _kept_parquet(file, state)
    return _read(file, lambda: opened.read_row_group(group, [column], use_threads=False).column(column))


@lru_cache(_KEPT_COLUMNS)
def _kept_parquet(file: str, state: tuple[int, ...]) -> Any:
    return _parquet(file)


def _parquet(file: str) -> Any:
    _arrow(file)
    from pyarrow import parquet

    return _read(file, lambda: parquet.ParquetFile(open_file(file) if is_store_address(file) else file))


def _placed_in_group(values: Any, file: str, group: int, column: str) -> list[Any]:
    def place(value: Any, row: int, item: int | None = None) -> Any:
        where = f"{group}.{row}" if item is None else f"{group}.{row}.{item}"
        content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if not isinstance(content, bytes):
            return path or value
        return member_path(file, where, f"{column}/{PurePath(path or '').name}")

    return [
        [place(each, row, item) for item, each in enumerate(cell)] if isinstance(cell, list) else place(cell, row)
        for row, cell in enumerate(values.to_pylist())
    ]


# ------------------------------------------------------------------------------------------------- folders of datasets


def dataset_rows(folder: str | os.PathLike[str]) -> Iterator[Any]:
    """Yield the row of each record of a folder that ``Dataset.save_to_disk`` has written.

    Raises:
        DataError: the folder cannot be read, or holds several splits. MissingDependencyError: pyarrow is not installed.
    """
    for file in _arrow_files(folder):
        whole, batches = _batches(file)
        for batch in batches:
            _check_names(file, batch.schema.names)
            placed = {
                name: _placed_in_file(batch.column(name), file, whole)
                for name in batch.schema.names
                if name in _MEDIA_COLUMNS
            }
            yield from _rows(batch, placed)


def dataset_digest(folder: str | os.PathLike[str]) -> str:
    """Return a digest of a dataset's columns without media, and of the places and sizes of its media.

    Raises:
        DataError, MissingDependencyError: see :func:`dataset_rows`.
    """
    digest = hashlib.sha256()
    for file in _arrow_files(folder):
        whole, batches = _batches(file)
        digest.update(Path(file).name.encode())
        for batch in batches:
            digest.update(str(batch.schema.remove_metadata()).encode())
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                for buffer in filter(None, column.buffers()):
                    place = buffer.address - whole.address
                    digest.update(f"{place if 0 <= place < whole.size else ''} {buffer.size}".encode())
                    if name not in _MEDIA_COLUMNS:
                        digest.update(buffer)
    return digest.hexdigest()


def _arrow_files(folder: str | os.PathLike[str]) -> list[str]:
    if not (Path(folder) / _STATE_FILE).is_file():
        splits = _described(folder, _SPLITS_FILE, lambda content: list(content["splits"]))
        paths = " or ".join(os.path.join(folder, split) for split in splits)
        raise DataError(f"{folder}: is a dataset of several splits; name one of them: {paths}")
    names = _described(folder, _STATE_FILE, lambda content: [entry["filename"] for entry in content["_data_files"]])
    return [os.path.join(whole_path(folder), name) for name in names]


def _described(folder: str | os.PathLike[str], name: str, names_in: Callable[[Any], list[str]]) -> list[str]:
    """Return the names that a file of a saved dataset lists."""
    try:
        return names_in(json.loads((Path(folder) / name).read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: cannot be read as a saved dataset ({error!r})") from error


def _batches(file: str) -> tuple[pa.Buffer, Iterator[Any]]:
    """Return an Arrow file mapped into memory, and its record batches, whose values lie in it."""
    arrow = _arrow(file)
    whole = _read(file, lambda: arrow.memory_map(file).read_buffer())
    return whole, _read(file, lambda: iter(arrow.ipc.open_stream(whole)))


def _placed_in_file(values: Any, file: str, whole: pa.Buffer) -> list[Any]:
    """Return the cells of a column, with content replaced by its place in the file."""
    arrow = _arrow(file)
    if arrow.types.is_list(values.type) or arrow.types.is_large_list(values.type):
        inner = _placed_in_file(values.values, file, whole)
        ends = values.offsets.to_pylist()
        spans = zip(values.is_valid().to_pylist(), ends, ends[1:], strict=False)
        return [inner[start:end] if is_there else None for is_there, start, end in spans]
    is_struct = arrow.types.is_struct(values.type)
    # Only flattening lets the fields of a struct that is null be null too.
    fields = dict(zip((field.name for field in values.type), values.flatten(), strict=True)) if is_struct else {}
    content = fields.get("bytes", values)
    if not (arrow.types.is_binary(content.type) or arrow.types.is_large_binary(content.type)):
        return values.to_pylist()
    paths = fields["path"].to_pylist() if "path" in fields else [None] * len(values)
    _, offsets, data = content.buffers()
    ends = memoryview(offsets).cast("q" if arrow.types.is_large_binary(content.type) else "i")
    start = data.address - whole.address if data else 0  # a buffer without content lies anywhere
    if not 0 <= start <= whole.size:
        raise DataError(f"{file}: is compressed; save the dataset without compression")
    first, cells = content.offset, []
    for row, is_there in enumerate(content.is_valid().to_pylist()):
        begin, size = ends[first + row], ends[first + row + 1] - ends[first + row]
        place = member_path(file, f"{start + begin}+{size}", PurePath(paths[row] or "").name)
        cells.append(place if is_there else paths[row])
    return cells


# ---------------------------------------------------------------------------------------------------------- both


def _rows(table: Any, placed: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    others = [name for name in table.schema.names if name not in placed]
    for number, row in enumerate(table.select(others).to_pylist()):
        row = without_nulls({**row, **{name: cells[number] for name, cells in placed.items()}})
        for name in _TURN_COLUMNS:
            if isinstance(turns := row.get(name), dict):
                row[name] = _list_of_objects(turns)
        yield row


def _list_of_objects(turns: dict[str, Any]) -> Any:
    """Return the turns that ``Sequence`` of ``datasets`` stores as an object of lists; anything else as it is."""
    lists = list(turns.values())
    if not all(isinstance(each, list) and len(each) == len(lists[0]) for each in lists):
        return turns  # the record's check tells what is wrong
    return [dict(zip(turns, values, strict=True)) for values in zip(*lists, strict=True)]


def _check_names(file: str, names: list[str]) -> None:
    if double := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{file}: has several columns {double!r}")


def without_nulls(value: Any) -> Any:
    """Leave out the keys that a record does not have: a table has every key in every row."""
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


def _arrow(file: str) -> Any:
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise MissingDependencyError.of(f"{file}: reading it needs pyarrow", "[data]") from error
    import pyarrow.ipc

    return pyarrow


def _read(file: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (OSError, ValueError) as error:  # pyarrow's errors are of both kinds
        raise DataError(f"{file}: cannot be read ({first_line(error)})") from error
