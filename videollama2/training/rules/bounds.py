"""Bounds of numbers among the flags. Libraries would meet values beyond them later, with a traceback or not at all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from videollama2.training.flags.data import DataArguments
from videollama2.training.flags.model import ModelArguments
from videollama2.training.flags.run import TrainingArguments
from videollama2.training.rules.rule import Rule

_MOST = {"seed": 2**32 - 1, "data_seed": 2**32 - 1}
"""NumPy takes no larger seeds."""
_BELOW = {"adam_beta1": 1, "adam_beta2": 1}

_LEAST = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "learning_rate": 0,
    "mm_projector_lr": 0,
    "vision_tower_lr": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "warmup_steps": 0,
    "adam_beta1": 0,
    "adam_beta2": 0,
    "adam_epsilon": 0,
    "seed": 0,
    "data_seed": 0,
    "eval_delay": 0,
}


def bound_rules(model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments) -> list[Rule]:
    """Return the rules of numbers by themselves."""
    steps, epochs = training_args.max_steps, training_args.num_train_epochs

    def given(bounds: dict[str, int]) -> Iterator[tuple[str, float, int]]:
        values = ((name, getattr(training_args, name), bound) for name, bound in bounds.items())
        return (each for each in values if each[1] is not None)

    return [
        *(
            (not _is_finite(value), f"--{name} {value} is not a finite number")
            for group in (model_args, data_args, training_args)
            for name, value in ((field.name, getattr(group, field.name, None)) for field in fields(group))
        ),
        *((value < least, f"--{name} {value} is below {least}") for name, value, least in given(_LEAST)),
        *((value > most, f"--{name} {value} is above {most}") for name, value, most in given(_MOST)),
        *((value >= end, f"--{name} {value} is not below {end}") for name, value, end in given(_BELOW)),
        *_interval_rules(training_args),
        (steps != -1 and steps <= 0, f"--max_steps {steps}: a run without a step learns nothing"),
        (steps <= 0 and epochs <= 0, f"--num_train_epochs {epochs}: a run without an epoch learns nothing"),
    ]


def _interval_rules(training_args: TrainingArguments) -> list[Rule]:
    saves, evaluates, most = training_args.save_steps, training_args.eval_steps, training_args.save_total_limit
    return [
        (
            training_args.save_strategy == "steps" and saves <= 0,
            f"--save_steps {saves} is not above 0: no checkpoint would be written; --save_strategy no says so",
        ),
        (evaluates is not None and evaluates <= 0, f"--eval_steps {evaluates} is not above 0"),
        (most is not None and most < 1, f"--save_total_limit {most} is below 1; without it, all checkpoints are kept"),
    ]


def _is_finite(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return all(math.isfinite(each) for each in values if isinstance(each, float))
