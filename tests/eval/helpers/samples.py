"""Samples of answers, without a model that gave them."""

from typing import Any

from videollama2.eval.items import Item
from videollama2.eval.report.document import Header
from videollama2.eval.samples import Reading, Sample


def sample(number=1, output="A", **changes):
    """A sample with question, reference and output."""
    fields = {"id": f"q{number}", "category": "Action Count", "group": f"v{number}", "question": "?", "answer": 1}
    return Sample(**{**fields, "output": output, **changes})


def ask(number, output="red", **more):
    """A sample that is to be judged."""
    return sample(number, output, group="v", **{"question": f"colour {number}?", "answer": "red", **more})


HEADER = Header(
    benchmark="mvbench",
    model="DAMO-NLP-SG/VideoLLaMA2-7B",
    revision="abc",
    dtype="float16",
    frames=8,
    generation={"do_sample": False, "max_new_tokens": 2048},
    protocol="published",
    judge=None,
)


def item(name, media, start=None):
    """A question about a video, or about what follows a time in it."""
    return Item(name, media, "?", "?", start=start)


def row(
    number: int,
    correct: bool | None,
    category: str = "Action Count",
    parsed: int | None = 0,
    guessed: bool = False,
    **more: Any,
) -> Sample:
    """A sample that was read."""
    return sample(number, category=category, reading=Reading(parsed, guessed, correct), **more)


ROWS = [
    row(0, True),
    row(1, False),
    row(2, True, "Moving | Direction"),
    row(3, True, "Moving | Direction"),
    row(4, False, "Moving | Direction", parsed=None),
    row(5, True, "Moving | Direction", guessed=True),
    row(6, None, "Moving | Direction", error="videos/v6.mp4: not found", error_kind="media", parsed=None, output=None),
    row(7, None, "Action Count", error="out of memory", error_kind="failed", parsed=None, output=None),
]
"""Answers that are right, wrong, guessed, without a medium and without an answer."""
