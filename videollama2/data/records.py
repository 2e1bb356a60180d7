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
from dataclasses import asdict, dataclass
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any, overload

import numpy as np
from tqdm import tqdm

from videollama2.commands import hides_bar
from videollama2.data.caches.index import Index, file_digest, mapped
from videollama2.data.formats.rows import read_rows
from videollama2.data.formats.storage import folder_of, whole_path
from videollama2.data.record import Record, RecordMedium, parse_record, unread_keys
from videollama2.errors import DataError
from videollama2.media.frames import FrameSampling

SHOWN_PROBLEMS = 10
"""Maximum number of problems listed in one error message; further ones are only counted."""

_VALUES = attrgetter(*RecordMedium.__slots__)
_SHAPE = attrgetter("kind", "va", "num_frames", "counted")
RecordShape = tuple[tuple[str, bool, int | None, int | None], ...]
"""Of each medium of a record: kind, whether a video is heard, and its numbers of frames, see :class:`RecordMedium`."""
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_BLOCK_FILE, _ENDS_FILE, _PROBLEMS_FILE = "records.jsons", "ends.u64", "problems.json"
_SHAPES_FILE, _SHAPE_OF_FILE = "shapes.json", "shape_of.u32"

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
        # What the media of records are apart from their paths; records of one set have few different shapes.
        self._shapes: dict[RecordShape, int] = {}
        self._shape_of: array[int] | memoryview = array("I")

    @property
    def shapes(self) -> tuple[list[RecordShape], Sequence[int]]:
        """The different shapes of records' media, and the place of each record's shape among them.

        What depends on media but not on their content is found for millions of records without reading any of them.
        """
        return list(self._shapes), self._shape_of

    @property
    def sizes(self) -> np.ndarray:
        """Number of bytes of each record as it is kept."""
        return np.diff(np.asarray(self._ends).astype(np.int64))

    def append(self, record: Record) -> None:
        """Append one record of ``source``; records that were opened from a folder cannot grow."""
        assert isinstance(self._block, bytearray) and isinstance(self._ends, array)
        assert isinstance(self._shape_of, array)
        preference = () if record.rejected is None else (record.rejected,)
        text = _ENCODER.encode((record.id, list(map(_VALUES, record.media)), record.conversations, *preference))
        self._block += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._block))
        self._shape_of.append(self._shapes.setdefault(tuple(map(_SHAPE, record.media)), len(self._shapes)))

    def save(self, folder: Path) -> None:
        """Write the records to two files in ``folder``."""
        (folder / _BLOCK_FILE).write_bytes(self._block)
        (folder / _ENDS_FILE).write_bytes(self._ends)
        (folder / _SHAPES_FILE).write_text(json.dumps(list(self._shapes)))
        (folder / _SHAPE_OF_FILE).write_bytes(self._shape_of)

    @classmethod
    def open(cls, source: str, folder: Path) -> PackedRecords:
        """Map the records in a folder of :meth:`save` into memory, which all processes of a machine share."""
        records = cls(source)
        records._folder = folder
        records._block = mapped(folder / _BLOCK_FILE)
        records._ends = memoryview(mapped(folder / _ENDS_FILE)).cast("Q")
        shapes = json.loads((folder / _SHAPES_FILE).read_text())
        records._shapes = {tuple(map(tuple, shape)): place for place, shape in enumerate(shapes)}
        records._shape_of = memoryview(mapped(folder / _SHAPE_OF_FILE)).cast("I")
        return records

    @property
    def content(self) -> str | None:
        """A name for the content of records that were opened from an index; None for others."""
        return None if self._folder is None else self._folder.name

    def __reduce__(self) -> tuple[Any, ...]:
        if self._folder is not None:
            return PackedRecords.open, (self.source, self._folder)
        return _restored, (self.source, self._block, self._ends, self._shapes, self._shape_of)

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


def _restored(source: str, *values: Any) -> PackedRecords:
    records = PackedRecords(source)
    records._block, records._ends, records._shapes, records._shape_of = values
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
    sampling: FrameSampling | None = None,
) -> list[PackedRecords]:
    """Return the records of each annotation file; a file without any row has none.

    Args:
        files: JSON lists or JSON Lines.
        data_folder: folder to which media paths are relative; by default each annotation file's own folder.
        skipped: if given, records that violate a rule are left out, and their problems are appended to this list.
        progress: show a progress bar for each file that takes longer than a few seconds.
        unread: if given, unknown keys are counted here, those of turns as ``conversations.KEY``.
        va: whether videos are heard, unless their record says so itself; one value for each file, or one for all.
        index: where the result of a file is kept. A file with a known content is not read again, nor are its media
            looked at.
        sampling: see :func:`videollama2.data.record.parse_record`.

    Raises:
        DataError: a file cannot be read, or has rows and no usable record; or none of the files has a row; or, without
            ``skipped``, records violate a rule, and each is named with it.
    """
    problems: list[str] = []
    of_each = list(va) * len(files) if len(va) == 1 else va
    by_rate = sampling if sampling is not None and sampling.by_rate else None
    sets: list[PackedRecords] = []
    for file, heard in zip(files, of_each, strict=True):
        before = len(problems)
        sets.append(_Source(file, data_folder, heard, progress, unread, by_rate).read(index, problems))
        if skipped is not None:
            skipped += problems[before:]
            if problems[before:] and not sets[-1]:
                raise DataError(f"{file}: every record of this file breaks a rule, the last one: {problems[-1]}")
    if files and not problems and not any(sets):
        raise no_records(files)
    if skipped is None and problems:
        more = len(problems) - SHOWN_PROBLEMS
        tail = [f"and {more} more"] if more > 0 else []
        raise DataError("\n".join([*problems[:SHOWN_PROBLEMS], *tail]))
    return sets


def no_records(files: Sequence[str | os.PathLike[str]]) -> DataError:
    """Return the error for annotation files none of which has a record."""
    if len(files) == 1:
        return DataError(f"{files[0]}: there is no record in this file")
    return DataError(f"{files[0]} and {len(files) - 1} more: there is no record in any of these files")


@dataclass(frozen=True)
class _Source:
    """One annotation file and the rules by which its records are read."""

    file: str | os.PathLike[str]
    data_folder: str | os.PathLike[str] | None
    va: bool
    progress: bool
    unread: Counter[str] | None
    sampling: FrameSampling | None

    @property
    def name(self) -> str:
        return os.fspath(self.file)

    @property
    def folder(self) -> str:
        """The folder to which the paths of media are relative."""
        return folder_of(self.file) if self.data_folder is None else os.fspath(self.data_folder)

    def read(self, index: Index | None, problems: list[str]) -> PackedRecords:
        """Return the records, from the index if there is one. Problems of records are appended to the list."""
        return self._parse(problems) if index is None else self._from(index, problems)

    def _from(self, index: Index, problems: list[str]) -> PackedRecords:
        def write(folder: Path) -> None:
            found: list[str] = []
            self._parse(found).save(folder)
            (folder / _PROBLEMS_FILE).write_text(json.dumps(found))

        where, given = whole_path(self.folder), os.fspath(self.data_folder or "")
        rule = None if self.sampling is None else asdict(self.sampling)
        entry = index.entry(["records", file_digest(self.file), self.name, given, where, self.va, rule], write)
        problems += json.loads((entry / _PROBLEMS_FILE).read_text())
        return PackedRecords.open(self.name, entry)

    def _parse(self, problems: list[str]) -> PackedRecords:
        folder, records = self.folder, PackedRecords(self.name)

        def parse(rows: list[tuple[int, Any]]) -> list[Record | str]:
            return [_record_or_problem(raw, number, self.name, folder, self.va, self.sampling) for number, raw in rows]

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
                begin = _waits_and_worked()
                for parsed in run(parse, parts):
                    for found in parsed:
                        if isinstance(found, Record):
                            records.append(found)
                        else:
                            problems.append(found)
                    bar.update(len(parsed))
                if not found_any and _mostly_waited(begin, _waits_and_worked()):
                    run = readers.map
                found_any = True
        return records


def _waits_and_worked() -> tuple[int, float]:
    """Return how often this thread has waited for something, and the seconds it has worked, since it began."""
    try:
        import resource
    except ImportError:  # Windows does not count
        return 0, time.thread_time()
    usage = resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF))
    return usage.ru_nvcsw, time.thread_time()


def _mostly_waited(begin: tuple[int, float], end: tuple[int, float]) -> bool:
    """Whether a thread waited after every third of a millisecond of work or sooner.

    Time alone would not tell: a thread also stands still where other programs need the processor.
    """
    return end[0] - begin[0] > (end[1] - begin[1]) / 300e-6


def _parts(rows: Iterator[tuple[int, Any]]) -> Iterator[list[tuple[int, Any]]]:
    while part := list(islice(rows, _ROWS_EACH)):
        yield part


def _record_or_problem(raw: Any, *options: Any) -> Record | str:
    try:
        return parse_record(raw, *options)
    except DataError as error:
        return str(error)
