"""Asks sample questions while a model is trained, and defines what a benchmark must offer to be asked (:class:`Exam`).

The engine answers with the weights of the moment. It restores the modes of all modules, and random generators are set
back afterwards, so that a run learns the same to the bit whether it is asked or not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Protocol

import torch

from videollama2.data.samples import TrainingSample
from videollama2.inference.answer import ShownAnswer
from videollama2.inference.engine import Engine
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.processing import VideoLlama2Processor
from videollama2.training.asking.rollouts import QUESTION, PromptDataset, greedy_request
from videollama2.training.model.compiled import uncompiled
from videollama2.training.run.stopping import RandomState

EXAMPLES_FILE = "sample_answers.jsonl"
"""File of an output folder with the answers to the sample questions; one object per line, in the order of steps."""

_LONGEST_ANSWER = 64
"""Tokens of a sample answer."""
_TRIES = 20
"""Number of records in a row that are tried for one sample question."""


@dataclass(frozen=True)
class SampleQuestions:
    """Questions of records that lie evenly in a dataset; a record that cannot be used gives way to the next one.

    Attributes:
        questions: the records; they must be read with ``skip_bad``.
        most: number of questions.
    """

    questions: PromptDataset
    most: int

    def samples(self) -> list[TrainingSample]:
        """Read the records; there are fewer than ``most`` if 20 in a row have no question that can be asked."""
        total = len(self.questions)
        count = min(self.most, total)
        found = []
        for first, end in pairwise(place * total // count for place in range(count + 1)):
            tried = map(self.questions.__getitem__, range(first, min(end, first + _TRIES)))
            found += islice((sample for sample in tried if QUESTION in sample), 1)
        return found


class Exam(Protocol):
    """A set of questions with marks, such as a benchmark."""

    @property
    def name(self) -> str: ...

    def ask(
        self,
        model: VideoLlama2ForConditionalGeneration,
        processor: VideoLlama2Processor,
        rank: int,
        world: int,
        answered: Callable[[], None],
    ) -> list[Any]:
        """Return the answers to the share of process ``rank`` of ``world``; they can be pickled.

        ``answered`` is called after each answer, and may raise an exception to end the asking.
        """
        ...

    def marks(self, answers: Sequence[Any]) -> dict[str, float]:
        """Return the numbers for the answers of all processes, by their names in the log."""
        ...

    def shown(self, answers: Sequence[Any], processor: VideoLlama2Processor, most: int) -> Sequence[ShownAnswer]:
        """Return up to ``most`` of the answered questions, the same ones in every evaluation."""
        ...


@contextmanager
def undisturbed(autocast: Callable[[], AbstractContextManager[Any]] = nullcontext) -> Iterator[None]:
    """Leave no trace of the block in random generators; ``autocast`` gives the precision inside it."""
    random = RandomState()
    try:
        with uncompiled(), autocast():
            yield
    finally:
        random.restore()


def answer_samples(
    model: VideoLlama2ForConditionalGeneration, processor: VideoLlama2Processor, questions: SampleQuestions
) -> list[ShownAnswer]:
    """Return greedy answers to the questions."""
    samples = questions.samples()
    if not samples:
        return []
    longest = max(len(sample[QUESTION].prompt) for sample in samples) + _LONGEST_ANSWER
    with Engine(model, processor, max_batch=len(samples), max_length=longest, background=False) as engine:
        results = engine.generate([greedy_request(sample, _LONGEST_ANSWER) for sample in samples])
    found = []
    for sample, result in zip(samples, results, strict=True):
        record = sample[QUESTION].record
        question, wanted = (turn["value"] for turn in record.conversations[-2:])
        answer = result.text if result.error is None else f"(no answer: {result.error})"
        found.append(ShownAnswer(record.name, question, wanted, answer.strip(), sample["media"]))
    return found


def write_answers(folder: Path, answers: Sequence[ShownAnswer], step: int) -> None:
    """Write the answers of a step behind those of earlier ones; what was answered from it on, before the run was
    killed and resumed, is replaced.
    """
    earlier = [line for line in read_answers(folder) if line["step"] < step]
    lines = [*earlier, *({"step": step, **answer.texts()} for answer in answers)]
    unfinished = folder / f"{EXAMPLES_FILE}.part"
    unfinished.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    unfinished.replace(folder / EXAMPLES_FILE)


def read_answers(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of the file in ``folder``, or none."""
    path = folder / EXAMPLES_FILE
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def log_answers(
    writer: Any, title: str, answers: Sequence[ShownAnswer], processor: VideoLlama2Processor, step: int
) -> None:
    """Write answered questions with the frames that the model saw to TensorBoard.

    Args:
        writer: a ``SummaryWriter``.
        title: the first part of the names under which they are shown.
    """
    for number, answer in enumerate(answers):
        tag = f"{title}/{number} {answer.name}"
        text = f"**{answer.question}**\n\nwanted: {answer.wanted}\n\nanswer: {answer.answer}"
        writer.add_text(tag, text, step)
        frames = [uint8_levels(values, processor) for _, values in answer.media if is_seen(values)]
        if frames:
            # All frames stand in one row, in their order.
            strip_HWC = torch.cat([frame_CHW for levels_TCHW in frames for frame_CHW in levels_TCHW], dim=-1)
            writer.add_image(tag, strip_HWC, step)


def is_seen(values: Any) -> bool:
    """Whether the values of a medium are pixels_TCHW of three channels."""
    return isinstance(values, torch.Tensor) and values.dim() == 4 and values.shape[1] == 3


def uint8_levels(pixels_TCHW: torch.Tensor, processor: VideoLlama2Processor) -> torch.Tensor:
    """Return the uint8 levels (T, C, H, W) from which normalised pixels were made."""
    if pixels_TCHW.dtype == torch.uint8 or processor.transform is None:
        return pixels_TCHW
    table_3V = torch.from_numpy(processor.transform.table)
    first_C11, step_C11 = (values_C[:, None, None] for values_C in (table_3V[:, 0], table_3V[:, 1] - table_3V[:, 0]))
    return ((pixels_TCHW.float().cpu() - first_C11) / step_C11).round().clamp(0, 255).to(torch.uint8)
