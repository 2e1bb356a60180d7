"""Checks the flags about a run: attention, recomputation, kernels, slices of weights, and what is asked meanwhile."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from videollama2.training.flags.model import ModelArguments
from videollama2.training.flags.run import RECOMPUTED, TrainingArguments
from videollama2.training.rules.rule import Rule, no_effect_without

ATTENTIONS = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")

EVALUATED = ("loss", "answer_accuracy", "answers", "runtime")
"""Numbers of an evaluation on ``--eval_data_path``."""


def run_rules(packing: int | None, model_args: ModelArguments, training_args: TrainingArguments) -> list[Rule]:
    """Return the rules of the flags about the run."""
    return [
        *_attention_rules(model_args.attn_implementation, training_args),
        *_recompute_rules(training_args),
        *_kernel_rules(packing, training_args),
        *_exam_rules(training_args),
        *_shard_rules(model_args, training_args),
        *_folder_rules(training_args),
    ]


def zero_stage(training_args: TrainingArguments) -> int:
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
            f"--attn_implementation {attention} needs a GPU: it computes no gradients on a CPU",
        ),
        (
            str(attention).startswith("flash") and not (training_args.bf16 or training_args.fp16),
            f"--attn_implementation {attention} needs --bf16 True: it computes only in 16 bits",
        ),
    ]


def _recompute_rules(training_args: TrainingArguments) -> list[Rule]:
    parts, every = training_args.gradient_checkpointing_parts, training_args.gradient_checkpointing_every
    options: Any = training_args.gradient_checkpointing_kwargs or {}
    unknown = [part for part in parts if part not in RECOMPUTED]
    return [
        (unknown, f"--gradient_checkpointing_parts {' '.join(unknown)} must be among {', '.join(RECOMPUTED)}"),
        (every < 1, f"--gradient_checkpointing_every {every} is below 1"),
        (
            isinstance(options, dict) and options.get("use_reentrant"),
            "--gradient_checkpointing_kwargs: use_reentrant must be false, or layers after frozen ones would get no "
            "gradients",
        ),
        (
            not training_args.gradient_checkpointing and (every != 1 or tuple(parts) != RECOMPUTED),
            "--gradient_checkpointing_parts and --gradient_checkpointing_every have no effect without "
            "--gradient_checkpointing True",
        ),
    ]


def _kernel_rules(packing: int | None, training_args: TrainingArguments) -> list[Rule]:
    need_gpu = [
        (
            training_args.use_liger_kernel and training_args.use_cpu,
            "--use_liger_kernel needs a GPU: its kernels are written in Triton",
        ),
        (
            training_args.fp16 and training_args.use_cpu and not training_args.deepspeed,
            "--fp16 needs a GPU: on a CPU the run would compute in 32 bits; --bf16 True computes in 16",
        ),
    ]
    if not training_args.torch_compile:
        return need_gpu
    backend, known = training_args.torch_compile_backend, torch.compiler.list_backends(exclude_tags=())
    return [
        *need_gpu,
        (backend not in known, f"--torch_compile_backend {backend} is not one of {', '.join(known)}"),
        (
            _in_slices(training_args),
            "--torch_compile needs whole weights when it compiles a layer, but ZeRO-3 and --fully_shard gather them "
            "only while the layer runs",
        ),
        (
            training_args.bits != 16,
            f"--torch_compile cannot compile the matrix products of --bits {training_args.bits}, which are not torch's",
        ),
        (
            packing is not None,
            "--torch_compile compiles for any number of tokens, but not for any number of records in a row, as "
            "--packing makes them",
        ),
    ]


def _shard_rules(model_args: ModelArguments, training_args: TrainingArguments) -> list[Rule]:
    if not training_args.fully_shard:
        return []
    return [
        (training_args.world_size < 2, "--fully_shard shards weights over several processes, but there is only one"),
        (bool(training_args.deepspeed), "--fully_shard and --deepspeed exclude each other: both shard the weights"),
        (training_args.fp16, "--fully_shard does not support --fp16, which scales gradients; use --bf16 True"),
        (
            training_args.objective != "answers",
            f"--fully_shard does not go with --objective {training_args.objective}, which needs whole weights between "
            "steps",
        ),
        (
            training_args.lora_enable or bool(model_args.parts_alone),
            "--fully_shard is for runs that train the whole model: LoRA and connectors have few weights to shard, use "
            "DDP",
        ),
    ]


def sample_answers(training_args: TrainingArguments) -> int:
    """Return the number of sample answers: none where no process has whole weights to answer with."""
    return 0 if _in_slices(training_args) else training_args.sample_answers


def _in_slices(training_args: TrainingArguments) -> bool:
    return zero_stage(training_args) == 3 or training_args.fully_shard


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
            f"--eval_benchmarks {shown} needs whole weights, which ZeRO-3 and --fully_shard shard: use "
            "scripts/zero2.json, or `videollama2 eval run` on checkpoints",
        ),
        (
            training_args.load_best_model_at_end and training_args.eval_strategy == "no",
            "--load_best_model_at_end needs --eval_strategy: without evaluations, it is not known which model is the "
            "best",
        ),
        (
            _metric(training_args) not in (None, *EVALUATED) and not names,
            f"--metric_for_best_model {training_args.metric_for_best_model} is not a number of an evaluation, which "
            f"has {', '.join(EVALUATED)} and the numbers of --eval_benchmarks",
        ),
        *no_effect_without(training_args, "eval_benchmarks", bool(names), ("eval_benchmarks_folder", "eval_questions")),
        (questions is not None and questions < 1, f"--eval_questions {questions} is below 1"),
        (
            "sample_answers" in training_args.given and sample_answers(training_args) < training_args.sample_answers,
            f"--sample_answers {training_args.sample_answers} needs whole weights, which ZeRO-3 and --fully_shard "
            "shard",
        ),
        (training_args.sample_answers < 0, f"--sample_answers {training_args.sample_answers} is below 0"),
    ]


def _folder_rules(training_args: TrainingArguments) -> list[Rule]:
    return [
        (
            training_args.remove_unused_columns,
            "--remove_unused_columns must stay False: the collator reads keys that the model does not take",
        ),
        (
            training_args.overwrite_output_dir and training_args.resume_from_checkpoint is not None,
            "--overwrite_output_dir starts over, --resume_from_checkpoint goes on from "
            f"{training_args.resume_from_checkpoint}",
        ),
        (
            training_args.output_dir and os.path.isfile(training_args.output_dir),
            f"--output_dir {Path(training_args.output_dir or '')} is a file, not a folder",
        ),
    ]
