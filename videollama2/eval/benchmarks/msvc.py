"""MSVC: captions of videos from three sources, graded for correctness and detailedness (arXiv 2406.07476)."""

from __future__ import annotations

from pathlib import Path

from videollama2.eval.annotations import AnnotationEntry, find_annotations, read_entries
from videollama2.eval.downloads.video_files import VideoFolder
from videollama2.eval.items import Benchmark, Item
from videollama2.eval.measures import Aspect


class MSVC(Benchmark):
    """See the module. The paper samples at temperature 0.2; the published code does not, nor does this by default."""

    name = "msvc"
    title = "MSVC"
    folder = "msvc"
    source = "https://huggingface.co/datasets/DAMO-NLP-SG/Multi-Source-Video-Captioning"
    layout = """\
msvc.json                a list of {"video_path", "question", "captions": texts}
VIDEO_PATH               each video where msvc.json says, relative to this folder"""
    annotations = ("msvc.json",)
    aspects = (Aspect("correctness", "msvc_correctness"), Aspect("detailedness", "msvc_detailedness"))

    def load(self, data: Path) -> list[Item]:
        """See :class:`Benchmark`."""
        path, *_ = find_annotations(data, *self.annotations)
        videos = VideoFolder(data, ".", "videos")
        return [_item(record, index, videos) for index, record in enumerate(read_entries(path))]


def _item(record: AnnotationEntry, index: int, videos: VideoFolder) -> Item:
    media, question = record.path("video_path"), record.text("question")
    return Item(
        # The sources have files with the same names, so the position in the annotations is part of the id.
        id=f"{index}-{media}",
        media=videos.find_path(media),
        question=question,
        instruction=question,
        answer=list(record.texts("captions")),
        category=media.split("/")[0] if "/" in media else "all",
        group=media,
    )
