"""Defines the common base of MUSIC-AVQA, AVSD and VGGSound: questions about videos that the model sees and hears.

The published annotation files are lists of ``{"video": path, "conversations": [question, answer]}``.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from videollama2.eval.annotations import AnnotationEntry, find_annotations, read_entries
from videollama2.eval.benchmarks.short_answers import conversation
from videollama2.eval.downloads.video_files import VideoFolder
from videollama2.eval.items import Benchmark, Item
from videollama2.media.kinds import VIDEO


class HeardVideos(Benchmark):
    """A benchmark of videos with their sound.

    Attributes:
        folders: folders of videos below the data folder; the first one is that of the published layout.
        beside: whether the published annotation file lies beside the data folder.
        prompt: the text for the model, if it is the same for all videos; otherwise it is the record's question.
    """

    folders: tuple[str, ...]
    beside: bool = False
    prompt: str | None = None

    def load(self, data: Path) -> list[Item]:
        """See :class:`Benchmark`."""
        names = (*self.annotations, *(f"../{name}" for name in self.annotations if self.beside))
        path, *_ = find_annotations(data, *names)
        videos = VideoFolder(data, *self.folders)
        return [self.item(entry, index, videos) for index, entry in enumerate(read_entries(path))]

    def item(self, entry: AnnotationEntry, index: int, videos: VideoFolder) -> Item:
        """Return the item of a record."""
        question, answer = conversation(entry)
        media = videos.find_end(entry.foreign_path("video"))
        return heard_item(index, media, self.prompt or question, answer)


def heard_item(index: int, media: str, question: str, answer: str, category: str = "all") -> Item:
    """Return the item of a question about the video at this path, with its sound."""
    return Item(
        # Several questions may be about one video, so the position in the annotations is part of the id.
        id=f"{index}-{PurePosixPath(media).name}",
        media=media,
        kind=VIDEO,
        question=question,
        instruction=question,
        answer=answer,
        category=category,
        group=media,
        use_audio=True,
    )
