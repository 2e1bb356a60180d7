"""Reads annotation files: JSON lists or JSON Lines of records, which :mod:`videollama2.data.record` describes."""

from __future__ import annotations

import json
import mmap
import os
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, overload

from tqdm import tqdm

from videollama2.commands import hides_bar
from videollama2.data.index import Index, file_digest, mapped
from videollama2.data.record import Record, RecordMedium, parse_record, unread_keys
from videollama2.data.rows import read_rows
from videollama2.errors import DataError

SHOWN_PROBLEMS = 10
"""Maximum number of problems listed in one error message; further ones are only counted."""

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_BLOCK_FILE, _ENDS_FILE, _PROBLEMS_FILE = "records.jsons", "ends.u64", "problems.json"

_READERS = 16
"""Number of threads that read files if this is mostly waiting, as on a file server."""
_ROWS_EACH = 64


class PackedRecords(Sequence[Record]):
    """Records packed into one block of memory, which become objects only when they are accessed.

    Pretraining sets have millions of records. As objects they would take several times the memory, and again as much in
    each loader worker: reference counts are stored in the objects, so that counting copies a forked process's memory.

    Args:
        source: the annotation file of all records.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        # Records as JSON, one after the other; record i lies between ends i and i + 1.
        self._block: bytearray | mmap.mmap | bytes = bytearray()
        self._ends: array[int] | memoryview = array("Q", [0])
        self._folder: Path | None = None

    def append(self, record: Record) -> None:
        """Append one record of ``source``; records that were opened from a folder cannot grow."""
        assert isinstance(self._block, bytearray) and isinstance(self._ends, array)
        media = [tuple(getattr(medium, name) for name in RecordMedium.__slots__) for medium in record.media]
        preference = () if record.rejected is None else (record.rejected,)
        text = _ENCODER.encode((record.id, media, record.conversations, *preference))
        self._block += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._block))

    def save(self, folder: Path) -> None:
        """Write the records to two files in ``folder``."""
        (folder / _BLOCK_FILE).write_bytes(self._block)
        (folder / _ENDS_FILE).write_bytes(self._ends)

    @classmethod
    def open(cls, source: str, folder: Path) -> PackedRecords:
        """Map the records in a folder of :meth:`save` into memory, which all processes of a machine share."""
        records = cls(source)
        records._folder = folder
        records._block = mapped(folder / _BLOCK_FILE)
        records._ends = memoryview(mapped(folder / _ENDS_FILE)).cast("Q")
        return records

    @property
    def content(self) -> str | None:
        """A name for the content of records that were opened from an index; None for others."""
        return None if self._folder is None else self._folder.name

    def __reduce__(self) -> tuple[Any, ...]:
        if self._folder is not None:
            return PackedRecords.open, (self.source, self._folder)
        return _restored, (self.source, self._block, self._ends)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        with memoryview(self._block) as block:
            text = str(block[self._ends[index] : self._ends[index + 1]], "utf-8", "surrogatepass")
        name, media, conversations, *rejected = json.loads(text)
        media = tuple(RecordMedium(*medium) for medium in media)
        return Record(name, self.source, media, tuple(conversations), *rejected)


def _restored(source: str, block: bytearray, ends: array[int]) -> PackedRecords:
    records = PackedRecords(source)
    records._block, records._ends = block, ends
    return records


def read_records(
    files: Sequence[str | os.PathLike[str]],
    data_folder: str | os.PathLike[str] | None = None,
    va: Sequence[bool] = (False,),
) -> list[Record]:
    """Return all records of several annotation files, in order; see :func:`read_sets`."""
    return [record for records in read_sets(files, data_folder, va=va) for record in records]


def read_sets(
    files: Sequence[str | os.PathLike[str]],
    data_folder: str | os.PathLike[str] | None = None,
    skipped: list[str] | None = None,
    progress: bool = False,
    unread: Counter[str] | None = None,
    va: Sequence[bool] = (False,),
    index: Index | None = None,
) -> list[PackedRecords]:
    """Return the records of each annotation file.

    Args:
        files: JSON lists or JSON Lines.
        data_folder: folder to which media paths are relative; by default each annotation file's own folder.
        skipped: if given, records that violate a rule are left out, and their problems are appended to this list.
        progress: show a progress bar for each file that takes longer than a few seconds.
        unread: if given, unknown keys are counted here, those of turns as ``conversations.KEY``.
        va: whether videos are heard, unless their record says so itself; one value for each file, or one for all.
        index: where the result of a file is kept. A file with a known content is not read again, nor are its media
            looked at.

    Raises:
        DataError: a file cannot be read or holds no usable record; or, without ``skipped``, records violate a rule,
            and each is named with it.
    """
    problems: list[str] = []
    of_each = list(va) * len(files) if len(va) == 1 else va
    sets = [
        _Source(file, data_folder, heard, progress, unread).read(index, problems)
        for file, heard in zip(files, of_each, strict=True)
    ]
    if skipped is not None:
        skipped += problems
        for file, records in zip(files, sets, strict=True):
            if not records:
                raise DataError(f"{file}: every record of this file breaks a rule, the last one: {problems[-1]}")
    elif problems:
        more = len(problems) - SHOWN_PROBLEMS
        tail = [f"and {more} more"] if more > 0 else []
        raise DataError("\n".join([*problems[:SHOWN_PROBLEMS], *tail]))
    return sets


@dataclass(frozen=True)
class _Source:
    """One annotation file and the rules by which its records are read."""

    file: str | os.PathLike[str]
    data_folder: str | os.PathLike[str] | None
    va: bool
    progress: bool
    unread: Counter[str] | None

    @property
    def name(self) -> str:
        return os.fspath(self.file)

    @property
    def folder(self) -> Path:
        """The folder to which the paths of media are relative."""
        return Path(self.data_folder) if self.data_folder is not None else Path(self.file).parent

    def read(self, index: Index | None, problems: list[str]) -> PackedRecords:
        """Return the records, from the index if there is one. Problems of records are appended to the list."""
        return self._parse(problems) if index is None else self._from(index, problems)

    def _from(self, index: Index, problems: list[str]) -> PackedRecords:
        def write(folder: Path) -> None:
            found: list[str] = []
            self._parse(found).save(folder)
            (folder / _PROBLEMS_FILE).write_text(json.dumps(found))

        where, given = os.path.abspath(self.folder), os.fspath(self.data_folder or "")
        entry = index.entry(["records", file_digest(self.file), self.name, given, where, self.va], write)
        problems += json.loads((entry / _PROBLEMS_FILE).read_text())
        return PackedRecords.open(self.name, entry)

    def _parse(self, problems: list[str]) -> PackedRecords:
        folder, records = self.folder, PackedRecords(self.name)

        def parse(rows: list[tuple[int, Any]]) -> list[Record | str]:
            return [_record_or_problem(raw, number, self.name, folder, self.va) for number, raw in rows]

        rows = enumerate(read_rows(self.file))
        found_any = False
        with (
            ThreadPoolExecutor(_READERS) as readers,
            tqdm(desc=f"reading {self.name}", unit=" records", delay=2, disable=hides_bar(self.progress)) as bar,
        ):
            # Reading begins with one thread, which is fastest for local files, because several would wait for each
            # other (GIL). If the first part shows that the time was spent waiting for a file server, the thread pool
            # takes over.
            run: Callable[..., Iterable[list[Record | str]]] = map
            while parts := list(islice(_parts(rows), 2 * _READERS)):
                if self.unread is not None:
                    self.unread.update(key for part in parts for _, raw in part for key in unread_keys(raw))
                begin, worked = time.perf_counter(), time.thread_time()
                for parsed in run(parse, parts):
                    for found in parsed:
                        if isinstance(found, Record):
                            records.append(found)
                        else:
                            problems.append(found)
                    bar.update(len(parsed))
                if not found_any and _mostly_waited(time.perf_counter() - begin, time.thread_time() - worked):
                    run = readers.map
                found_any = True
        if not found_any:
            raise DataError(f"{self.file}: there is no record in this file")
        return records


def _mostly_waited(seconds: float, worked: float) -> bool:
    return seconds > 3 * worked


def _parts(rows: Iterator[tuple[int, Any]]) -> Iterator[list[tuple[int, Any]]]:
    while part := list(islice(rows, _ROWS_EACH)):
        yield part


def _record_or_problem(raw: Any, number: int, source: str, folder: Path, va: bool) -> Record | str:
    try:
        return parse_record(raw, number, source, folder, va)
    except DataError as error:
        return str(error)
