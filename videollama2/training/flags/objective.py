"""Defines the flags of ``train.py`` that choose what a run optimises."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class ObjectiveFlags:
    """The objective of a run: likely answers, preferences between answers, or a reward of the model's own answers.

    See :mod:`videollama2.training.trainers.dpo` and :mod:`videollama2.training.trainers.grpo`.
    """

    objective: Literal["answers", "dpo", "grpo"] = field(
        default="answers",
        metadata={
            "help": "answers: learn the answers; dpo: prefer an answer to the 'rejected' one; grpo: maximise a "
            "--reward of the model's own answers."
        },
    )
    dpo_beta: float = field(
        default=0.1,
        metadata={"help": "With --objective dpo: how closely the model stays to its start."},
    )
    reward: str | None = field(
        default=None,
        metadata={"help": "With --objective grpo: MODULE:FUNCTION or FILE.py:FUNCTION of (record, answer)."},
    )
    group_size: int = field(
        default=8, metadata={"help": "With --objective grpo: answers to each question, which are compared."}
    )
    answer_tokens: int = field(
        default=32, metadata={"help": "With --objective grpo: maximum number of tokens of an answer."}
    )
    answer_temperature: float = field(
        default=1.0, metadata={"help": "With --objective grpo: temperature at which answers are sampled."}
    )
    answer_updates: int = field(
        default=1,
        metadata={"help": "With --objective grpo: number of optimizer steps that learn from the same answers."},
    )
    clip_ratio: float = field(
        default=0.2,
        metadata={
            "help": "With --objective grpo: share by which a token's probability may change before it is clipped."
        },
    )
    kl_beta: float = field(
        default=0.04,
        metadata={"help": "With --objective grpo: weight of the KL divergence from the start."},
    )
