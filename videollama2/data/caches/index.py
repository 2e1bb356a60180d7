"""Keeps results that were computed from annotation files in a folder, named by content.

All processes of a machine share an entry: the first one that needs it writes it, the others wait, and all of them map
its files into memory, where the operating system keeps them once.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollama2.data.formats.file_formats import format_of
from videollama2.data.formats.storage import open_file
from videollama2.errors import DataError

_FORMAT = 5
"""Part of every entry's name, to be raised if the files of entries change, or the rules by which they are made."""
_NUMBERS_FILE = "numbers.i64"


def file_digest(file: str | os.PathLike[str]) -> str:
    """Return the SHA-256 digest of a file's content, without the content of media that lie in it.

    Raises:
        DataError: the file cannot be read.
    """
    if file_format := format_of(file):
        return file_format.digest(file)
    try:
        return content_digest(file)
    except OSError as error:
        raise DataError(f"{file}: cannot be read as an annotation file ({error})") from error


def content_digest(file: str | os.PathLike[str]) -> str:
    """Return the SHA-256 digest of all bytes of a file or an address; raise OSError if it cannot be read."""
    digest = hashlib.sha256()
    with open_file(file) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class Index:
    """A folder of entries; each is a folder whose name is a digest of everything that its content depends on."""

    folder: Path

    def entry(self, depends_on: Any, write: Callable[[Path], None]) -> Path:
        """Return the folder of an entry, which ``write`` fills if it does not exist yet.

        Args:
            depends_on: a JSON value that names everything the content depends on.
            write: fills an empty folder. If it raises an error, there is no entry.

        Raises:
            DataError: the folder cannot be written to.
        """
        text = json.dumps([_FORMAT, depends_on], sort_keys=True)
        place = self.folder / hashlib.sha256(text.encode()).hexdigest()[:32]
        if place.is_dir():
            return place
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Whoever waited for the lock finds the entry written, hence the second look. Every other process returns
            # above without a lock, because an entry never changes once it has its name.
            with alone(place.with_suffix(".lock")):
                if not place.is_dir():
                    self._write(place, write)
        except OSError as error:
            raise DataError(f"--records_cache {self.folder}: cannot be written to ({error})") from error
        return place

    def numbers(self, depends_on: Any, count: Callable[[], Iterable[int]]) -> Sequence[int]:
        """Return integers that are kept as an entry; ``count`` computes them if it does not exist yet.

        Raises:
            DataError: the folder cannot be written to.
        """

        def write(folder: Path) -> None:
            (folder / _NUMBERS_FILE).write_bytes(array("q", count()))

        # A view of the mapped file: eight loader workers of eight processes share one copy of the numbers.
        return memoryview(mapped(self.entry(depends_on, write) / _NUMBERS_FILE)).cast("q")

    def _write(self, place: Path, write: Callable[[Path], None]) -> None:
        # The entry gets its name when it is whole, so that a killed process leaves none that looks so. What it does
        # leave goes when the entry is written: its lock is free again.
        prefix = f"unfinished-{place.name}-"
        for left in self.folder.glob(f"{prefix}*"):
            shutil.rmtree(left, ignore_errors=True)
        unfinished = Path(tempfile.mkdtemp(prefix=prefix, dir=self.folder))
        try:
            write(unfinished)
            unfinished.rename(place)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def mapped(file: Path) -> mmap.mmap | bytes:
    """Map a file into memory, for reading."""
    with file.open("rb") as stream:
        # A file without content cannot be mapped.
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if file.stat().st_size else b""


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Wait until no other process is inside the block for this lock."""
    try:
        import fcntl
    except ImportError:  # Windows has no such locks: of two processes that write at once, one may fail
        yield
        return
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
