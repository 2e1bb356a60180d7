"""Lets the model answer questions while it is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, TypeVar, cast

from accelerate.utils import gather_object
from transformers import TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from videollama2.errors import VideoLlama2Error
from videollama2.inference.answer import ShownAnswer
from videollama2.processing import VideoLlama2Processor
from videollama2.training.asking.sample_questions import (
    Exam,
    SampleQuestions,
    answer_samples,
    log_answers,
    undisturbed,
    write_answers,
)
from videollama2.training.run.saving import SavingTrainer
from videollama2.training.run.stopping import FAILED, InterruptedEvaluationError

T = TypeVar("T")


class AskingTrainer(SavingTrainer):
    """A trainer that asks benchmarks and sample questions.

    Args:
        benchmarks: asked in every evaluation, each process its share.
        questions: what the first process answers before training, in every evaluation, and after training; None for
            nothing.
        args, kwargs: arguments of :class:`~videollama2.training.run.saving.SavingTrainer`.
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
            asked = partial(exam.ask, model, processor, *place, self._leave_if_signalled)
            answers = gather_object(self.together(asked))
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
        answers = self.together(lambda: answer_samples(self.unwrapped(), processor, questions) if is_first else [])
        if is_first:
            write_answers(self.args.output_folder, answers, self.state.global_step)
            self._show("samples", answers)

    def together(self, answer: Callable[[], T]) -> T:
        """Return what ``answer`` returns on this process; stop where the processes agree if it fails on any.

        ``answer`` may also be left by an :class:`InterruptedEvaluationError`. It leaves no trace in random generators.
        """
        found: list[T] = []
        try:
            with undisturbed(lambda: self.accelerator.autocast()):
                found = [answer()]
        except InterruptedEvaluationError:
            pass  # the processes agree to stop below
        except (VideoLlama2Error, OSError, RuntimeError) as error:
            self.stop_where_agreed(error)
            raise
        self.stop_where_agreed()
        return found[0]

    def _leave_if_signalled(self) -> None:
        if self.signals.number:
            raise InterruptedEvaluationError

    def until_stopped(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches of an evaluation, of which every process has the same number (collective).

        Raises:
            InterruptedEvaluationError: on all processes, at the same batch, if one wants to stop or cannot read its
                batch; that one raises its own error.
        """
        remaining = iter(batches)
        while True:
            error = None
            batch: list[T] = []
            try:
                batch = list(islice(remaining, 1))
            except (VideoLlama2Error, OSError, RuntimeError) as caught:
                error = caught
            code = self.agreement.largest(FAILED if error else self.signals.number)
            if error is not None:
                raise error
            if code:
                raise InterruptedEvaluationError
            if not batch:
                return
            yield batch[0]

    def make_up_for_evaluation(self) -> None:
        """Evaluate a resumed model if the run was stopped before or in the evaluation of this step."""
        done = any(row["step"] == self.state.global_step and "eval_runtime" in row for row in self.state.log_history)
        if done or not self._evaluates_here():
            return
        metrics = self._evaluate(None, None)
        is_best = self._determine_best_metric(metrics=metrics, trial=None)
        if self.args.save_strategy == SaveStrategy.BEST and is_best:
            self._save_checkpoint(self.wrapped(), None)

    def _evaluates_here(self) -> bool:
        """Whether a run evaluates after the step that it is at."""
        args, state = self.args, self.state
        if args.eval_strategy == IntervalStrategy.STEPS:
            is_due = state.global_step % state.eval_steps == 0 or state.global_step >= state.max_steps
            return is_due and args.eval_delay <= state.global_step
        ends_epoch = state.epoch is not None and state.epoch == round(state.epoch)
        return args.eval_strategy == IntervalStrategy.EPOCH and ends_epoch and args.eval_delay <= (state.epoch or 0)

    def _show(self, title: str, answers: Sequence[ShownAnswer]) -> None:
        for callback in self.callback_handler.callbacks:
            writer = getattr(callback, "tb_writer", None)
            if isinstance(callback, TensorBoardCallback) and writer is not None:
                processor = cast("VideoLlama2Processor", self.processing_class)
                log_answers(writer, title, answers, processor, self.state.global_step)


class _Before(TrainerCallback):
    """A callback that asks the sample questions before the first step, or evaluates what a stopped run did not."""

    def __init__(self, trainer: AskingTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        if self.trainer.state.global_step == 0:
            self.trainer.ask_samples()
        else:
            self.trainer.make_up_for_evaluation()


class _After(_Before):
    """A callback that asks them again when training has ended."""

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        pass

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.ask_samples()
