"""Reads annotation files and checks their records.

An annotation file is a JSON list, or JSON Lines, of::

    {"id": ..., "video" | "image" | "audio": path or list of paths, "va": true or false, "start": seconds,
     "end": seconds, "num_frames": number, "system": text,
     "conversations": [{"from": "human" | "gpt", "value": ...}, ...]}

A record without media is text only. Paths are relative to the data folder; a sound that is not there is looked for
at its path as it is given, as published. Whether a file is an image or a video is determined from its content, so an
image under ``video`` is treated as an image; a file under ``audio`` is always heard, also if it is a video. If a record
has several of the keys, each tag takes the next path of its own key. ``videos``, ``images`` and ``audios``, the names
that other programs use, are synonyms. ``va`` says whether the sound of the record's videos is heard too. ``start`` and
``end`` select a part of the record's videos and sounds, and ``num_frames`` is the number of its videos' frames. A text
under ``system`` (or ``system_prompt``) is placed before the conversation, as is a first turn from ``system``.
:mod:`videollama2.data.forms` reads ``messages`` and other forms of conversations.

Unsupported keys that would change what is learned are refused by name. Others, such as the name of the source, are
allowed, and ``videollama2 data check`` counts them.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, overload

from tqdm import tqdm

from videollama2.commands import hides_bar
from videollama2.data.forms import FORM_KEYS, MESSAGE_KEYS, published_form
from videollama2.data.index import Index, file_digest, mapped
from videollama2.data.rows import read_rows
from videollama2.errors import DataError, MediaError, PromptError
from videollama2.media.frames import FrameSampling
from videollama2.media.kinds import AUDIO, KINDS, TAGS, VIDEO
from videollama2.media.sources import check_path, kind_of_path
from videollama2.prompting import SPEAKERS, conversation_messages

MEDIA_KEYS = {key: kind for kind in KINDS for key in (kind, f"{kind}s")}
"""Keys that hold media, with the kind whose tag represents each of their paths in the text."""

_SYSTEM_KEYS = ("system", "system_prompt")
_SAMPLING_KEYS = ("start", "end", "num_frames")
READ_KEYS = frozenset(("id", "conversations", "va", *_SAMPLING_KEYS, *FORM_KEYS, *_SYSTEM_KEYS, *MEDIA_KEYS))
_TURN_KEYS = frozenset(("from", "value"))

_PATHS_ELSEWHERE = f"media are read from {' and '.join(map(repr, KINDS))}"
_REFUSED_KEYS = dict.fromkeys(("image_path", "video_path", "audio_path", "image_file", "video_file"), _PATHS_ELSEWHERE)
"""Keys of other formats that hold media, with the reason why they are refused."""

SHOWN_PROBLEMS = 10
"""Maximum number of problems listed in one error message; further ones are only counted."""

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_BLOCK_FILE, _ENDS_FILE, _PROBLEMS_FILE = "records.jsons", "ends.u64", "problems.json"

_READERS = 16
"""Number of threads that read files if this is mostly waiting, as on a file server."""
_ROWS_EACH = 64

_TAG = re.compile("|".join(map(re.escape, TAGS.values())))


@dataclass(frozen=True, slots=True)
class Medium:
    """One file of a record.

    Attributes:
        kind: ``image``, ``video`` or ``audio``.
        path: where the file is.
        start, end: bounds of a video or a sound, in seconds.
        va: whether a video is heard as well as seen.
        num_frames: number of a video's frames; None leaves it to the model.
    """

    kind: str
    path: str
    start: float | None = None
    end: float | None = None
    va: bool = False
    num_frames: int | None = None

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds that are given."""
        bounds = {"start": self.start, "end": self.end}
        return {name: value for name, value in bounds.items() if value is not None}

    @property
    def options(self) -> dict[str, float]:
        """The options that the processor receives in addition to the path."""
        return self.bounds if self.num_frames is None else {**self.bounds, "num_frames": self.num_frames}

    @property
    def parts(self) -> tuple[str, ...]:
        """The kinds of what the model receives: a video that is heard is followed by its sound."""
        return (self.kind, AUDIO) if self.va else (self.kind,)


@dataclass(frozen=True, slots=True)
class Record:
    """One checked annotation. ``media`` are in the order of their tags in ``conversations``."""

    id: str
    source: str
    media: tuple[Medium, ...]
    conversations: tuple[dict[str, str], ...]

    @property
    def name(self) -> str:
        """The record's name in messages: file and id."""
        return f"{self.source}: record {self.id!r}"

    @property
    def kinds(self) -> list[str]:
        return [medium.kind for medium in self.media]


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
        media = [tuple(getattr(medium, name) for name in Medium.__slots__) for medium in record.media]
        text = _ENCODER.encode((record.id, media, record.conversations))
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
        name, media, conversations = json.loads(text)
        return Record(name, self.source, tuple(Medium(*medium) for medium in media), tuple(conversations))


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
    read = _read_set if index is None else partial(_indexed_set, index)
    sets = [
        read(file, data_folder, problems, progress, unread, heard) for file, heard in zip(files, of_each, strict=True)
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


def _indexed_set(
    index: Index,
    file: str | os.PathLike[str],
    data_folder: str | os.PathLike[str] | None,
    problems: list[str],
    progress: bool,
    unread: Counter[str] | None,
    va: bool,
) -> PackedRecords:
    def write(folder: Path) -> None:
        found: list[str] = []
        _read_set(file, data_folder, found, progress, unread, va).save(folder)
        (folder / _PROBLEMS_FILE).write_text(json.dumps(found))

    source = os.fspath(file)
    where = os.path.abspath(data_folder if data_folder is not None else Path(file).parent)
    entry = index.entry(["records", file_digest(file), source, os.fspath(data_folder or ""), where, va], write)
    problems += json.loads((entry / _PROBLEMS_FILE).read_text())
    return PackedRecords.open(source, entry)


def _read_set(
    file: str | os.PathLike[str],
    data_folder: str | os.PathLike[str] | None,
    problems: list[str],
    progress: bool,
    unread: Counter[str] | None,
    va: bool,
) -> PackedRecords:
    source = os.fspath(file)
    folder = Path(data_folder) if data_folder is not None else Path(file).parent
    records = PackedRecords(source)

    def parse(rows: list[tuple[int, Any]]) -> list[Record | str]:
        return [_record_or_problem(raw, number, source, folder, va) for number, raw in rows]

    rows = enumerate(read_rows(file))
    found_any = False
    with (
        ThreadPoolExecutor(_READERS) as readers,
        tqdm(desc=f"reading {source}", unit=" records", delay=2, disable=hides_bar(progress)) as bar,
    ):
        # Reading begins with one thread, which is fastest for local files, because several would wait for each other
        # (GIL). If the first part shows that the time was spent waiting for a file server, the thread pool takes over.
        run: Callable[..., Iterable[list[Record | str]]] = map
        while parts := list(islice(_parts(rows), 2 * _READERS)):
            if unread is not None:
                unread.update(key for part in parts for _, raw in part for key in _unread_keys(raw))
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
        raise DataError(f"{file}: there is no record in this file")
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


def parse_record(raw: Any, number: int, source: str, folder: Path, va: bool = False) -> Record:
    """Check one row and return its record.

    Args:
        raw: the row as read.
        number: its index in the file from 0, which names it if it has no id.
        source: the annotation file.
        folder: folder to which its media paths are relative.
        va: whether its videos are heard, unless it says so itself.

    Raises:
        DataError: the row violates a rule; the message names file, record and rule.
    """
    name = raw.get("id", f"#{number}") if isinstance(raw, dict) else f"#{number}"
    try:
        if not isinstance(raw, dict):
            raise DataError(f"a record must be an object with 'conversations', got {type(raw).__name__}")
        raw = published_form(raw)
        conversations = _conversations(raw)
        _refuse_keys(raw)
        media = _media(raw, _ordered_paths(raw, conversations), folder, va)
        conversation_messages(conversations, [medium.kind for medium in media])
        _refuse_blank_answers(conversations)
    except (DataError, MediaError, PromptError) as error:
        raise DataError(f"{source}: record {str(name)!r}: {error}") from error
    return Record(str(name), source, media, tuple(conversations))


def _conversations(raw: dict[str, Any]) -> list[dict[str, str]]:
    turns = raw.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise DataError(f"'conversations' must be a list of turns with at least one, got {turns!r}")
    for turn in turns:
        if not isinstance(turn, dict):
            raise DataError(f"a turn must be an object with 'from' and 'value', got {turn!r}")
    given = [key for key in _SYSTEM_KEYS if raw.get(key) not in (None, "")]
    if len(given) > 1:
        raise DataError(f"{' and '.join(map(repr, given))} mean the same: a record may have one of them")
    return [*({"from": "system", "value": raw[key]} for key in given), *turns]


def _ordered_paths(raw: dict[str, Any], conversations: list[dict[str, str]]) -> list[tuple[str, str]]:
    """Return the record's paths in the order of the tags, each with the kind that it is named under."""
    paths: dict[str, list[tuple[str, str]]] = {}
    for key, kind in MEDIA_KEYS.items():
        # Other programs write an empty list under the plural names if there are no such media.
        if raw.get(key) is not None and not (key != kind and raw[key] == []):
            if kind in paths:
                raise DataError(f"{kind!r} and {key!r} mean the same: a record may have one of them")
            paths[kind] = [(kind, path) for path in _paths(raw[key], key)]
    if len(paths) < 2:
        return next(iter(paths.values()), [])
    ordered = []
    for turn in conversations:
        for tag in _TAG.findall(str(turn.get("value"))) if SPEAKERS.get(str(turn.get("from"))) == "user" else ():
            queue = paths[tag.strip("<>")]
            if not queue:
                raise DataError(f"there are more {tag} tags than paths under {tag.strip('<>')!r}")
            ordered.append(queue.pop(0))
    for key, queue in paths.items():
        if queue:
            raise DataError(f"{len(queue)} path(s) under {key!r} have no <{key}> tag")
    return ordered


def _paths(value: Any, key: str) -> list[str]:
    paths = list(value) if isinstance(value, list) else [value]
    if not paths or not all(isinstance(path, str) and path for path in paths):
        raise DataError(f"{key!r} must be a path or a list of paths, got {value!r}")
    return paths


def _media(raw: dict[str, Any], paths: Sequence[tuple[str, str]], folder: Path, va: bool) -> tuple[Medium, ...]:
    bounds = {key: raw[key] for key in _SAMPLING_KEYS if raw.get(key) is not None}
    FrameSampling(**bounds)  # raises an error for impossible bounds
    asked = raw.get("va")
    if not isinstance(asked, bool | None):
        raise DataError(f"'va' must be true or false, got {asked!r}")
    media = []
    for named, path in paths:
        kind, full = _found(named, path, folder)
        own = {key: bounds[key] for key in KINDS[kind].options & bounds.keys()}
        media.append(Medium(kind, full, **own, va=kind == VIDEO and (va if asked is None else asked)))
    if bounds.keys() - {"num_frames"} and not any(medium.bounds for medium in media):
        raise DataError(f"{' and '.join(map(repr, bounds))} bound a video or a sound, and this record has none")
    if "num_frames" in bounds and not any(medium.num_frames for medium in media):
        raise DataError("'num_frames' counts the frames of a video, and this record has none")
    if asked and not any(medium.va for medium in media):
        raise DataError("'va' is true, and this record has no video that could be heard")
    return tuple(media)


def _found(named: str, path: str, folder: Path) -> tuple[str, str]:
    """Return the kind and the full path of the file ``path``, which the record has under the key ``named``."""
    full = os.path.join(folder, path)
    if named == AUDIO:
        # The published code does not join the folder before the paths of sounds.
        if not os.path.exists(full) and os.path.exists(path):
            full = path
        check_path(full)
        return AUDIO, full
    kind = kind_of_path(full)
    if kind == AUDIO:
        raise DataError(f"{full}: is a sound, which belongs under {AUDIO!r} and not under {named!r}")
    return kind, full


def _refuse_keys(raw: dict[str, Any]) -> None:
    for key, reason in _REFUSED_KEYS.items():
        if raw.get(key) not in (None, "", [], {}):
            raise DataError(f"{key!r} is not used: {reason}")


def _refuse_blank_answers(conversations: Sequence[dict[str, str]]) -> None:
    questions = 0  # an answer before the first question is dropped, see conversation_messages
    for turn in conversations:
        role = SPEAKERS[turn["from"]]
        questions += role == "user"
        if role == "assistant" and questions and not turn["value"].strip():
            raise DataError(f"answer {questions} is empty: there is nothing to learn from it")


def _unread_keys(raw: Any) -> set[str]:
    """Return the keys of a row that have no effect, if it is a row of this format at all."""
    if not isinstance(raw, dict):
        return set()
    inner = set()
    for name, known in (("conversations", _TURN_KEYS), ("messages", MESSAGE_KEYS)):
        turns = raw.get(name)
        for turn in turns if isinstance(turns, list) else ():
            inner |= {f"{name}.{key}" for key in turn.keys() - known} if isinstance(turn, dict) else set()
    return (raw.keys() - READ_KEYS - _REFUSED_KEYS.keys()) | inner
