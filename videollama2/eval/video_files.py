"""Finding the videos that annotations name: in the folders where downloads put them, whatever their names end with."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from videollama2.media.kinds import SUFFIXES, VIDEO

_PUBLISHED = (".mp4", ".avi", ".mov", ".mkv")
VIDEO_SUFFIXES = (*_PUBLISHED, ".webm", ".gif", *sorted({*SUFFIXES[VIDEO]} - {*_PUBLISHED, ".webm", ".gif"}))
"""In the order in which they are looked for, in any case; the first four are the published ones."""


class VideoFolder:
    """Finds videos below a data folder. Each folder is listed once.

    Args:
        folders: relative to ``data``, in the order in which they are looked through. The first one is named where a
            video is missing.
    """

    def __init__(self, data: Path, *folders: str) -> None:
        self.data, self.folders = data, folders
        self._names: dict[Path, dict[tuple[str, str], str]] = {}

    def find(self, *stems: str) -> str:
        """Path relative to the data folder of the first of these names, without suffixes, that is there; each may begin
        with folders. Of a video that is not there, where it would be as mp4."""
        for folder in self.folders:
            for stem in stems:
                path = PurePosixPath(folder, stem)
                names = self._list(self.data / path.parent)
                for suffix in VIDEO_SUFFIXES:
                    if name := names.get((path.name, suffix)):
                        return str(path.with_name(name))
        return str(PurePosixPath(self.folders[0], f"{stems[0]}.mp4"))

    def find_path(self, path: str) -> str:
        """The same for a path with a suffix, or of a folder of frames; another suffix is taken where its own is not
        there, and the path as it is where nothing is."""
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
