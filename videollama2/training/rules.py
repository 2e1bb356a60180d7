"""Rules between the flags of ``train.py``: flags that contradict each other are refused with an error naming both."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path

from videollama2.data.sampler import SOUNDING
from videollama2.errors import ConfigError
from videollama2.flat_form import FLAT_MODEL_TYPES
from videollama2.training.data_rules import Rule, feature_rules, mixture_rules
from videollama2.training.flags import RECOMPUTED, DataArguments, ModelArguments, TrainingArguments
from videollama2.training.objective_flags import ObjectiveFlags

ATTENTIONS = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")

_LORA_FLAGS = ("lora_r", "lora_alpha", "lora_dropout", "lora_bias", "lora_target", "lora_rslora", "lora_dora")

_GRPO_FLAGS = tuple(f.name for f in fields(ObjectiveFlags) if f.name not in ("objective", "dpo_beta"))


def check_arguments(model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments) -> None:
    """Raise a ConfigError that names the flags and the rule if flags contradict each other."""
    rules = [
        *_part_rules(model_args, training_args),
        *_audio_rules(model_args, training_args),
        *_lora_rules(model_args, training_args),
        *_data_rules(data_args, training_args),
        *_need(data_args, "sampling fps", data_args.sampling == "fps", ("fps", "max_frames")),
        *_need(data_args, "media_cache", data_args.media_cache is not None, ("media_cache_gb",)),
        (not data_args.media_cache_gb > 0, f"--media_cache_gb {data_args.media_cache_gb} is not above 0"),
        *feature_rules(model_args, data_args, training_args),
        *mixture_rules(data_args, training_args),
        *_stream_rules(data_args, training_args),
        *_packing_rules(data_args.packing, training_args),
        *_attention_rules(model_args.attn_implementation, training_args),
        *_recompute_rules(training_args),
        *_objective_rules(model_args, data_args, training_args),
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
            training_args.vision_tower_lr is not None and model_args.freeze_vision_tower,
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
            multiplier is not None and not model_args.tune_audio_tower,
            f"--audio_gradient_multiplier {multiplier} has no effect without --tune_audio_tower",
        ),
    ]


def _lora_rules(model_args: ModelArguments, training_args: TrainingArguments) -> list[Rule]:
    lora, bits = training_args.lora_enable, training_args.bits
    return [
        (
            lora and model_args.tune_mm_mlp_adapter,
            "--lora_enable trains the language model, --tune_mm_mlp_adapter the connector alone",
        ),
        (
            lora and model_args.freeze_backbone,
            "--lora_enable trains the language model, --freeze_backbone forbids it",
        ),
        *_need(training_args, "lora_enable", lora, _LORA_FLAGS),
        *_need(training_args, "bits 4", bits == 4, ("double_quant", "quant_type")),
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


def _need(arguments: TrainingArguments | DataArguments, flag: str, given: bool, names: tuple[str, ...]) -> list[Rule]:
    """Return rules that ``names`` must keep their defaults without ``flag``, since they would have no effect."""
    defaults = {f.name: f.default for f in fields(arguments)}
    return [
        (
            not given and getattr(arguments, name) != defaults[name],
            f"--{name} {getattr(arguments, name)} has no effect without --{flag}",
        )
        for name in names
    ]


def _zero_stage(training_args: TrainingArguments) -> int:
    """Return the ZeRO stage that the ``--deepspeed`` configuration sets, or 0."""
    config = training_args.deepspeed
    if not config:
        return 0
    if not isinstance(config, dict):
        config = json.loads(Path(config).read_text(encoding="utf-8"))
    return int(config.get("zero_optimization", {}).get("stage", 0))


def _data_rules(data_args: DataArguments, training_args: TrainingArguments) -> list[Rule]:
    weights, files = data_args.data_weights, data_args.files
    return [
        (not files, "--data_path or --data_path_a must name an annotation file"),
        (
            weights is not None and len(weights) != len(files),
            f"--data_weights has {len(weights or ())} numbers for {len(files)} files of --data_path",
        ),
        (
            len(data_args.heard) not in (1, len(files)),
            f"--va has {len(data_args.heard)} values for {len(files)} files of --data_path",
        ),
        *_joint_rules(data_args.joint_ratio, own_order(data_args, training_args)),
        (
            weights is not None and not all(0 < weight < float("inf") for weight in weights),
            f"--data_weights {weights}: a weight must be a positive number",
        ),
        (
            weights is not None and training_args.train_sampling_strategy != "random",
            "--data_weights and --train_sampling_strategy both set the order of samples",
        ),
        (
            training_args.group_by_modality_length and training_args.train_sampling_strategy != "random",
            "--group_by_modality_length and --train_sampling_strategy both set the order of samples",
        ),
        (
            training_args.model_max_length < 2,
            f"--model_max_length {training_args.model_max_length} is below 2",
        ),
        (
            training_args.eval_strategy != "no" and not (data_args.eval_data_path or training_args.eval_benchmarks),
            f"--eval_strategy {training_args.eval_strategy} needs --eval_data_path or --eval_benchmarks",
        ),
        (
            data_args.eval_data_path and training_args.eval_strategy == "no",
            "--eval_data_path is given, but without --eval_strategy nothing is evaluated",
        ),
    ]


def own_order(data_args: DataArguments, training_args: TrainingArguments) -> str | None:
    """Return the flag that sets another order of samples than a plain or a joint one, or None."""
    if data_args.packing is not None:
        return "packing"
    if data_args.data_weights is not None:
        return "data_weights"
    if data_args.data_curriculum is not None:
        return "data_curriculum"
    if training_args.group_by_modality_length:
        return "group_by_modality_length"
    return "train_sampling_strategy" if training_args.train_sampling_strategy != "random" else None


def _joint_rules(ratio: list[int] | None, order: str | None) -> list[Rule]:
    return [
        (
            ratio is not None and (len(ratio) != len(SOUNDING) or min(ratio) < 0 or sum(ratio) == 0),
            f"--joint_ratio {ratio}: three numbers from 0 are needed, for {', '.join(SOUNDING)} records",
        ),
        (ratio is not None and order is not None, f"--joint_ratio and --{order} both set the order of samples"),
    ]


def _stream_rules(data_args: DataArguments, training_args: TrainingArguments) -> list[Rule]:
    if not data_args.streaming:
        return _need(data_args, "streaming True", False, ("shuffle_buffer",))
    order = own_order(data_args, training_args)
    whole = [name for name in ("joint_ratio", "records_cache") if getattr(data_args, name) is not None]
    whole += [order] if order not in (None, "data_weights") else []
    return [
        (training_args.max_steps <= 0, "--streaming needs --max_steps: the number of records is not known"),
        (data_args.shuffle_buffer < 1, f"--shuffle_buffer {data_args.shuffle_buffer} is below 1"),
        (whole, f"--{whole[0] if whole else ''} needs all records, --streaming reads them one after the other"),
    ]


def _packing_rules(packing: int | None, training_args: TrainingArguments) -> list[Rule]:
    if packing is None:
        return []
    return [
        (
            packing < training_args.model_max_length,
            f"--packing {packing} is below --model_max_length {training_args.model_max_length}: a record must fit into "
            "a row",
        ),
        (
            training_args.group_by_modality_length,
            "--packing and --group_by_modality_length both set which records come together",
        ),
        (
            training_args.train_sampling_strategy != "random",
            "--packing and --train_sampling_strategy both set which records come together",
        ),
    ]


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
    unknown = [part for part in parts if part not in RECOMPUTED]
    return [
        (unknown, f"--gradient_checkpointing_parts {' '.join(unknown)}: the parts are {', '.join(RECOMPUTED)}"),
        (every < 1, f"--gradient_checkpointing_every {every} is below 1"),
        (
            not training_args.gradient_checkpointing and (every != 1 or tuple(parts) != RECOMPUTED),
            "--gradient_checkpointing_parts and --gradient_checkpointing_every have no effect without "
            "--gradient_checkpointing True",
        ),
    ]


def _objective_rules(
    model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments
) -> list[Rule]:
    objective = training_args.objective
    return [
        *_need(training_args, "objective dpo", objective == "dpo", ("dpo_beta",)),
        *_need(training_args, "objective grpo", objective == "grpo", _GRPO_FLAGS),
        (training_args.dpo_beta <= 0, f"--dpo_beta {training_args.dpo_beta} is not above 0"),
        *_grpo_rules(training_args),
        (
            objective != "answers" and data_args.streaming,
            f"--streaming reads answers to learn, --objective {objective} needs all records",
        ),
        (
            objective != "answers" and data_args.packing is not None,
            f"--packing packs answers to learn, --objective {objective} compares answers to one question",
        ),
        (
            objective != "answers" and bool(model_args.parts_alone),
            f"--objective {objective} trains a model that answers, --tune_mm_mlp_adapter and --tune_mm_mlp_adapter_a "
            "parts of one that does not yet",
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
            "--clip_ratio has no effect with --answer_updates 1: nothing has changed since the answers were sampled",
        ),
        (
            training_args.answer_temperature <= 0,
            f"--answer_temperature {training_args.answer_temperature} is not above 0: equal answers have no advantage",
        ),
        (
            bool(training_args.deepspeed),
            "--objective grpo samples answers from whole weights, which --deepspeed may cut into slices",
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
        *_need(training_args, "eval_benchmarks", bool(names), ("eval_benchmarks_folder", "eval_questions")),
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
            training_args.output_dir and os.path.isfile(training_args.output_dir),
            f"--output_dir {Path(training_args.output_dir or '')} is a file",
        ),
    ]
