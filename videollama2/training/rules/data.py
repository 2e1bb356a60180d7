"""Checks the flags about the data: how they are read, kept, mixed, ordered and packed."""

from __future__ import annotations

from videollama2.data.order.mixture import parse_phases
from videollama2.data.order.sampler import SOUNDING
from videollama2.training.flags.data import DataArguments
from videollama2.training.flags.model import ModelArguments
from videollama2.training.flags.run import TrainingArguments
from videollama2.training.rules.rule import Rule, no_effect_without


def data_rules(model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments) -> list[Rule]:
    """Return the rules of the flags of :class:`.flags.data.DataArguments`.

    Raises:
        ConfigError: see :func:`videollama2.data.order.mixture.parse_phases`.
    """
    return [
        *_file_rules(data_args, training_args),
        *no_effect_without(data_args, "sampling fps", data_args.sampling == "fps", ("fps", "max_frames")),
        *no_effect_without(data_args, "media_cache", data_args.media_cache is not None, ("media_cache_gb",)),
        (not data_args.media_cache_gb > 0, f"--media_cache_gb {data_args.media_cache_gb} is not above 0"),
        *_feature_rules(model_args, data_args, training_args),
        *_mixture_rules(data_args, training_args),
        *_stream_rules(data_args, training_args),
        *_packing_rules(data_args.packing, training_args),
    ]


def _file_rules(data_args: DataArguments, training_args: TrainingArguments) -> list[Rule]:
    weights, files = data_args.data_weights, data_args.files
    evaluates = getattr(training_args.eval_strategy, "value", training_args.eval_strategy)
    return [
        (not files, "--data_path or --data_path_a must name an annotation file"),
        (
            weights is not None and len(weights) != len(files),
            f"--data_weights has {len(weights or ())} numbers for {len(files)} files of --data_path",
        ),
        (
            len(data_args.heard) not in (1, len(files)),
            f"--va has {len(data_args.heard)} values for {len(files)} files of --data_path; give one for all or one "
            "for each",
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
            f"--eval_strategy {evaluates} needs --eval_data_path or --eval_benchmarks",
        ),
        (
            data_args.eval_data_path and training_args.eval_strategy == "no",
            "--eval_data_path has no effect without --eval_strategy or --eval_steps",
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
            f"--joint_ratio {ratio} must be three numbers from 0, for {', '.join(SOUNDING)} records",
        ),
        (ratio is not None and order is not None, f"--joint_ratio and --{order} both set the order of samples"),
    ]


def _feature_rules(
    model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments
) -> list[Rule]:
    """Return the rules of ``--features``."""
    if data_args.features is None:
        return []
    frozen = "--features holds the output of frozen encoders"
    encoders = " ".join(sorted(training_args.adapted_parts & {"vision_tower", "audio_tower"}))
    return [
        (encoders, f"{frozen}, but --lora_parts {encoders} trains them"),
        (not model_args.freeze_vision_tower, f"{frozen}, but --freeze_vision_tower False trains the vision encoder"),
        (model_args.tune_audio_tower, f"{frozen}, but --tune_audio_tower trains the audio encoder"),
        (
            data_args.media_cache,
            "--media_cache has no effect with --features: no frames are decoded that it could keep",
        ),
        (
            training_args.objective == "grpo",
            "--objective grpo does not go with --features: its answers are generated from pixels",
        ),
        (
            training_args.fp16,
            "--features are computed in float32 or bfloat16, so they do not go with --fp16; use --bf16 True",
        ),
    ]


def _mixture_rules(data_args: DataArguments, training_args: TrainingArguments) -> list[Rule]:
    """Return the rules of ``--data_curriculum`` and ``--data_weights_by``.

    Raises:
        ConfigError: see :func:`videollama2.data.order.mixture.parse_phases`.
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
            "--data_weights_by tokens needs all records before training, but --streaming reads them one after the "
            "other",
        ),
    ]


def _stream_rules(data_args: DataArguments, training_args: TrainingArguments) -> list[Rule]:
    if not data_args.streaming:
        return no_effect_without(data_args, "streaming True", False, ("shuffle_buffer",))
    order = own_order(data_args, training_args)
    whole = [name for name in ("joint_ratio", "records_cache") if getattr(data_args, name) is not None]
    whole += [order] if order not in (None, "data_weights") else []
    return [
        (training_args.max_steps <= 0, "--streaming needs --max_steps, because the number of records is not known"),
        (data_args.shuffle_buffer < 1, f"--shuffle_buffer {data_args.shuffle_buffer} is below 1"),
        (
            whole,
            f"--{whole[0] if whole else ''} needs all records before training, but --streaming reads them one after "
            "the other",
        ),
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
