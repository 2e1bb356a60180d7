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
        metadata={"help": "dpo: prefer an answer to the 'rejected' one; grpo: earn a --reward with own answers."},
    )
    dpo_beta: float = field(
        default=0.1, metadata={"help": "With --objective dpo: how closely the model stays to where it began."}
    )
    reward: str | None = field(
        default=None,
        metadata={"help": "With --objective grpo: MODULE:FUNCTION or FILE.py:FUNCTION of (record, answer)."},
    )
    group_size: int = field(default=8, metadata={"help": "Answers to each question, which are compared."})
    answer_tokens: int = field(default=32, metadata={"help": "Longest of these answers."})
    answer_temperature: float = field(default=1.0, metadata={"help": "Temperature at which they are sampled."})
    answer_updates: int = field(default=1, metadata={"help": "Optimizer steps that learn from the same answers."})
    clip_ratio: float = field(default=0.2, metadata={"help": "How much more or less likely they may become in these."})
    kl_beta: float = field(default=0.04, metadata={"help": "Weight of the distance from where the run began."})
