"""Asks a benchmark while a model is trained, with its weights of the moment (:class:`LiveBenchmark`).

The questions, the reading of answers and the numbers are those of ``eval run``; nothing is written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollama2.errors import ConfigError, DataError
from videollama2.eval.benchmarks import benchmark
from videollama2.eval.items import PUBLISHED, Benchmark, Item
from videollama2.eval.running.clips import ClipReader, missing_media, share_of_process
from videollama2.eval.running.runner import AnswerOptions, Runner, open_evaluation_engine
from videollama2.eval.samples import StoredAnswer
from videollama2.eval.scoring import make_sample, read_metrics
from videollama2.inference.answer import ShownAnswer
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.processing import VideoLlama2Processor


@dataclass(frozen=True)
class LiveBenchmark:
    """A benchmark that :class:`videollama2.training.asking.trainer.AskingTrainer` can ask.

    Attributes:
        data: folder to which media paths are relative.
        items: the questions to ask.
    """

    benchmark: Benchmark
    data: Path
    items: Sequence[Item]

    @classmethod
    def open(cls, name: str, root: Path, most: int | None = None) -> LiveBenchmark:
        """Read a benchmark's questions from its usual folder under ``root``.

        Args:
            name: name of a benchmark, or path of a file of questions.
            most: take so many questions, evenly spread; None for all.

        Raises:
            ConfigError: there is no such benchmark, or a judge would have to grade its answers.
            DataError: files are missing or malformed.
        """
        found = benchmark(name)
        if found.aspects:
            raise ConfigError(f"--eval_benchmarks {name}: a judge grades its answers; use `videollama2 eval run`")
        data = found.default_data(root)
        items = spread(found.asked(data), most)
        found.check_texts(items, data)
        if missing := missing_media(items, data):
            raise DataError(f"{data}: {len(missing)} media files of {found.name} are missing, such as {missing[0]}")
        return cls(found, data, items)

    @property
    def name(self) -> str:
        """The benchmark's name."""
        return self.benchmark.name

    def ask(
        self,
        model: VideoLlama2ForConditionalGeneration,
        processor: VideoLlama2Processor,
        rank: int = 0,
        world: int = 1,
        answered: Callable[[], None] = lambda: None,
    ) -> list[StoredAnswer]:
        """Return the answers to the share of process ``rank`` of ``world``, see :func:`~.runner.share_of_process`.

        Args:
            answered: called after each answer; what it raises ends the asking.

        Raises:
            ConfigError: there is not enough memory for an answer.
        """
        mine = share_of_process(self.items, rank, world)
        answers: list[StoredAnswer] = []

        def keep(answer: StoredAnswer) -> None:
            answers.append(answer)
            answered()

        if mine:
            with open_evaluation_engine(model, processor, background=False) as engine:
                Runner(engine, self.benchmark, self.data, AnswerOptions()).run(mine, keep)
        return answers

    def marks(self, answers: Sequence[StoredAnswer]) -> dict[str, float]:
        """Return the benchmark's numbers for the answers to all questions.

        They are named ``BENCHMARK_METRIC`` and, as read by the protocol ``strict``, ``BENCHMARK_METRIC_strict``.
        Percentages are given as shares. Questions without an answer are counted as ``BENCHMARK_unanswered`` if there
        are any.
        """
        by_id = {answer.id: answer for answer in answers}
        samples = [make_sample(self.benchmark, item, by_id[item.id], PUBLISHED) for item in self.items]
        found = {}
        for metric in read_metrics(self.benchmark, samples):
            if metric.overall.value is not None:
                name = re.sub(r"\W+", "_", f"{self.name} {metric.name}")
                end = "" if metric.protocol == PUBLISHED else f"_{metric.protocol}"
                found[name + end] = metric.overall.value / (100 if metric.unit == "%" else 1)
        if unanswered := sum(answer.error is not None for answer in answers):
            found[f"{self.name}_unanswered"] = float(unanswered)
        return found

    def shown(self, answers: Sequence[StoredAnswer], processor: VideoLlama2Processor, most: int) -> list[ShownAnswer]:
        """Return ``most`` of the answered questions, evenly spread, with their media read again."""
        by_id = {answer.id: answer for answer in answers if answer.error is None}
        options = AnswerOptions()
        sampling = options.frames_of(processor.model_config.num_frames)
        clips = ClipReader(processor, self.data, sampling, options.video_backend)
        return [
            ShownAnswer(
                item.id, _text(item.instruction), _wanted(item), _text(by_id[item.id].output), clips.read(item).media
            )
            for item in spread(self.items, most)
            if item.id in by_id
        ]


def spread(items: Sequence[Item], most: int | None) -> list[Item]:
    """Return ``most`` of the items, evenly spread over their order, or all if there are no more or ``most`` is None."""
    if most is None or most >= len(items):
        return list(items)
    return [items[place * len(items) // most] for place in range(most)]


def _text(value: Any) -> str:
    return " / ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _wanted(item: Item) -> str:
    """Return the reference answer as text: that of the right option if there are options."""
    if item.options and isinstance(item.answer, int):
        return item.options[item.answer]
    return "" if item.answer is None else _text(item.answer)
