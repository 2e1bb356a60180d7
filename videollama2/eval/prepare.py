"""``eval prepare``: what people downloaded, laid out as ``eval layout`` says, by links and by unpacking archives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from videollama2.errors import ConfigError, DataError
from videollama2.eval.downloads import Downloads, Found
from videollama2.eval.items import Benchmark, Item, Supplement
from videollama2.eval.subtitles import ENDINGS, FOLDERS
from videollama2.eval.video_files import VIDEO_SUFFIXES


@dataclass(frozen=True)
class Prepared:
    """What is there now.

    Attributes:
        scored: questions whose answer is public.
        videos: how many different media the questions are about.
        missing: those that are not there, relative to the target.
    """

    questions: int
    scored: int
    videos: int
    supplements: Sequence[Supplement]
    missing: Sequence[str]

    def table(self) -> str:
        """As lines of text."""
        lines = {
            "questions": f"{self.questions:,} ({self.scored:,} with answers)",
            "videos": f"{self.videos - len(self.missing):,} of {self.videos:,}",
            **{each.name: f"{each.found:,} of {each.of:,} videos" for each in self.supplements},
            "missing": f"{len(self.missing):,} videos" if self.missing else "nothing",
        }
        return "\n".join(f"  {name:<12}{value}" for name, value in lines.items())


def prepare(benchmark: Benchmark, source: Path, target: Path) -> Prepared:
    """Lay out what lies below ``source`` in ``target``. Files are linked, members of archives unpacked; what is there
    already stays, so that the same command goes on after an interruption.

    Raises:
        ConfigError: the benchmark does not say which annotation files it has.
        DataError: no annotation file below ``source``, a broken one, an archive that cannot be read, or a full disk.
    """
    if not benchmark.annotations:
        raise ConfigError(f"benchmark {benchmark.name} cannot be prepared: lay it out as eval layout says")
    with Downloads(source, target / ".unpacked") as downloads:
        _place_annotations(benchmark, downloads, source, target)
        items = benchmark.load(target)
        for item in {item.media: item for item in items}.values():
            _place_video(item, downloads, target)
        if benchmark.has_subtitles:
            for stem in dict.fromkeys(item.group for item in items):
                _place_subtitles(stem, downloads, target)
    items = benchmark.load(target)  # with the endings that videos have
    media = list(dict.fromkeys(item.media for item in items))
    return Prepared(
        questions=len(items),
        scored=sum(item.answer is not None for item in items),
        videos=len(media),
        supplements=benchmark.supplements(items, target),
        missing=[path for path in media if not (target / path).exists()],
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


def _place_video(item: Item, downloads: Downloads, target: Path) -> None:
    """A video, or a folder of frames, unless it is there."""
    path = PurePosixPath(item.media)
    if (target / path).exists():
        return
    video = _video(path, downloads)
    if video is not None:
        video.place(target / path.with_name(video.path.name))
    elif path.suffix.lower() not in VIDEO_SUFFIXES:
        for frame in downloads.folder(path):
            frame.place(target / path / frame.path.name)


def _video(path: PurePosixPath, downloads: Downloads) -> Found | None:
    """The most likely file of a video; ActivityNet's are called with and without v_ before their name."""
    for stem in dict.fromkeys((path.stem, path.stem.removeprefix("v_"))):
        for found in downloads.named(stem, path):
            if found.path.stem == stem and found.path.suffix.lower() in VIDEO_SUFFIXES:
                return found
    return None


def _place_subtitles(stem: str, downloads: Downloads, target: Path) -> None:
    for found in downloads.named(stem, PurePosixPath(FOLDERS[0], stem)):
        if found.path.name.lower().removeprefix(stem.lower()) in ENDINGS:
            found.place(target / FOLDERS[0] / found.path.name)
