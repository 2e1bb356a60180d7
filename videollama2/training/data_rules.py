"""Rules of flags about how data are kept and mixed; :mod:`.rules` has the others."""

from __future__ import annotations

from typing import Any

from videollama2.data.mixture import parse_phases
from videollama2.training.flags import DataArguments, ModelArguments, TrainingArguments

Rule = tuple[Any, str]
"""Whether a rule is broken, and the error message for that case."""


def feature_rules(model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments) -> list[Rule]:
    """Return the rules of ``--features``."""
    if data_args.features is None:
        return []
    frozen = "--features are those of frozen encoders"
    return [
        (not model_args.freeze_vision_tower, f"{frozen}, --freeze_vision_tower False trains the vision encoder"),
        (model_args.tune_audio_tower, f"{frozen}, --tune_audio_tower trains the audio encoder"),
        (data_args.media_cache, "--media_cache keeps frames, which nobody decodes with --features"),
        (training_args.objective == "grpo", "--objective grpo answers questions about pixels, not about --features"),
        (training_args.fp16, "--features are computed in float32 or, with --bf16 True, in bfloat16; --fp16 is neither"),
    ]


def mixture_rules(data_args: DataArguments, training_args: TrainingArguments) -> list[Rule]:
    """Return the rules of ``--data_curriculum`` and ``--data_weights_by``.

    Raises:
        ConfigError: see :func:`videollama2.data.mixture.parse_phases`.
    """
    given, by_tokens = data_args.data_curriculum is not None, data_args.data_weights_by == "tokens"
    parse_phases(data_args.data_curriculum or (), len(data_args.files))
    return [
        (
            given and data_args.data_weights is not None,
            "--data_weights and --data_curriculum both set the shares of files",
        ),
        (
            given and training_args.train_sampling_strategy != "random",
            "--data_curriculum and --train_sampling_strategy both set the order of samples",
        ),
        (
            by_tokens and not given and data_args.data_weights is None,
            "--data_weights_by tokens has no effect without --data_weights or --data_curriculum",
        ),
        (
            by_tokens and data_args.packing is not None,
            "--data_weights_by tokens has no effect with --packing: its rows have the same number of tokens",
        ),
        (
            by_tokens and data_args.streaming,
            "--data_weights_by tokens needs all records, --streaming does not read them first",
        ),
    ]
