"""Samples the model's own answers to the questions of a micro-batch, by the inference engine on the live weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from videollama2.constants import IGNORE_INDEX
from videollama2.data.dataset import VideoInstructionDataset
from videollama2.data.pairs import last_answer
from videollama2.data.record import Record
from videollama2.data.samples import TrainingSample
from videollama2.errors import EngineError
from videollama2.inference.answer import Result
from videollama2.inference.engine import Engine
from videollama2.inference.request import Request
from videollama2.media.kinds import AUDIO, VIDEO
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.processing import VideoLlama2Processor
from videollama2.prompting import conversation_messages
from videollama2.training.flags.objective import ObjectiveFlags
from videollama2.training.model.compiled import uncompiled
from videollama2.training.rewards import Reward, rewarded

QUESTION = "question"


@dataclass(frozen=True)
class LastQuestion:
    """The last question of a record.

    Attributes:
        prompt: token ids up to the answer, with placeholders.
        end: the token that ends an answer.
    """

    record: Record
    prompt: list[int]
    end: int


class PromptDataset(VideoInstructionDataset):
    """A dataset whose samples have the :class:`LastQuestion` of their record too, under :data:`QUESTION`."""

    def _sample(self, record: Record, read: Any) -> TrainingSample:
        sample = super()._sample(record, read)
        answer = last_answer(sample["labels"], record)
        begin = next(place for place, label in enumerate(answer) if label != IGNORE_INDEX)
        question = LastQuestion(record, sample["input_ids"][:begin], self.processor.tokenizer.eos_token_id)
        return {**sample, QUESTION: question}


@dataclass(frozen=True)
class AnswerGroup:
    """The answers to one question.

    Attributes:
        ids: for each answer, its token ids, with the end if it came to one.
        rewards: the reward of each answer.
    """

    ids: list[list[int]]
    rewards: list[float]

    @property
    def advantages(self) -> torch.Tensor:
        """The rewards (answers,) minus their mean, in units of their standard deviation.

        Equation 3 of the DeepSeekMath paper (arXiv 2402.03300), whose mean and deviation are those of the group.
        """
        rewards_G = torch.tensor(self.rewards, dtype=torch.float64)
        return ((rewards_G - rewards_G.mean()) / (rewards_G.std(correction=0) + 1e-4)).float()


def answer_questions(
    model: VideoLlama2ForConditionalGeneration,
    processor: VideoLlama2Processor,
    samples: Sequence[TrainingSample],
    reward: Reward,
    flags: ObjectiveFlags,
    seed: int,
) -> list[AnswerGroup | None]:
    """Sample ``group_size`` answers to each question; None for samples without one.

    An engine is opened for this call, so that the answers depend on the weights, the questions and ``seed`` alone.

    Raises:
        EngineError: a question could not be answered. DataError: the reward failed.
    """
    asked = [(place, sample) for place, sample in enumerate(samples) if QUESTION in sample]
    found: list[AnswerGroup | None] = [None] * len(samples)
    if not asked:
        return found
    # The slots are as long as this micro-batch needs: an engine of the default length would hold memory that the step
    # needs.
    longest = max(len(sample[QUESTION].prompt) for _, sample in asked) + flags.answer_tokens
    requests = [_request(sample, flags, seed, number) for _, sample in asked for number in range(flags.group_size)]
    with uncompiled(), Engine(model, processor, max_length=longest, background=False) as engine:
        results = engine.generate(requests)
    for turn, (place, sample) in enumerate(asked):
        own = results[turn * flags.group_size : (turn + 1) * flags.group_size]
        found[place] = _answers(sample[QUESTION], own, reward)
    return found


def _answers(question: LastQuestion, results: Sequence[Result], reward: Reward) -> AnswerGroup:
    for result in results:
        if result.error is not None:
            raise EngineError(f"{question.record.name}: cannot be answered: {result.error}") from result.error
    # The engine leaves out the token that ends an answer. It was sampled too, so it is learnt from; an answer that was
    # cut has none.
    ids = [[*result.token_ids, *([question.end] if result.finish_reason == "stop" else [])] for result in results]
    return AnswerGroup(ids, [rewarded(reward, question.record, result.text) for result in results])


def _request(sample: TrainingSample, flags: ObjectiveFlags, seed: int, number: int) -> Request:
    record = sample[QUESTION].record
    # The seed depends on the question and not on its place in the batch, so that another number of processes samples
    # the same answers.
    text = f"{seed}:{record.source}:{record.id}:{number}"
    return greedy_request(
        sample,
        flags.answer_tokens,
        temperature=flags.answer_temperature,
        seed=int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big"),
    )


def greedy_request(sample: TrainingSample, max_new_tokens: int, **sampling: Any) -> Request:
    """Return the request for the answer to a sample's question; it takes the likeliest tokens unless ``sampling``."""
    question: LastQuestion = sample[QUESTION]
    record = question.record
    return Request(
        conversation_messages(record.conversations, record.kinds)[:-1],
        _sources(record, sample["media"]),
        max_new_tokens=max_new_tokens,
        # The probabilities that are compared in training have no penalty, so sampling must have none.
        repetition_penalty=1.0,
        end_ids=(question.end,),
        **sampling,
    )


def _sources(record: Record, media: Sequence[tuple[str, torch.Tensor]]) -> list[Any]:
    """Return what the record's media were read to, a video with its sound as one."""
    values = iter(values for _, values in media)
    return [
        {VIDEO: next(values), AUDIO: next(values)} if len(medium.parts) > 1 else next(values) for medium in record.media
    ]


def rows_of(samples: Sequence[TrainingSample], answers: Sequence[AnswerGroup | None]) -> list[TrainingSample]:
    """Return a row for each answer, with labels on the answer alone; a sample without a question stays one row."""
    rows: list[TrainingSample] = []
    for sample, own in zip(samples, answers, strict=True):
        if own is None:
            rows.append(sample)
            continue
        prompt, media = sample[QUESTION].prompt, sample["media"]
        rows += [
            {"input_ids": prompt + ids, "labels": [IGNORE_INDEX] * len(prompt) + ids, "media": media} for ids in own.ids
        ]
    return rows
