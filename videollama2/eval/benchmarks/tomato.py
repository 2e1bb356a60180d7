"""TOMATO: questions whose answers need several frames in their order (arXiv 2410.23266)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from videollama2.eval.annotations import AnnotationEntry, check_unique, find_annotations, read_entries
from videollama2.eval.benchmarks.multiple_choice import MultipleChoice
from videollama2.eval.downloads.video_files import VideoFolder
from videollama2.eval.items import Item, Parsed
from videollama2.eval.reading.answers import LETTERS

FRAMES = 16
"""Number of frames that the official prompt names, and that the official scripts use."""
_PROMPT = """\
You will be provided with {frames} separate frames uniformly sampled from a video, the frames are provided in \
chronological order of the video. Analyze these frames and provide the answer to the question about the video content. \
Answer the multiple-choice question about the video content.\x20

You must use these frames to answer the multiple-choice question; do not rely on any externel knowledge or \
commonsense.\x20

<question>\x20
{question}\x20
</question>

<options>\x20
{options}\x20
</options>

Even if the information in these separate frames is not enough to answer the question, PLEASE TRY YOUR BEST TO GUESS \
AN ANSWER WHICH YOU THINK WOULD BE THE MOST POSSIBLE ONE BASED ON THE QUESTION.\x20

DO NOT GENERATE ANSWER SUCH AS 'NOT POSSIBLE TO DETERMINE.'\x20
"""


def published_tomato(output: str, options: Sequence[str]) -> Parsed:
    """Read the option as lmms-eval does without a language model: any letter that occurs, also inside a word.

    Of several letters, the one that stands last in brackets is taken, or the first one without brackets. If there is no
    letter, an answer of more than five words is searched for the words of an option; if that finds nothing, it is A.
    """
    for mark in (",", ".", "!", "?", ";", ":", "'"):
        output = output.strip(mark)
    output = f" {output} "
    found = [index for index in range(len(options)) if LETTERS[index] in output]
    if found:
        return Parsed(max(found, key=lambda index: output.rfind(f"({LETTERS[index]})")))
    lowered = output.lower()
    if len(output.split()) > 5:
        found = [index for index, option in enumerate(options) if option.lower() in lowered]
    if found:
        return Parsed(max(found, key=lambda index: lowered.rfind(options[index].lower())))
    return Parsed(0, guessed=True)


class TOMATO(MultipleChoice):
    """See the module. The prompt is the official one, which speaks of sixteen frames (``--num-frames 16``)."""

    name = "tomato"
    title = "TOMATO"
    folder = "tomato"
    questions = 1484
    source = "https://github.com/yale-nlp/TOMATO; https://huggingface.co/datasets/lmms-eval/TOMATO"
    layout = """\
data/test-*.parquet      a table of id, question, options (texts), answer (index), video_path, reason_type,
                         demonstration_type; or test-*.parquet, or tomato.json with the same fields
VIDEO_PATH               each video where the table says, relative to this folder"""
    annotations = ("data/test-*.parquet", "test-*.parquet", "tomato.json")
    breakdowns = ("demonstration",)
    max_new_tokens = 1024
    published_parser = staticmethod(published_tomato)

    def load(self, data: Path) -> list[Item]:
        """See :class:`Benchmark`."""
        paths = find_annotations(data, *self.annotations)
        videos = VideoFolder(data, ".", "videos")
        items = [_item(entry, videos) for path in paths for entry in read_entries(path)]
        check_unique((item.id for item in items), paths[0])
        return items


def _item(entry: AnnotationEntry, videos: VideoFolder) -> Item:
    question, options = entry.text("question"), entry.texts("options", least=2, most=26)
    # The official prompt shows the options as Python writes a dictionary.
    listed = str({LETTERS[index]: option for index, option in enumerate(options)})
    media = videos.find_path(entry.path("video_path"))
    return Item(
        id=entry.answer("id"),
        media=media,
        question=question,
        instruction=_PROMPT.format(frames=FRAMES, question=question, options=listed),
        answer=entry.index("answer", len(options)),
        options=options,
        category=entry.text("reason_type"),
        group=media,
        extra={"demonstration": entry.text("demonstration_type")},
    )
