"""Rules of flags about how data are kept and mixed; :mod:`.rules` has the others."""

from __future__ import annotations

from typing import Any

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
