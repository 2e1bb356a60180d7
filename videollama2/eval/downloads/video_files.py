"""Finds the videos and sounds that annotations name, where downloads put them and with whichever suffix."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from videollama2.media.kinds import AUDIO, SUFFIXES, VIDEO

_PUBLISHED = (".mp4", ".avi", ".mov", ".mkv")
VIDEO_SUFFIXES = (*_PUBLISHED, ".webm", ".gif", *sorted({*SUFFIXES[VIDEO]} - {*_PUBLISHED, ".webm", ".gif"}))
"""Suffixes of videos, in upper or lower case, in the order of the search; the published code knows the first four."""

AUDIO_SUFFIXES = (".wav", ".flac", *sorted({*SUFFIXES[AUDIO]} - {".wav", ".flac"}))
"""Suffixes of sound files, as :data:`VIDEO_SUFFIXES`; the published code knows the first two."""


def composed(name: str) -> str:
    """Return a name with each accented letter as one character; archives made on macOS write it as two."""
    return unicodedata.normalize("NFC", name)


class VideoFolder:
    """A finder of videos below a data folder, or of sounds. Each folder is listed only once.

    Args:
        data: data folder.
        folders: folders to search, relative to ``data``, in this order. The path of a missing video is in the first.
        suffixes: suffixes of the files, in lower case and in the order of the search.
    """

    def __init__(self, data: Path, *folders: str, suffixes: Sequence[str] = VIDEO_SUFFIXES) -> None:
        self.data, self.folders, self.suffixes = data, folders, suffixes
        self._names: dict[Path, dict[tuple[str, str], str]] = {}

    def find(self, *stems: str) -> str:
        """Return the path, relative to the data folder, of the first of these names for which there is a video.

        Names have no suffix and may begin with folders. If there is no video, the result is the path that it would have
        with the first suffix, for instance as an mp4 file.
        """
        for folder in self.folders:
            for stem in stems:
                path = PurePosixPath(folder, stem)
                names = self._list(self.data / path.parent)
                for suffix in self.suffixes:
                    if name := names.get((composed(path.name), suffix)):
                        return str(path.with_name(name))
        return str(PurePosixPath(self.folders[0], f"{stems[0]}{self.suffixes[0]}"))

    def find_path(self, path: str) -> str:
        """Return the path, relative to the data folder, of a video named with a suffix, or of a folder of frames.

        If there is no such file, a video with another suffix is taken. If there is none either, the result is the path
        that the file would have.
        """
        for folder in self.folders:
            if (self.data / folder / path).exists():
                return str(PurePosixPath(folder, path))
        found = self.find(str(PurePosixPath(path).with_suffix("")))
        return found if (self.data / found).exists() else str(PurePosixPath(self.folders[0], path))

    def find_end(self, path: str) -> str:
        """Return the path, relative to the data folder, of a file whose path on another machine is ``path``.

        Of the paths that remain when folders are removed from the front of ``path``, the longest that exists below the
        data folder is taken; otherwise the file's name is looked up as by :meth:`find_path`.
        """
        parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
        for first in range(len(parts) - 1):
            end = PurePosixPath(*parts[first:])
            if self._has(end):
                return str(end)
        return self.find_path(parts[-1])

    def _has(self, path: PurePosixPath) -> bool:
        names = self._list(self.data / path.parent)
        return names.get((composed(path.stem), path.suffix.lower())) == path.name

    def _list(self, folder: Path) -> dict[tuple[str, str], str]:
        if folder not in self._names:
            entries = sorted(folder.iterdir()) if folder.is_dir() else []
            self._names[folder] = {(composed(path.stem), path.suffix.lower()): path.name for path in reversed(entries)}
        return self._names[folder]
