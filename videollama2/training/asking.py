"""The part of the trainer that lets the model answer questions while it is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from accelerate.utils import gather_object
from transformers import TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback

from videollama2.errors import VideoLlama2Error
from videollama2.inference.answer import ShownAnswer
from videollama2.processing import VideoLlama2Processor
from videollama2.training.exams import Exam, SampleQuestions, answer_samples, show, undisturbed, write_answers
from videollama2.training.saving import SavingTrainer

T = TypeVar("T")


class AskingTrainer(SavingTrainer):
    """A trainer that asks benchmarks and sample questions.

    Args:
        benchmarks: asked in every evaluation, each process its share.
        questions: what the first process answers before training, in every evaluation, and after training; None for
            nothing.
        args, kwargs: arguments of :class:`~videollama2.training.saving.SavingTrainer`.
    """

    def __init__(
        self, *args: Any, benchmarks: Sequence[Exam] = (), questions: SampleQuestions | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.benchmarks, self.questions = benchmarks, questions
        self.asked_step = -1
        """The step at which the sample questions were asked last."""
        self.add_callback(_Before(self))
        # TensorBoard's callback closes its file when training ends, so this one must come before it.
        self.callback_handler.callbacks.insert(0, _After(self))

    def ask(self) -> dict[str, float]:
        """Ask benchmarks and sample questions; return the benchmarks' marks by name (a collective operation)."""
        marks: dict[str, float] = {}
        place = self.args.process_index, self.args.world_size
        model, processor = self.unwrapped(), cast("VideoLlama2Processor", self.processing_class)
        for exam in self.benchmarks:
            answers = gather_object(self._together(lambda exam=exam: exam.ask(model, processor, *place)))
            marks |= exam.marks(answers)
            if self.args.process_index == 0:
                self._show(exam.name, exam.shown(answers, processor, self.args.sample_answers))
        self.ask_samples()
        return marks

    def ask_samples(self) -> None:
        """Let the first process answer the sample questions, write the answers and show them (collective)."""
        if self.questions is None or self.asked_step == self.state.global_step:
            return
        self.asked_step = self.state.global_step
        processor, questions = cast("VideoLlama2Processor", self.processing_class), self.questions
        is_first = self.args.process_index == 0
        answers = self._together(lambda: answer_samples(self.unwrapped(), processor, questions) if is_first else [])
        if is_first:
            write_answers(self.args.output_folder, answers, self.state.global_step)
            self._show("samples", answers)

    def _together(self, answer: Callable[[], T]) -> T:
        """Return what ``answer`` returns on this process; stop where the processes agree if it fails on any."""
        try:
            with undisturbed(lambda: self.accelerator.autocast()):
                found = answer()
        except (VideoLlama2Error, OSError, RuntimeError) as error:
            self.stop_where_agreed(error)
            raise
        self.stop_where_agreed()
        return found

    def _show(self, title: str, answers: Sequence[ShownAnswer]) -> None:
        for callback in self.callback_handler.callbacks:
            writer = getattr(callback, "tb_writer", None)
            if isinstance(callback, TensorBoardCallback) and writer is not None:
                processor = cast("VideoLlama2Processor", self.processing_class)
                show(writer, title, answers, processor, self.state.global_step)


class _Before(TrainerCallback):
    """A callback that asks the sample questions before the first step."""

    def __init__(self, trainer: AskingTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        if self.trainer.state.global_step == 0:
            self.trainer.ask_samples()


class _After(_Before):
    """A callback that asks them again when training has ended."""

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        pass

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.ask_samples()
