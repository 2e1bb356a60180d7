"""Lays downloads out as ``eval layout`` describes, with links and unpacked archives (``eval prepare``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from videollama2.errors import ConfigError, DataError
from videollama2.eval.coverage import Supplement
from videollama2.eval.downloads.folder import Downloads, Found
from videollama2.eval.downloads.video_files import AUDIO_SUFFIXES, VIDEO_SUFFIXES, composed
from videollama2.eval.items import Benchmark, Item
from videollama2.eval.subtitles import ENDINGS, FOLDERS, split_ending
from videollama2.media.kinds import AUDIO


@dataclass(frozen=True)
class Prepared:
    """The content of the data folder after ``eval prepare``.

    Attributes:
        questions: number of questions.
        scored: number of questions whose answer is public.
        videos: number of different media that the questions are about.
        kind: what these are called.
        supplements: further material for prompts, such as subtitles.
        missing: paths of the media that are missing, relative to the data folder.
    """

    questions: int
    scored: int
    videos: int
    supplements: Sequence[Supplement]
    missing: Sequence[str]
    kind: str = "videos"

    def table(self) -> str:
        """Return the content as lines of text."""
        lines = {
            "questions": f"{self.questions:,} ({self.scored:,} with answers)",
            self.kind: f"{self.videos - len(self.missing):,} of {self.videos:,}",
            **{each.name: f"{each.found:,} of {each.of:,} videos" for each in self.supplements},
            "missing": f"{len(self.missing):,} {self.kind}" if self.missing else "nothing",
        }
        return "\n".join(f"  {name:<12}{value}" for name, value in lines.items())


def prepare(benchmark: Benchmark, source: Path, target: Path) -> Prepared:
    """Lay the files below ``source`` out in ``target``.

    Files are linked and members of archives are unpacked. Existing files are kept, so that the same command continues
    after an interruption.

    Raises:
        ConfigError: the benchmark does not declare its annotation files.
        DataError: there is no annotation file below ``source``, one is malformed, an archive cannot be read, or the
            disk is full.
    """
    if not benchmark.annotations:
        raise ConfigError(f"benchmark {benchmark.name} cannot be prepared: lay it out as eval layout says")
    with Downloads(source, target / ".unpacked") as downloads:
        _place_annotations(benchmark, downloads, source, target)
        items = benchmark.load(target)
        for item in {item.media: item for item in items}.values():
            _place_medium(item, downloads, target)
        if benchmark.has_subtitles:
            for stem in dict.fromkeys(item.group for item in items):
                _place_subtitles(stem, downloads, target)
    items = benchmark.load(target)  # now the paths have the suffixes of the videos that were found
    media = list(dict.fromkeys(item.media for item in items))
    return Prepared(
        questions=len(items),
        scored=sum(item.answer is not None for item in items),
        videos=len(media),
        supplements=benchmark.supplements(items, target),
        missing=[path for path in media if not (target / path).exists()],
        kind="sounds" if all(item.kind == AUDIO for item in items) else "videos",
    )


def _place_annotations(benchmark: Benchmark, downloads: Downloads, source: Path, target: Path) -> None:
    count = 0
    for pattern in benchmark.annotations:
        depth = len(PurePosixPath(pattern).parts)
        for found in downloads.files:
            if found.path.match(pattern):
                found.place(target.joinpath(*found.path.parts[-depth:]))
                count += 1
    if not count:
        patterns = ", ".join(benchmark.annotations)
        raise DataError(f"{source}: the annotations of {benchmark.title} are missing ({patterns})")


def _place_medium(item: Item, downloads: Downloads, target: Path) -> None:
    """Place a video, a sound or a folder of frames, unless it exists already."""
    path = PurePosixPath(item.media)
    if (target / path).exists():
        return
    suffixes = AUDIO_SUFFIXES if item.kind == AUDIO else VIDEO_SUFFIXES
    found = _medium(path, downloads, suffixes)
    if found is not None:
        found.place(target / path.with_name(found.path.name))
    elif item.kind != AUDIO and path.suffix.lower() not in VIDEO_SUFFIXES:
        for frame in downloads.folder(path):
            frame.place(target / path / frame.path.name)


def _medium(path: PurePosixPath, downloads: Downloads, suffixes: Sequence[str]) -> Found | None:
    """Return the most likely file of a medium; files of ActivityNet's videos may lack the ``v_`` before the name."""
    for stem in dict.fromkeys((path.stem, path.stem.removeprefix("v_"))):
        for found in downloads.named(stem, path):
            if composed(found.path.stem) == composed(stem) and found.path.suffix.lower() in suffixes:
                return found
    return None


def _place_subtitles(stem: str, downloads: Downloads, target: Path) -> None:
    for found in downloads.named(stem, PurePosixPath(FOLDERS[0], stem)):
        if split_ending(found.path.name) in [(stem, ending) for ending in ENDINGS]:
            found.place(target / FOLDERS[0] / found.path.name)
