"""NExT-QA, multiple choice: causal, temporal and descriptive questions with five options each (arXiv 2105.08276)."""

from __future__ import annotations

from pathlib import Path

from videollama2.eval.annotations import AnnotationEntry
from videollama2.eval.benchmarks.multiple_choice import MultipleChoice, read_items
from videollama2.eval.downloads.video_files import VideoFolder
from videollama2.eval.items import Item
from videollama2.eval.reading.answers import LETTERS, first_letter

TYPES = {"C": "causal", "T": "temporal", "D": "descriptive"}
_POST = "\nAnswer with the option's letter from the given choices directly."


class NExTQA(MultipleChoice):
    """See the module.

    The prompt is that of lmms-eval. The published number is the share of right answers (Acc@All), beside those of the
    three groups of types.
    """

    name = "nextqa"
    title = "NExT-QA (multiple choice)"
    folder = "nextqa"
    questions = 8564
    source = "https://github.com/doc-doc/NExT-QA (test.csv); https://huggingface.co/datasets/lmms-lab/NExTQA"
    layout = """\
test.csv                 a table of video, question, answer (0 to 4), qid, type (CW, CH, TN, TC, TP, DC, DL, DO) and
                         a0 .. a4; in its place, of lmms-lab/NExTQA: MC/test-*.parquet
NExTVideo/               VIDEO.mp4 (or another kind of video)"""
    annotations = ("test.csv", "MC/test-*.parquet")
    breakdowns = ("type",)
    published_parser = staticmethod(first_letter)

    def load(self, data: Path) -> list[Item]:
        """See :class:`Benchmark`."""
        return read_items(data, self.annotations, ("NExTVideo", "videos"), _item)


def _item(entry: AnnotationEntry, videos: VideoFolder) -> Item:
    video, kind, question = entry.answer("video"), entry.text("type"), entry.text("question").strip()
    if kind[0] not in TYPES:
        raise entry.problem("type", f"expected one that begins with C, T or D, got {kind!r}")
    options = tuple(entry.answer(f"a{number}").strip() for number in range(5))
    listed = "\n".join(f"{LETTERS[number]}. {option}" for number, option in enumerate(options))
    return Item(
        id=f"{video}-{entry.answer('qid')}",
        media=videos.find(AnnotationEntry({"video": video}, entry.where).path("video")),
        question=question,
        instruction=f"{question}\n{listed}{_POST}",
        answer=entry.index("answer", 5),
        options=options,
        category=TYPES[kind[0]],
        group=video,
        extra={"type": kind},
    )
