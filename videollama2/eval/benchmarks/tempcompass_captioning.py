"""TempCompass, captioning: captions from which a language model answers the questions (arXiv 2403.00476)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from videollama2.errors import DataError
from videollama2.eval.annotations import AnnotationEntry
from videollama2.eval.benchmarks.tempcompass import task_entries
from videollama2.eval.downloads.video_files import VideoFolder
from videollama2.eval.items import Benchmark, Item
from videollama2.eval.measures import Aspect

CHOICE, CAPTIONING = "multi-choice", "captioning"


class TempCompassCaptioning(Benchmark):
    """See the module.

    The model is shown several statements, of which one fits the video, and writes a caption. The judge reads the
    caption and the first multiple-choice question about the same aspect of the video, and chooses an option or none.
    Its answer is compared by the official rule, under both protocols. The official judge is gpt-3.5-turbo-1106 at
    temperature 1 with at most 128 tokens.
    """

    name = "tempcompass_captioning"
    title = "TempCompass (captioning)"
    folder = "tempcompass"
    questions = 2004
    source = "https://github.com/llyx97/TempCompass; https://huggingface.co/datasets/lmms-lab/TempCompass"
    layout = """\
captioning.json          {VIDEO: {ASPECT: [{"question", "answer"}]}}, beside multi-choice.json of the same form;
                         in their place, of the hub: captioning/test-*.parquet with mc_question and mc_answer
videos/                  VIDEO.mp4 (or another kind of video)"""
    annotations = (f"{CAPTIONING}.json", f"{CHOICE}.json", f"{CAPTIONING}/test-*.parquet")
    aspects = (Aspect("accuracy", "tempcompass_captioning"),)

    def load(self, data: Path) -> list[Item]:
        """See :class:`Benchmark`."""
        videos = VideoFolder(data, "videos")
        entries = list(task_entries(data, CAPTIONING))
        if not entries:
            raise DataError(f"{data / self.annotations[0]}: is missing (as is {self.annotations[2]})")
        choices: dict[tuple[str, str], AnnotationEntry] = {}
        if any("mc_question" not in entry for entry in entries):
            for entry in task_entries(data, CHOICE):
                choices.setdefault((entry.text("video_id"), entry.text("dim")), entry)
        return [_item(entry, index, videos, choices) for index, entry in enumerate(entries)]


def _item(
    entry: AnnotationEntry, index: int, videos: VideoFolder, choices: Mapping[tuple[str, str], AnnotationEntry]
) -> Item:
    video, aspect = entry.path("video_id"), entry.text("dim")
    if "mc_question" in entry:
        question, answer = entry.text("mc_question"), entry.text("mc_answer")
    elif choice := choices.get((video, aspect)):
        question, answer = choice.text("question"), choice.text("answer")
    else:
        raise DataError(f"{entry.where}: {CHOICE}.json has no question about {aspect} of video {video!r}")
    return Item(
        id=f"{CAPTIONING}-{index}",
        media=videos.find(video),
        kind="video",
        start=None,
        end=None,
        question=question,
        instruction=entry.text("question"),
        answer=answer.strip(),
        category=aspect,
        group=video,
    )
