"""Find the videos that annotations name, in the folders where downloads put them and with whichever suffix."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from videollama2.media.kinds import SUFFIXES, VIDEO

_PUBLISHED = (".mp4", ".avi", ".mov", ".mkv")
VIDEO_SUFFIXES = (*_PUBLISHED, ".webm", ".gif", *sorted({*SUFFIXES[VIDEO]} - {*_PUBLISHED, ".webm", ".gif"}))
"""Suffixes of videos, in upper or lower case, in the order of the search; the published code knows the first four."""


class VideoFolder:
    """A finder of videos below a data folder. Each folder is listed only once.

    Args:
        data: data folder.
        folders: folders to search, relative to ``data``, in this order. The path of a missing video is in the first.
    """

    def __init__(self, data: Path, *folders: str) -> None:
        self.data, self.folders = data, folders
        self._names: dict[Path, dict[tuple[str, str], str]] = {}

    def find(self, *stems: str) -> str:
        """Return the path, relative to the data folder, of the first of these names for which there is a video.

        Names have no suffix and may begin with folders. If there is no video, the result is the path that it would have
        as an mp4 file.
        """
        for folder in self.folders:
            for stem in stems:
                path = PurePosixPath(folder, stem)
                names = self._list(self.data / path.parent)
                for suffix in VIDEO_SUFFIXES:
                    if name := names.get((path.name, suffix)):
                        return str(path.with_name(name))
        return str(PurePosixPath(self.folders[0], f"{stems[0]}.mp4"))

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

    def _list(self, folder: Path) -> dict[tuple[str, str], str]:
        if folder not in self._names:
            entries = sorted(folder.iterdir()) if folder.is_dir() else []
            self._names[folder] = {(path.stem, path.suffix.lower()): path.name for path in reversed(entries)}
        return self._names[folder]
