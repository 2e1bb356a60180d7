"""LongVideoBench: referring questions about videos of seconds to an hour (arXiv 2407.15754), without its subtitles."""

from __future__ import annotations

from pathlib import Path

from videollama2.eval.annotations import AnnotationEntry
from videollama2.eval.benchmarks.multiple_choice import MultipleChoice, read_items
from videollama2.eval.downloads.video_files import VideoFolder
from videollama2.eval.items import Item
from videollama2.eval.reading.answers import LETTERS, first_letter_mended

_POST = "Answer with the option's letter from the given choices directly.\n"


class LongVideoBench(MultipleChoice):
    """See the module. This is the validation split.

    Prompt and reading are those of lmms-eval's longvideobench_val_v. If nothing can be read, that task takes a random
    option; here the answer counts as unparsed.
    """

    name = "longvideobench"
    title = "LongVideoBench (validation)"
    folder = "longvideobench"
    questions = 1337
    source = "https://huggingface.co/datasets/longvideobench/LongVideoBench"
    layout = """\
lvb_val.json             a list of {"id", "video_path", "question", "candidates", "correct_choice": 0 .. 4,
                         "duration_group": seconds, "question_category"}; in its place: validation-*.parquet, whose
                         candidates are option0 .. option4
videos/                  VIDEO_PATH (or another kind of video)"""
    annotations = ("lvb_val.json", "validation-*.parquet")
    breakdowns = ("question_category",)
    published_parser = staticmethod(first_letter_mended)

    def load(self, data: Path) -> list[Item]:
        """See :class:`Benchmark`."""
        return read_items(data, self.annotations, ("videos", "."), _item)


def _item(entry: AnnotationEntry, videos: VideoFolder) -> Item:
    if "candidates" in entry:
        options = entry.texts("candidates", least=2, most=5)
    else:
        named = [entry.text(f"option{number}") for number in range(5)]
        options = tuple(option for option in named if option != "N/A")
    question, media = entry.text("question"), videos.find_path(entry.path("video_path"))
    listed = "\n".join(f"{LETTERS[number]}. {option}" for number, option in enumerate(options))
    return Item(
        id=entry.text("id"),
        media=media,
        question=question,
        instruction=f"{question}\n{listed}\n{_POST}",
        answer=entry.index("correct_choice", len(options)),
        options=options,
        category=f"up to {entry.index('duration_group', 10**6)} s",
        group=media,
        extra={"question_category": entry.text("question_category")},
    )
