"""Looks into a folder of downloads: its files and the members of its archives, also of nested and split archives.

Archives are not trusted: a member is written only to the path that the caller gives, never to the one in the archive.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from videollama2.errors import DataError
from videollama2.eval.downloads.video_files import composed

_ZIP, _TAR = (".zip",), (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_PART = re.compile(r"(?P<name>.*\.(?:zip|tar|tgz|tar\.gz))\.(?:part[-._]?)?(?P<number>[a-z]{1,3}|\d{1,4})", re.I)


@dataclass(frozen=True)
class Found:
    """A file with its path below the folder of downloads; in this path, an archive is a folder of its members."""

    path: PurePosixPath
    file: Path | None
    archive: Archive | None = None
    member: str = ""

    def place(self, target: Path) -> None:
        """Make ``target`` a link to the file, or unpack the member there, unless ``target`` exists already.

        Raises:
            DataError: ``target`` cannot be written, or the archive is damaged.
        """
        if target.exists():
            return
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if self.file is not None:
                _link(self.file.resolve(), target)
                return
            assert self.archive is not None
            part = target.with_name(f".{target.name}.part")
            with self.archive.open(self.member) as source, part.open("wb") as to:
                shutil.copyfileobj(source, to, 1 << 20)
            os.replace(part, target)
        except OSError as error:
            raise DataError(f"{target}: cannot be written ({error.strerror or error})") from error
        except (zipfile.BadZipFile, tarfile.TarError, RuntimeError, EOFError) as error:
            raise DataError(f"{self.path}: cannot be unpacked ({error})") from error


class Downloads:
    """All files below ``root``, as a context manager that keeps the archives open.

    Args:
        root: folder of the downloads.
        scratch: folder into which archives inside archives are unpacked; it is removed at the end.

    Raises:
        DataError: the folder does not exist, or an archive cannot be opened.
    """

    def __init__(self, root: Path, scratch: Path) -> None:
        if not root.is_dir():
            raise DataError(f"{root}: no such folder")
        self._scratch = scratch
        self._open = ExitStack()
        self.files: list[Found] = []
        for path, parts in _files(root, scratch):
            self._add(PurePosixPath(path.relative_to(root).as_posix()), parts)
        # Files near the top first: of two files that fit equally well, the one in fewer folders is more likely meant.
        self.files.sort(key=lambda found: (len(found.path.parts), str(found.path)))
        self._by_stem: dict[str, list[Found]] = defaultdict(list)
        self._by_folder: dict[str, dict[PurePosixPath, list[Found]]] = defaultdict(lambda: defaultdict(list))
        for found in self.files:
            name = composed(found.path.name)
            # By both readings of a name with several dots: ID.en.srt belongs to ID, and v_1.5x.mp4 to v_1.5x.
            self._by_stem[name.partition(".")[0]].append(found)
            self._by_stem[PurePosixPath(name).stem].append(found)
            self._by_folder[found.path.parent.name][found.path.parent].append(found)

    def __enter__(self) -> Downloads:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def named(self, stem: str, like: PurePosixPath) -> list[Found]:
        """Return files by their name without suffix, starting with those whose folders agree most with ``like``."""
        found = dict.fromkeys(self._by_stem.get(composed(stem), ()))
        return sorted(found, key=lambda each: -_common_end(each.path.parent, like.parent))

    def folder(self, like: PurePosixPath) -> list[Found]:
        """Return the files of the folder with this name whose parent folders agree most with ``like``."""
        folders = self._by_folder.get(like.name, {})
        return folders[max(folders, key=lambda path: _common_end(path, like))] if folders else []

    def _add(self, path: PurePosixPath, parts: Sequence[Path]) -> None:
        kind = _archive_kind(path.name)
        if not kind:
            self.files.append(Found(path, parts[0]))
            return
        archive = self._open.enter_context(Archive(path, parts, kind))
        for name in archive.names:
            # Of a member's name, only the last part ever enters a path that is written.
            inside = path / PurePosixPath(name.replace("\\", "/").lstrip("/"))
            if inside.name.startswith("."):  # hidden files, and those that macOS adds for each file (__MACOSX/._NAME)
                continue
            if _archive_kind(inside.name):
                # An archive inside an archive is unpacked to the scratch folder and opened there, at any depth.
                unpacked = self._scratch / f"{len(self.files)}-{inside.name}"
                Found(inside, None, archive, name).place(unpacked)
                self._add(inside, [unpacked])
            else:
                self.files.append(Found(inside, None, archive, name))


class Archive:
    """An open zip or tar file, which may be split into several ``parts``."""

    def __init__(self, path: PurePosixPath, parts: Sequence[Path], kind: str) -> None:
        self._file: IO[bytes] = io.BufferedReader(_Joined(parts), 1 << 20)  # type: ignore[assignment]
        self._reader: Any
        try:
            if kind == "zip":
                self._reader = zipfile.ZipFile(self._file)
                self.names = [info.filename for info in self._reader.infolist() if not info.is_dir()]
            else:
                self._reader = tarfile.open(fileobj=self._file)  # noqa: SIM115  closed by __exit__
                self.names = [member.name for member in self._reader.getmembers() if member.isfile()]
        except (OSError, zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
            self._file.close()
            raise DataError(f"{path}: cannot be opened as an archive ({error})") from error

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()
        self._file.close()

    def open(self, name: str) -> IO[bytes]:
        """Open a member for reading."""
        if isinstance(self._reader, zipfile.ZipFile):
            return self._reader.open(name)
        member = self._reader.extractfile(name)
        assert member is not None  # names has only regular files
        return member


class _Joined(io.RawIOBase):
    """A binary file object that reads several files as one."""

    def __init__(self, parts: Sequence[Path]) -> None:
        self._files = [part.open("rb", buffering=0) for part in parts]
        self._starts = [0]
        for part in parts:
            self._starts.append(self._starts[-1] + part.stat().st_size)
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._starts[-1]}[whence]
        self._place = max(0, base + offset)
        return self._place

    def readinto(self, buffer: Any) -> int:
        for number, file in enumerate(self._files):
            if self._place < self._starts[number + 1]:
                file.seek(self._place - self._starts[number])
                count = file.readinto(buffer) or 0
                self._place += count
                return count
        return 0

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()


def _files(root: Path, scratch: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Yield every file with its parts; a split archive is yielded once, under its name without the part's number."""
    whole: dict[Path, list[Path]] = {}
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and Path(folder, name) != scratch)
        for name in sorted(names):
            if not name.startswith("."):
                part = _PART.fullmatch(name)
                whole.setdefault(Path(folder, part["name"] if part else name), []).append(Path(folder, name))
    yield from whole.items()


def _archive_kind(name: str) -> str:
    lowered = name.lower()
    return "zip" if lowered.endswith(_ZIP) else "tar" if lowered.endswith(_TAR) else ""


def _common_end(a: PurePosixPath, b: PurePosixPath) -> int:
    """Return how many of the innermost folders of two paths are the same."""
    count = 0
    for one, other in zip(reversed(a.parts), reversed(b.parts), strict=False):
        if one != other:
            break
        count += 1
    return count


def _link(file: Path, target: Path) -> None:
    try:
        target.symlink_to(file)
    except OSError:  # the system or the file system has no links
        shutil.copyfile(file, target)
