"""MLVU, the multiple-choice questions of the dev set: seven tasks about videos of minutes to hours (arXiv 2406.04264).

M-Avg, the leaderboard's number, is the mean over the tasks, which the report calls "mean of categories".
"""

from __future__ import annotations

from pathlib import Path

from videollama2.eval.annotations import AnnotationEntry, find_annotations, read_entries
from videollama2.eval.benchmarks.multiple_choice import MultipleChoice, lettered
from videollama2.eval.downloads.video_files import VideoFolder
from videollama2.eval.items import Item
from videollama2.eval.reading.answers import first_letter

TASKS = {
    "plotQA": "1_plotQA",
    "needle": "2_needle",
    "ego": "3_ego",
    "count": "4_count",
    "order": "5_order",
    "anomaly_reco": "6_anomaly_reco",
    "topic_reasoning": "7_topic_reasoning",
}
_SYSTEM = (
    "Carefully watch this video and pay attention to every detail. Based on your observations, select the best option "
    "that accurately addresses the question.\n"
)


class MLVU(MultipleChoice):
    """See the module.

    The prompt is that of the official script, with its beginning of the answer ("Best option:(") at the end of the
    question. As in lmms-eval, the first capital letter is read.
    """

    name = "mlvu"
    title = "MLVU (dev, multiple choice)"
    folder = "mlvu"
    questions = 2174
    source = "https://huggingface.co/datasets/MLVU/MVLU (the folder MLVU/)"
    layout = """\
json/N_TASK.json         a list of {"video", "question", "candidates", "answer": the right candidate's text}, for
                         1_plotQA, 2_needle, 3_ego, 4_count, 5_order, 6_anomaly_reco, 7_topic_reasoning
video/N_TASK/VIDEO       the videos of each task"""
    annotations = tuple(f"json/{file}.json" for file in TASKS.values())
    published_parser = staticmethod(first_letter)

    def load(self, data: Path) -> list[Item]:
        """See :class:`Benchmark`; all seven tasks must be there."""
        videos = VideoFolder(data, "video", "videos", ".")
        items = []
        for task, file in TASKS.items():
            path, *_ = find_annotations(data, f"json/{file}.json")
            items += [_item(entry, task, file, index, videos) for index, entry in enumerate(read_entries(path))]
        return items


def _item(entry: AnnotationEntry, task: str, file: str, index: int, videos: VideoFolder) -> Item:
    options, answer, question = (
        entry.texts("candidates", least=2, most=26),
        entry.answer("answer"),
        entry.text("question"),
    )
    if answer not in options:
        raise entry.problem("answer", f"{answer!r} is none of the candidates {list(options)}")
    media = videos.find_path(f"{file}/{entry.path('video')}")
    listed = f"Question: {question}\nOptions:\n{lettered(options)}".rstrip()
    return Item(
        id=f"{task}-{index}",
        media=media,
        question=question,
        instruction=f"{_SYSTEM}{listed}\nOnly give the best option.\nBest option: (",
        answer=options.index(answer),
        options=options,
        category=task,
        group=media,
    )
