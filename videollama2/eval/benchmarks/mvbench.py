"""MVBench: twenty tasks about time with 200 questions each (arXiv 2311.17005)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from videollama2.eval.annotations import AnnotationEntry, find_annotations, read_entries
from videollama2.eval.atomic import write_atomically
from videollama2.eval.benchmarks.multiple_choice import MultipleChoice, question_and_options
from videollama2.eval.downloads.video_files import VideoFolder
from videollama2.eval.items import Item
from videollama2.eval.reading.answers import published_mvbench
from videollama2.eval.samples import Sample


class MVBenchTask(NamedTuple):
    """A task. If ``bound`` is true, questions are about the part of the video from ``start`` to ``end`` seconds."""

    file: str
    folder: str
    bound: bool = False


ROOTS = ("video", ".", "video/data0613", "data0613")
"""Folders in which the tasks' folders of videos may be; the corrected archive of 13 June 2024 unpacks to data0613/."""

TASKS = {
    "Action Sequence": MVBenchTask("action_sequence", "star/Charades_v1_480", bound=True),
    "Action Prediction": MVBenchTask("action_prediction", "star/Charades_v1_480", bound=True),
    "Action Antonym": MVBenchTask("action_antonym", "ssv2_video"),
    "Fine-grained Action": MVBenchTask("fine_grained_action", "Moments_in_Time_Raw/videos"),
    "Unexpected Action": MVBenchTask("unexpected_action", "FunQA_test/test"),
    "Object Existence": MVBenchTask("object_existence", "clevrer/video_validation"),
    "Object Interaction": MVBenchTask("object_interaction", "star/Charades_v1_480", bound=True),
    "Object Shuffle": MVBenchTask("object_shuffle", "perception/videos"),
    "Moving Direction": MVBenchTask("moving_direction", "clevrer/video_validation"),
    "Action Localization": MVBenchTask("action_localization", "sta/sta_video", bound=True),
    "Scene Transition": MVBenchTask("scene_transition", "scene_qa/video"),
    "Action Count": MVBenchTask("action_count", "perception/videos"),
    "Moving Count": MVBenchTask("moving_count", "clevrer/video_validation"),
    "Moving Attribute": MVBenchTask("moving_attribute", "clevrer/video_validation"),
    "State Change": MVBenchTask("state_change", "perception/videos"),
    "Fine-grained Pose": MVBenchTask("fine_grained_pose", "nturgbd"),
    "Character Order": MVBenchTask("character_order", "perception/videos"),
    "Egocentric Navigation": MVBenchTask("egocentric_navigation", "vlnqa"),
    # The videos of this task are folders of frames, three per second.
    "Episodic Reasoning": MVBenchTask("episodic_reasoning", "tvqa/frames_fps3_hq", bound=True),
    "Counterfactual Inference": MVBenchTask("counterfactual_inference", "clevrer/video_validation"),
}


class MVBench(MultipleChoice):
    """See the module."""

    name = "mvbench"
    title = "MVBench"
    folder = "mvbench"
    questions = 4000
    source = "https://huggingface.co/datasets/OpenGVLab/MVBench (NTU RGB+D videos must be asked for separately)"
    layout = """\
json/TASK.json           a list of {"video", "question", "candidates", "answer": the right candidate's text}
                         and for bound tasks {"start", "end"} in seconds; TASK is one of
                         action_sequence ... counterfactual_inference
video/FOLDER/...         the original videos, FOLDER as in the table of videollama2/eval/benchmarks/mvbench.py;
                         tvqa/frames_fps3_hq holds a folder of frames for each video. The hub's data0613/ may lie
                         beside or below video/"""
    annotations: tuple[str, ...] = tuple(f"json/{task.file}.json" for task in TASKS.values())
    published_parser = staticmethod(published_mvbench)

    def load(self, data: Path) -> list[Item]:
        """See :class:`Benchmark`."""
        return load_tasks(data, TASKS)

    def write_submission(self, items: Sequence[Item], samples: Sequence[Sample], folder: Path) -> list[Path]:
        """Write the output of the published runner: JSON lines of video, task, prediction and right answer."""
        path = folder / "mvbench.jsonl"
        by_id = {sample.id: sample for sample in samples}
        lines = []
        for item in items:
            sample = by_id.get(item.id)
            if sample is not None and sample.error is None:
                line = {"vid": item.media, "task_type": item.category, "pred": sample.parsed, "gt": item.answer}
                lines.append(json.dumps(line) + "\n")
        write_atomically(path, "".join(lines))
        return [path]


def load_tasks(data: Path, tasks: dict[str, MVBenchTask]) -> list[Item]:
    """Return the items of several task files, in the order of ``tasks``."""
    videos = VideoFolder(data, *ROOTS)
    items = []
    for name, task in tasks.items():
        path, *_ = find_annotations(data, f"json/{task.file}.json")
        items.extend(_item(record, name, task, index, videos) for index, record in enumerate(read_entries(path)))
    return items


def _item(record: AnnotationEntry, category: str, task: MVBenchTask, index: int, videos: VideoFolder) -> Item:
    options = record.texts("candidates", least=2, most=26)
    answer = record.answer("answer")
    if answer not in options:
        raise record.problem("answer", f"{answer!r} is none of the candidates {list(options)}")
    start, end = _bounds(record) if task.bound else (None, None)
    media = videos.find_path("/".join(part for part in (task.folder, record.path("video")) if part))
    question = record.text("question")
    return Item(
        id=f"{task.file}-{index}",
        media=media,
        start=start,
        end=end,
        question=question,
        instruction=question_and_options(question, options),
        # Of equal candidates the last one is the answer, as in the published code.
        answer=max(place for place, option in enumerate(options) if option == answer),
        options=options,
        category=category,
        group=media,
    )


def _bounds(record: AnnotationEntry) -> tuple[float, float]:
    """Return the bounds of a clip as the published code does: negative ones become 0, reversed ones are exchanged."""
    start, end = sorted(max(record.seconds(name), 0.0) for name in ("start", "end"))
    return start, end
