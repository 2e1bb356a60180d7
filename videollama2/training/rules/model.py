"""Checks the flags about the parts of the model: which of them learn, audio, LoRA and quantisation."""

from __future__ import annotations

from videollama2.flat_form import FLAT_MODEL_TYPES
from videollama2.training.flags.model import ModelArguments
from videollama2.training.flags.run import LORA_PARTS, TrainingArguments
from videollama2.training.rules.rule import Rule, no_effect_without
from videollama2.training.rules.run import zero_stage

_LORA_FLAGS = (
    *("lora_r", "lora_alpha", "lora_dropout", "lora_bias", "lora_parts", "lora_target", "lora_rslora", "lora_dora"),
)


def model_rules(model_args: ModelArguments, training_args: TrainingArguments) -> list[Rule]:
    """Return the rules of the flags about the parts of the model, and of those of the run that change them."""
    return [
        *_part_rules(model_args, training_args),
        *_audio_rules(model_args, training_args),
        *_lora_rules(model_args, training_args),
    ]


def _part_rules(model_args: ModelArguments, training_args: TrainingArguments) -> list[Rule]:
    return [
        (
            model_args.model_type is not None and model_args.model_type not in FLAT_MODEL_TYPES,
            f"--model_type {model_args.model_type!r} is not one of {', '.join(FLAT_MODEL_TYPES)}",
        ),
        (
            model_args.tune_mm_mlp_adapter and training_args.freeze_mm_mlp_adapter,
            "--tune_mm_mlp_adapter trains the connector, but --freeze_mm_mlp_adapter keeps it from learning",
        ),
        (
            model_args.tune_mm_mlp_adapter and not model_args.freeze_vision_tower,
            "--tune_mm_mlp_adapter trains the connector alone, but --freeze_vision_tower False trains the encoder too",
        ),
        (
            model_args.pretrain_labels != "published" and not model_args.tune_mm_mlp_adapter,
            f"--pretrain_labels {model_args.pretrain_labels} needs --tune_mm_mlp_adapter True: it is for the first "
            "stage",
        ),
        (
            training_args.vision_tower_lr is not None
            and model_args.freeze_vision_tower
            and "vision_tower" not in training_args.adapted_parts,
            "--vision_tower_lr needs --freeze_vision_tower False: a frozen encoder has no learning rate",
        ),
        (
            training_args.mm_projector_lr is not None and training_args.freeze_mm_mlp_adapter,
            "--mm_projector_lr is given, but --freeze_mm_mlp_adapter keeps the connector from learning",
        ),
    ]


def _audio_rules(model_args: ModelArguments, training_args: TrainingArguments) -> list[Rule]:
    multiplier = model_args.audio_gradient_multiplier
    alone = model_args.tune_mm_mlp_adapter_a and not model_args.tune_adapter_llm
    return [
        (
            model_args.tune_mm_mlp_adapter_a and training_args.freeze_mm_mlp_adapter,
            "--tune_mm_mlp_adapter_a trains the audio projector, but --freeze_mm_mlp_adapter keeps it from learning",
        ),
        (
            alone and not model_args.freeze_vision_tower,
            "--tune_mm_mlp_adapter_a trains parts that hear alone, but --freeze_vision_tower False trains the vision "
            "encoder too; --tune_adapter_llm True trains the whole model",
        ),
        (
            alone and training_args.lora_enable,
            "--lora_enable trains the language model, but --tune_mm_mlp_adapter_a without --tune_adapter_llm does not",
        ),
        (
            model_args.tune_adapter_llm and (model_args.tune_mm_mlp_adapter or model_args.freeze_backbone),
            "--tune_adapter_llm trains the language model, but "
            f"{'--tune_mm_mlp_adapter' if model_args.tune_mm_mlp_adapter else '--freeze_backbone'} keeps it from "
            "learning",
        ),
        (
            multiplier is not None and not 0 < multiplier <= 1,
            f"--audio_gradient_multiplier {multiplier} is not above 0 and at most 1",
        ),
        (
            multiplier is not None
            and not (model_args.tune_audio_tower or "audio_tower" in training_args.adapted_parts),
            f"--audio_gradient_multiplier {multiplier} has no effect without --tune_audio_tower",
        ),
    ]


def _lora_rules(model_args: ModelArguments, training_args: TrainingArguments) -> list[Rule]:
    lora, bits = training_args.lora_enable, training_args.bits
    parts, adapted = training_args.lora_parts, training_args.adapted_parts
    unknown = [part for part in parts if part not in LORA_PARTS]
    return [
        (not parts or unknown, f"--lora_parts {' '.join(unknown)} must be among {', '.join(LORA_PARTS)}"),
        (
            "vision_tower" in adapted and not model_args.freeze_vision_tower,
            "--lora_parts vision_tower trains matrices beside the encoder's weights, but --freeze_vision_tower False "
            "trains the weights themselves",
        ),
        (
            "audio_tower" in adapted and model_args.tune_audio_tower,
            "--lora_parts audio_tower trains matrices beside the encoder's weights, but --tune_audio_tower trains the "
            "weights themselves",
        ),
        (
            lora and model_args.tune_mm_mlp_adapter,
            "--lora_enable trains the language model, but --tune_mm_mlp_adapter trains the connector alone",
        ),
        (
            "language_model" in adapted and model_args.freeze_backbone,
            "--lora_enable trains the language model, but --freeze_backbone keeps it from learning",
        ),
        *no_effect_without(training_args, "lora_enable", lora, _LORA_FLAGS),
        *no_effect_without(training_args, "bits 4", bits == 4, ("double_quant", "quant_type")),
        (lora and training_args.lora_r < 1, f"--lora_r {training_args.lora_r} is below 1"),
        (
            not 0 <= training_args.lora_dropout < 1,
            f"--lora_dropout {training_args.lora_dropout} is not between 0 and 1",
        ),
        (
            bits != 16 and not lora,
            f"--bits {bits} needs --lora_enable True: quantised weights cannot learn",
        ),
        (
            bits != 16 and zero_stage(training_args) == 3,
            f"--bits {bits} does not go with ZeRO-3, which cannot shard quantised weights: use scripts/zero2.json",
        ),
    ]
