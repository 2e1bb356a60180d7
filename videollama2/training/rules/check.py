"""Refuses flags of ``train.py`` that contradict each other, with an error that names both."""

from __future__ import annotations

from videollama2.errors import ConfigError
from videollama2.training.flags.data import DataArguments
from videollama2.training.flags.model import ModelArguments
from videollama2.training.flags.run import TrainingArguments
from videollama2.training.rules.bounds import bound_rules
from videollama2.training.rules.data import data_rules
from videollama2.training.rules.model import model_rules
from videollama2.training.rules.objective import objective_rules
from videollama2.training.rules.run import run_rules


def check_arguments(model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments) -> None:
    """Raise a ConfigError that names the flags and the rule if flags contradict each other."""
    rules = [
        *bound_rules(model_args, data_args, training_args),
        *model_rules(model_args, training_args),
        *data_rules(model_args, data_args, training_args),
        *objective_rules(model_args, data_args, training_args),
        *run_rules(data_args.packing, model_args, training_args),
    ]
    for broken, message in rules:
        if broken:
            raise ConfigError(message)
