"""STAR, validation set: situated reasoning about clips of daily life, four types of questions (arXiv 2405.09711)."""

from __future__ import annotations

from pathlib import Path

from videollama2.eval.annotations import AnnotationEntry
from videollama2.eval.benchmarks.multiple_choice import MultipleChoice, question_and_options, read_items
from videollama2.eval.downloads.video_files import VideoFolder
from videollama2.eval.items import Item
from videollama2.eval.reading.answers import published_mvbench

TYPES = ("Interaction", "Sequence", "Prediction", "Feasibility")


class STAR(MultipleChoice):
    """See the module.

    The leaderboard's number is the mean over the four types, which the report calls "mean of categories". STAR gives no
    prompt for language models; questions are asked and answers read as in MVBench, whose tasks about Charades are made
    of STAR's questions.
    """

    name = "star"
    title = "STAR (validation)"
    folder = "star"
    questions = 7098
    source = "https://github.com/csbobby/STAR_Benchmark; videos: https://prior.allenai.org/projects/charades"
    layout = """\
STAR_val.json            a list of {"question_id": "TYPE_...", "question", "video_id", "start", "end" in seconds,
                         "choices": [{"choice"}, ...], "answer": the text of the right choice}
Charades_v1_480/         VIDEO_ID.mp4"""
    annotations = ("STAR_val.json",)
    published_parser = staticmethod(published_mvbench)

    def load(self, data: Path) -> list[Item]:
        """See :class:`Benchmark`."""
        return read_items(data, self.annotations, ("Charades_v1_480", "videos", "."), _item)


def _item(entry: AnnotationEntry, videos: VideoFolder) -> Item:
    name, video, question, answer = (entry.text(key) for key in ("question_id", "video_id", "question", "answer"))
    kind = name.split("_")[0]
    if kind not in TYPES:
        raise entry.problem("question_id", f"expected one that begins with {', '.join(TYPES)}; got {name!r}")
    options = tuple(choice.text("choice") for choice in entry.records("choices"))
    if answer not in options:
        raise entry.problem("answer", f"{answer!r} is none of the choices {list(options)}")
    return Item(
        id=name,
        media=videos.find(entry.path("video_id")),
        start=entry.seconds("start"),
        end=entry.seconds("end"),
        question=question,
        instruction=question_and_options(question, options),
        answer=options.index(answer),
        options=options,
        category=kind,
        group=video,
    )
