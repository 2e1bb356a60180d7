"""Checks the flags that choose what a run optimises."""

from __future__ import annotations

from dataclasses import fields

from videollama2.training.flags.data import DataArguments
from videollama2.training.flags.model import ModelArguments
from videollama2.training.flags.objective import ObjectiveFlags
from videollama2.training.flags.run import TrainingArguments
from videollama2.training.rules.rule import Rule, no_effect_without

_GRPO_FLAGS = tuple(f.name for f in fields(ObjectiveFlags) if f.name not in ("objective", "dpo_beta"))


def objective_rules(
    model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments
) -> list[Rule]:
    objective = training_args.objective
    return [
        *no_effect_without(training_args, "objective dpo", objective == "dpo", ("dpo_beta",)),
        *no_effect_without(training_args, "objective grpo", objective == "grpo", _GRPO_FLAGS),
        (training_args.dpo_beta <= 0, f"--dpo_beta {training_args.dpo_beta} is not above 0"),
        *_grpo_rules(training_args),
        (
            objective != "answers" and data_args.streaming,
            f"--streaming does not support --objective {objective}, which needs all records before training",
        ),
        (
            objective != "answers" and data_args.packing is not None,
            f"--packing does not support --objective {objective}, which compares answers to one question",
        ),
        (
            objective != "answers" and bool(model_args.parts_alone),
            f"--objective {objective} needs a model that answers already, but --tune_mm_mlp_adapter and "
            "--tune_mm_mlp_adapter_a train parts of one that does not yet",
        ),
    ]


def _grpo_rules(training_args: TrainingArguments) -> list[Rule]:
    if training_args.objective != "grpo":
        return []
    least = {"group_size": 2, "answer_tokens": 1, "answer_updates": 1, "kl_beta": 0}
    return [
        (training_args.reward is None, "--objective grpo needs --reward MODULE:FUNCTION"),
        *(
            (getattr(training_args, name) < value, f"--{name} {getattr(training_args, name)} is below {value}")
            for name, value in least.items()
        ),
        (
            not 0 < training_args.clip_ratio < 1,
            f"--clip_ratio {training_args.clip_ratio} is not between 0 and 1",
        ),
        (
            training_args.clip_ratio != 0.2 and training_args.answer_updates == 1,
            "--clip_ratio has no effect with --answer_updates 1: no weight has changed since the answers were sampled",
        ),
        (
            training_args.answer_temperature <= 0,
            f"--answer_temperature {training_args.answer_temperature} is not above 0: equal answers have no advantage",
        ),
        (
            bool(training_args.deepspeed),
            "--objective grpo does not support --deepspeed, which may shard the weights that answers are sampled from",
        ),
    ]
