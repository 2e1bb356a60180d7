"""Refuses flags of ``train.py`` that contradict each other, with an error that names both.

:mod:`.data_rules` has those of the data, :mod:`.objective_rules` those of ``--objective``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from videollama2.errors import ConfigError
from videollama2.flat_form import FLAT_MODEL_TYPES
from videollama2.training.bounds import bound_rules
from videollama2.training.data_flags import DataArguments
from videollama2.training.data_rules import data_rules
from videollama2.training.flags import LORA_PARTS, RECOMPUTED, TrainingArguments
from videollama2.training.model_flags import ModelArguments
from videollama2.training.objective_rules import objective_rules
from videollama2.training.rule import Rule, no_effect_without

ATTENTIONS = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")

EVALUATED = ("loss", "answer_accuracy", "answers", "runtime")
"""Numbers of an evaluation on ``--eval_data_path``."""

_LORA_FLAGS = (
    *("lora_r", "lora_alpha", "lora_dropout", "lora_bias", "lora_parts", "lora_target", "lora_rslora", "lora_dora"),
)


def check_arguments(model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments) -> None:
    """Raise a ConfigError that names the flags and the rule if flags contradict each other."""
    rules = [
        *bound_rules(model_args, data_args, training_args),
        *_part_rules(model_args, training_args),
        *_audio_rules(model_args, training_args),
        *_lora_rules(model_args, training_args),
        *data_rules(model_args, data_args, training_args),
        *_attention_rules(model_args.attn_implementation, training_args),
        *_recompute_rules(training_args),
        *_kernel_rules(data_args.packing, training_args),
        *objective_rules(model_args, data_args, training_args),
        *_exam_rules(training_args),
        *_shard_rules(model_args, training_args),
        *_run_rules(training_args),
    ]
    for broken, message in rules:
        if broken:
            raise ConfigError(message)


def _part_rules(model_args: ModelArguments, training_args: TrainingArguments) -> list[Rule]:
    return [
        (
            model_args.model_type is not None and model_args.model_type not in FLAT_MODEL_TYPES,
            f"--model_type {model_args.model_type!r} is not one of {', '.join(FLAT_MODEL_TYPES)}",
        ),
        (
            model_args.tune_mm_mlp_adapter and training_args.freeze_mm_mlp_adapter,
            "--tune_mm_mlp_adapter trains the connector, --freeze_mm_mlp_adapter forbids it",
        ),
        (
            model_args.tune_mm_mlp_adapter and not model_args.freeze_vision_tower,
            "--tune_mm_mlp_adapter trains the connector alone, --freeze_vision_tower False the encoder too",
        ),
        (
            model_args.pretrain_labels != "published" and not model_args.tune_mm_mlp_adapter,
            f"--pretrain_labels {model_args.pretrain_labels} is for the first stage (--tune_mm_mlp_adapter True)",
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
            "--tune_mm_mlp_adapter_a trains the audio projector, --freeze_mm_mlp_adapter forbids it",
        ),
        (
            alone and not model_args.freeze_vision_tower,
            "--tune_mm_mlp_adapter_a trains parts that hear, --freeze_vision_tower False the vision encoder; "
            "--tune_adapter_llm True trains the whole model",
        ),
        (
            alone and training_args.lora_enable,
            "--lora_enable trains the language model, --tune_mm_mlp_adapter_a without --tune_adapter_llm does not",
        ),
        (
            model_args.tune_adapter_llm and (model_args.tune_mm_mlp_adapter or model_args.freeze_backbone),
            "--tune_adapter_llm trains the language model, "
            f"{'--tune_mm_mlp_adapter' if model_args.tune_mm_mlp_adapter else '--freeze_backbone'} forbids it",
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
        (not parts or unknown, f"--lora_parts {' '.join(unknown)}: the parts are {', '.join(LORA_PARTS)}"),
        (
            "vision_tower" in adapted and not model_args.freeze_vision_tower,
            "--lora_parts vision_tower trains matrices beside the encoder's weights, --freeze_vision_tower False the "
            "weights themselves",
        ),
        (
            "audio_tower" in adapted and model_args.tune_audio_tower,
            "--lora_parts audio_tower trains matrices beside the encoder's weights, --tune_audio_tower the weights "
            "themselves",
        ),
        (
            lora and model_args.tune_mm_mlp_adapter,
            "--lora_enable trains the language model, --tune_mm_mlp_adapter the connector alone",
        ),
        (
            "language_model" in adapted and model_args.freeze_backbone,
            "--lora_enable trains the language model, --freeze_backbone forbids it",
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
            f"--bits {bits} needs --lora_enable True: quantised weights cannot learn themselves",
        ),
        (
            bits != 16 and _zero_stage(training_args) == 3,
            f"--bits {bits} cannot be cut into slices by ZeRO-3: use scripts/zero2.json",
        ),
    ]


def _zero_stage(training_args: TrainingArguments) -> int:
    """Return the ZeRO stage that the ``--deepspeed`` configuration sets, or 0."""
    config = training_args.deepspeed
    if not config:
        return 0
    if not isinstance(config, dict):
        config = json.loads(Path(config).read_text(encoding="utf-8"))
    return int(config.get("zero_optimization", {}).get("stage", 0))


def _attention_rules(attention: str | None, training_args: TrainingArguments) -> list[Rule]:
    return [
        (
            attention not in (None, *ATTENTIONS),
            f"--attn_implementation {attention} is not one of {', '.join(ATTENTIONS)}",
        ),
        (
            attention in ("flash_attention_2", "flash_attention_3", "flex_attention") and training_args.use_cpu,
            f"--attn_implementation {attention} needs a GPU: on a CPU its gradients are not computed",
        ),
        (
            str(attention).startswith("flash") and not (training_args.bf16 or training_args.fp16),
            f"--attn_implementation {attention} computes in 16 bits alone: --bf16 True",
        ),
    ]


def _recompute_rules(training_args: TrainingArguments) -> list[Rule]:
    parts, every = training_args.gradient_checkpointing_parts, training_args.gradient_checkpointing_every
    options: Any = training_args.gradient_checkpointing_kwargs or {}
    unknown = [part for part in parts if part not in RECOMPUTED]
    return [
        (unknown, f"--gradient_checkpointing_parts {' '.join(unknown)}: the parts are {', '.join(RECOMPUTED)}"),
        (every < 1, f"--gradient_checkpointing_every {every} is below 1"),
        (
            isinstance(options, dict) and options.get("use_reentrant"),
            "--gradient_checkpointing_kwargs use_reentrant true: layers behind frozen ones would get no gradients",
        ),
        (
            not training_args.gradient_checkpointing and (every != 1 or tuple(parts) != RECOMPUTED),
            "--gradient_checkpointing_parts and --gradient_checkpointing_every have no effect without "
            "--gradient_checkpointing True",
        ),
    ]


def _kernel_rules(packing: int | None, training_args: TrainingArguments) -> list[Rule]:
    needs_gpu = (
        training_args.use_liger_kernel and training_args.use_cpu,
        "--use_liger_kernel needs a GPU: its kernels are written in Triton",
    )
    if not training_args.torch_compile:
        return [needs_gpu]
    backend, known = training_args.torch_compile_backend, torch.compiler.list_backends(exclude_tags=())
    return [
        needs_gpu,
        (backend not in known, f"--torch_compile_backend {backend} is not one of {', '.join(known)}"),
        (
            _in_slices(training_args),
            "--torch_compile compiles layers that have their weights, which ZeRO-3 and --fully_shard gather while a "
            "layer runs",
        ),
        (
            training_args.bits != 16,
            f"--torch_compile compiles products of torch, --bits {training_args.bits} has others",
        ),
        (
            packing is not None,
            "--torch_compile leaves the number of tokens open, --packing makes rows of any number of records",
        ),
    ]


def _shard_rules(model_args: ModelArguments, training_args: TrainingArguments) -> list[Rule]:
    if not training_args.fully_shard:
        return []
    return [
        (training_args.world_size < 2, "--fully_shard shares weights among processes, and there is only one"),
        (bool(training_args.deepspeed), "--fully_shard and --deepspeed both cut weights into slices"),
        (training_args.fp16, "--fully_shard computes in 32 bits or with --bf16 True; --fp16 scales gradients"),
        (
            training_args.objective != "answers",
            f"--fully_shard: --objective {training_args.objective} computes with whole weights between steps",
        ),
        (
            training_args.lora_enable or bool(model_args.parts_alone),
            "--fully_shard is for runs that train whole weights: others have little to share, use DDP",
        ),
    ]


def sample_answers(training_args: TrainingArguments) -> int:
    """Return the number of sample answers: none where no process has whole weights to answer with."""
    return 0 if _in_slices(training_args) else training_args.sample_answers


def _in_slices(training_args: TrainingArguments) -> bool:
    return _zero_stage(training_args) == 3 or training_args.fully_shard


def _metric(training_args: TrainingArguments) -> str | None:
    name = training_args.metric_for_best_model
    return None if name is None else name.removeprefix("eval_")


def _exam_rules(training_args: TrainingArguments) -> list[Rule]:
    names, questions = training_args.eval_benchmarks, training_args.eval_questions
    shown = " ".join(names or ())
    return [
        (
            names and training_args.eval_strategy == "no",
            f"--eval_benchmarks {shown} needs --eval_steps N or --eval_strategy epoch",
        ),
        (
            names and _in_slices(training_args),
            f"--eval_benchmarks {shown}: answering needs whole weights, which ZeRO-3 and --fully_shard cut into "
            "slices: use scripts/zero2.json, or `videollama2 eval run` on checkpoints",
        ),
        (
            training_args.load_best_model_at_end and training_args.eval_strategy == "no",
            "--load_best_model_at_end needs --eval_strategy: without an evaluation, no model is the best",
        ),
        (
            _metric(training_args) not in (None, *EVALUATED) and not names,
            f"--metric_for_best_model {training_args.metric_for_best_model}: an evaluation has {', '.join(EVALUATED)}, "
            "and the numbers of --eval_benchmarks",
        ),
        *no_effect_without(training_args, "eval_benchmarks", bool(names), ("eval_benchmarks_folder", "eval_questions")),
        (questions is not None and questions < 1, f"--eval_questions {questions} is below 1"),
        (
            "sample_answers" in training_args.given and sample_answers(training_args) < training_args.sample_answers,
            "--sample_answers: answering needs whole weights, which ZeRO-3 and --fully_shard cut into slices",
        ),
        (training_args.sample_answers < 0, f"--sample_answers {training_args.sample_answers} is below 0"),
    ]


def _run_rules(training_args: TrainingArguments) -> list[Rule]:
    return [
        (
            training_args.remove_unused_columns,
            "--remove_unused_columns must stay False: the collator reads keys that the model does not",
        ),
        (
            training_args.overwrite_output_dir and training_args.resume_from_checkpoint is not None,
            "--overwrite_output_dir starts over, --resume_from_checkpoint goes on from "
            f"{training_args.resume_from_checkpoint}",
        ),
        (
            training_args.output_dir and os.path.isfile(training_args.output_dir),
            f"--output_dir {Path(training_args.output_dir or '')} is a file",
        ),
    ]
