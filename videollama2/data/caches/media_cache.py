"""Keeps the frames of decoded videos on a disk, as they are after resizing, so that later epochs decode nothing.

An entry is named by the content of the video and by everything that its frames depend on, and holds a checksum of
them: an entry that is damaged is decoded again. All processes of a machine may share a folder. A folder that cannot be
written to, or has no room left, costs a warning and the time to decode, and never the run.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from videollama2.data.caches.index import alone, content_digest

_FORMAT = 1
"""Part of every entry's name, to be raised if frames or the files of entries change."""
_HEADER = struct.Struct("<4I32s")
"""Shape (T, C, H, W) and the SHA-256 of the frames."""
_UNFINISHED = "unfinished-"
_ABANDONED_SECONDS = 3600
_KEPT_SHARE = 0.9
"""Share of the limit to which the least recently used entries are removed when the limit is reached."""


class FrameCache:
    """Frames of videos in a folder of limited size.

    Args:
        folder: where the files are; made if it does not exist.
        limit: maximum number of bytes. The least recently used entries make room for new ones.
        warns: whether this process tells that it cannot write; of those that share a folder, one may do so for all.
    """

    def __init__(self, folder: str | os.PathLike[str], limit: int, warns: bool = True) -> None:
        self.folder, self.limit = Path(folder), limit
        # Loader workers share it, so that a run of many workers and epochs is warned once.
        self.warned = torch.tensor([not warns]).share_memory_()

    def frames(self, source: str | bytes, depends_on: Any, decode: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return the frames of a video, uint8 (T, C, H, W).

        Args:
            source: path or content of the video. A folder of pictures is not kept.
            depends_on: a JSON value that names everything the frames depend on besides the content.
            decode: returns the frames if there is no entry; its errors are passed on.
        """
        digest = _digest(source)
        if digest is None:
            return decode()
        name = hashlib.sha256(json.dumps([_FORMAT, digest, depends_on], sort_keys=True).encode()).hexdigest()
        file = self.folder / name[:2] / name[2:]
        frames_TCHW = _load(file)
        if frames_TCHW is None:
            frames_TCHW = decode()
            self._keep(file, frames_TCHW)
        return frames_TCHW

    def _keep(self, file: Path, frames_TCHW: torch.Tensor) -> None:
        data = frames_TCHW.numpy().tobytes()
        header = _HEADER.pack(*frames_TCHW.shape, hashlib.sha256(data).digest())
        size = len(header) + len(data)
        if size > self.limit:
            return
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle, unfinished = tempfile.mkstemp(prefix=_UNFINISHED, dir=self.folder)
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.write(header)
                    stream.write(data)
                # Writing takes long and needs no lock, since no other process knows the file yet. Giving it its name
                # and counting it needs one.
                with alone(self.folder / "lock"):
                    self._enter(Path(unfinished), file, size)
            finally:
                Path(unfinished).unlink(missing_ok=True)
        except OSError as error:
            if not self.warned:
                self.warned.fill_(True)
                warnings.warn(
                    f"--media_cache {self.folder}: cannot be written to ({error}); videos are decoded", stacklevel=2
                )

    def _enter(self, unfinished: Path, file: Path, size: int) -> None:
        """Give a written file its name; the caller has the lock, so the limit holds at any time."""
        total = self.folder / "total"
        try:
            used = int(total.read_text())
        except (OSError, ValueError):  # the first entry, or a file that a killed process left half written
            used = sum(each[1] for each in self._entries())
        if used + size > self.limit:
            used = self._make_room(size)
        # Another process may have kept the same video meanwhile, or the entry was damaged.
        before = file.stat().st_size if file.exists() else 0
        os.replace(unfinished, file)
        total.write_text(str(used + size - before))

    def _make_room(self, size: int) -> int:
        """Remove what was used least recently, and return how many bytes are left in use."""
        entries = sorted(self._entries())
        used = sum(each[1] for each in entries)
        for _, bytes_of_entry, path in entries:
            if used + size <= _KEPT_SHARE * self.limit or used == 0:
                break
            os.unlink(path)
            used -= bytes_of_entry
        return used

    def _entries(self) -> Iterator[tuple[int, int, str]]:
        """Yield the time of the last use, the size and the path of each entry; remove what killed processes left."""
        with os.scandir(self.folder) as places:
            for place in places:
                if place.is_dir():
                    with os.scandir(place.path) as files:
                        for entry in files:
                            status = entry.stat()
                            yield status.st_mtime_ns, status.st_size, entry.path
                elif place.name.startswith(_UNFINISHED):
                    remove_if_abandoned(place.path)


def remove_if_abandoned(unfinished: str | os.PathLike[str]) -> None:
    """Remove an unfinished file if it is so old that the process that wrote it must have been killed."""
    with suppress(FileNotFoundError):  # another process may just have finished it
        if os.stat(unfinished).st_mtime < time.time() - _ABANDONED_SECONDS:
            os.unlink(unfinished)


def _load(file: Path) -> torch.Tensor | None:
    """Return the frames of an entry; None if there is none, or it is damaged."""
    try:
        content = bytearray(file.read_bytes())
        # The file itself keeps the time of its last use, so that processes need no common list.
        os.utime(file)
    except OSError:
        return None
    if len(content) < _HEADER.size:
        return None
    *shape, checksum = _HEADER.unpack_from(content)
    data = memoryview(content)[_HEADER.size :]
    if hashlib.sha256(data).digest() != checksum or len(data) != int(np.prod(shape)):
        return None
    return torch.frombuffer(content, dtype=torch.uint8, offset=_HEADER.size).view(*shape)


def _digest(source: str | bytes) -> str | None:
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    if os.path.isdir(source):
        return None
    try:
        return content_digest(source)
    except OSError:
        return None  # decoding tells what is wrong with it
