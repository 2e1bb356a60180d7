"""TempCompass: questions about action, direction, speed, order of events and change (arXiv 2403.00476).

This module has those three of the four kinds of tasks whose answers are read by rules: multiple choice, yes or no, and
which caption fits. The fourth, captioning, needs a judge and is :mod:`.tempcompass_captioning`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from videollama2.errors import DataError
from videollama2.eval.annotations import AnnotationEntry, read_annotation_json, read_entries
from videollama2.eval.downloads.video_files import VideoFolder
from videollama2.eval.items import PUBLISHED, Benchmark, Item, Parsed
from videollama2.eval.reading.answers import strict_option

POSTS = {
    "multi-choice": "\nPlease directly give the best option:",
    "yes_no": "\nPlease answer yes or no:",
    "caption_matching": "\nPlease directly give the best option:",
}
"""Kinds of tasks, with the text that the official script adds to their questions."""
_LABELLED = re.compile(
    r"(?P<label>[A-Z])\. (?P<text>.*)|(?P<head>(?:Sentence|Option|Caption) (?:[A-Z]|\d)): (?P<words>.*)"
)


class TempCompass(Benchmark):
    """See the module.

    The ``published`` reading follows the official rules. If they find nothing, the official scorer asks GPT-3.5; here
    the answer counts as unparsed.
    """

    name = "tempcompass"
    title = "TempCompass"
    folder = "tempcompass"
    questions = 5536
    source = "https://github.com/llyx97/TempCompass; https://huggingface.co/datasets/lmms-lab/TempCompass"
    layout = """\
KIND.json                {VIDEO: {ASPECT: [{"question": with its options, a line each, "answer"}]}}; KIND is
                         multi-choice, yes_no or caption_matching; in its place, of the hub: KIND/test-*.parquet
videos/                  VIDEO.mp4 (or another kind of video)"""
    annotations = tuple(pattern for kind in POSTS for pattern in (f"{kind}.json", f"{kind}/test-*.parquet"))
    breakdowns = ("aspect",)

    def load(self, data: Path) -> list[Item]:
        """See :class:`Benchmark`; kinds without a file are left out, and the report counts the questions asked."""
        videos = VideoFolder(data, "videos")
        items = [
            _item(entry, kind, index, videos) for kind in POSTS for index, entry in enumerate(task_entries(data, kind))
        ]
        if not items:
            raise DataError(f"{data / 'multi-choice.json'}: is missing (as are {', '.join(self.annotations[1:])})")
        return items

    def parse(self, item: Item, output: str, protocol: str) -> Parsed:
        """See :class:`Benchmark`."""
        if protocol == PUBLISHED:
            return _published(item, output.strip())
        if item.category == "yes_no":
            said = set(re.findall(r"\b(yes|no)\b", output.lower()))
            return Parsed(item.options.index(said.pop()) if len(said) == 1 else None)
        heads = item.extra["heads"]
        named = [index for index, head in enumerate(heads) if re.search(rf"\b{re.escape(head)}\b", output)]
        return Parsed(named[0]) if len(named) == 1 else strict_option(output, item.options)


def _published(item: Item, output: str) -> Parsed:
    if item.category == "yes_no":
        return Parsed(next((index for index, word in enumerate(item.options) if output.lower().startswith(word)), None))
    for index, (head, option) in enumerate(zip(item.extra["heads"], item.options, strict=True)):
        label = head.split()[-1]
        if item.category == "multi-choice":
            if output in (label, f"{label}. {option}") or output.startswith((f"{label}.", f"{label})")):
                return Parsed(index)
        elif (
            output in (f"{head}: {option}", option)
            or output.replace(".", "") in (head, label)
            or ") " in output
            and output.split(") ")[1] == option
        ):
            return Parsed(index)
    return Parsed(None)


def task_entries(data: Path, kind: str) -> Iterator[AnnotationEntry]:
    """Yield the questions of one kind of task, each with ``video_id`` and ``dim`` (the aspect), as in the hub's tables.

    There are none if the kind has no file.

    Raises:
        DataError: a file is malformed.
    """
    path = data / f"{kind}.json"
    if not path.is_file():
        for table in sorted(data.glob(f"{kind}/test-*.parquet")):
            yield from read_entries(table)
        return
    for video, aspects in read_annotation_json(path, dict).items():
        for aspect in AnnotationEntry(aspects, f"{path}: {video!r}").raw:
            for entry in AnnotationEntry(aspects, f"{path}: {video!r}").records(aspect):
                yield AnnotationEntry({**entry.raw, "video_id": video, "dim": aspect}, entry.where)


def _item(entry: AnnotationEntry, kind: str, index: int, videos: VideoFolder) -> Item:
    question, answer, video = entry.text("question"), entry.text("answer").strip(), entry.path("video_id")
    heads, options = _options(question) if kind != "yes_no" else (("yes", "no"), ("yes", "no"))
    whole = [
        answer.lower() == option if kind == "yes_no" else answer in _forms(head, option)
        for head, option in zip(heads, options, strict=True)
    ]
    if whole.count(True) != 1:
        raise entry.problem("answer", f"{answer!r} is none of the options of its question")
    return Item(
        id=f"{kind}-{index}",
        media=videos.find(video),
        question=question,
        instruction=question + POSTS[kind],
        answer=whole.index(True),
        options=tuple(options),
        category=kind,
        group=video,
        extra={"heads": tuple(heads), "aspect": entry.text("dim")},
    )


def _options(question: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the labels (``A``, ``Caption B``) and texts of the options below a question."""
    matches = [match for line in question.split("\n")[1:] if (match := _LABELLED.fullmatch(line.strip()))]
    return (
        tuple(match["label"] or match["head"] for match in matches),
        tuple(match["text"] or match["words"] for match in matches),
    )


def _forms(head: str, option: str) -> tuple[str, ...]:
    return f"{head}. {option}", f"{head}: {option}", head, option
