"""Flags of ``train.py``, under their published names, and the rules between them.

Every flag has an effect. Where one contradicts what the model folder says, the run stops instead of choosing.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import transformers
from transformers import HfArgumentParser

from videollama2.config import FLAT_MODEL_TYPES
from videollama2.errors import ConfigError


@dataclass
class ModelArguments:
    """Which parts the model is made of and which of them learn."""

    model_path: str = field(
        metadata={
            "help": "Language model (needs --vision_tower), or a VideoLLaMA 2 checkpoint to go on from."
        }
    )
    model_type: str | None = field(
        default=None,
        metadata={
            "help": f"Checked against the decoder found in --model_path: {', '.join(FLAT_MODEL_TYPES)}."
        },
    )
    vision_tower: str | None = field(
        default=None, metadata={"help": "CLIP or SigLIP encoder, folder or hub name."}
    )
    mm_projector_type: str | None = field(
        default=None, metadata={"help": "Connector. Default: the checkpoint's, for a new model 'linear'."}
    )
    mm_vision_select_layer: int | None = field(
        default=None,
        metadata={"help": "Encoder layer that is read. Default: the checkpoint's, for a new model -2."},
    )
    mm_vision_select_feature: Literal["patch", "cls_patch"] | None = field(
        default=None, metadata={"help": "Default: the checkpoint's, for a new model 'patch'."}
    )
    pretrain_mm_mlp_adapter: str | None = field(
        default=None,
        metadata={"help": "File of connector weights to start from, as the first stage writes it."},
    )
    tune_mm_mlp_adapter: bool = field(
        default=False,
        metadata={
            "help": "First stage: only the connector learns, from captions; mm_projector.bin is written."
        },
    )
    freeze_backbone: bool = field(
        default=False, metadata={"help": "The language model and its head do not learn."}
    )
    freeze_vision_tower: bool = field(default=True, metadata={"help": "The vision encoder does not learn."})


@dataclass
class DataArguments:
    """What is learnt from."""

    data_path: list[str] = field(metadata={"help": "Annotation files, JSON lists or JSON Lines."})
    data_folder: str | None = field(
        default=None,
        metadata={"help": "What media paths are relative to. Default: the annotation file's folder."},
    )
    eval_data_path: list[str] | None = field(
        default=None, metadata={"help": "Annotation files for --eval_strategy; the loss on them is logged."}
    )
    num_frames: int | None = field(
        default=None, metadata={"help": "Frames per video. Default: the checkpoint's, for a new model 8."}
    )
    image_aspect_ratio: Literal["pad", "square"] | None = field(
        default=None,
        metadata={
            "help": "'pad' makes frames square with bars, 'square' resizes them as they are. Recorded in the "
            "checkpoint and used at inference. Default: the checkpoint's, for a new model 'square'."
        },
    )


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """transformers' arguments and what is special to this model."""

    # The samples' keys are the collator's, not the model's.
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay False: the collator reads what the model does not."}
    )
    optim: str = field(default="adamw_torch", metadata={"help": "Any optimizer of transformers."})
    model_max_length: int = field(
        default=512,
        metadata={"help": "Tokens of one sample, visual ones included; longer ones are cut at the end."},
    )
    mm_projector_lr: float | None = field(
        default=None, metadata={"help": "Learning rate of the connector. Default: --learning_rate."}
    )
    vision_tower_lr: float | None = field(
        default=None, metadata={"help": "Learning rate of the vision encoder. Default: --learning_rate."}
    )
    freeze_mm_mlp_adapter: bool = field(default=False, metadata={"help": "The connector does not learn."})
    group_by_modality_length: bool = field(
        default=False,
        metadata={"help": "Batches of one modality and similar lengths, so that little is padding."},
    )


Arguments = tuple[ModelArguments, DataArguments, TrainingArguments]


def parse_arguments(argv: Sequence[str] | None = None) -> Arguments:
    """Read the command line (default ``sys.argv``) and check it.

    Raises:
        ConfigError: flags that contradict each other. Unknown flags end the process with argparse's message.
    """
    parser = HfArgumentParser(
        (ModelArguments, DataArguments, TrainingArguments),
        prog="python -m videollama2.train",
        description="Train a video language model.",
    )
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = parser.parse_args_into_dataclasses(argv)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    check_arguments(*arguments)
    return arguments


def check_arguments(
    model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments
) -> None:
    """Raise ConfigError for flags that contradict each other, naming them and the rule."""
    rules: list[tuple[Any, str]] = [
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
            training_args.vision_tower_lr is not None and model_args.freeze_vision_tower,
            "--vision_tower_lr needs --freeze_vision_tower False: a frozen encoder has no learning rate",
        ),
        (
            training_args.mm_projector_lr is not None and training_args.freeze_mm_mlp_adapter,
            "--mm_projector_lr is given, but --freeze_mm_mlp_adapter keeps the connector from learning",
        ),
        (
            training_args.remove_unused_columns,
            "--remove_unused_columns must stay False: the collator reads keys that the model does not",
        ),
        (
            training_args.model_max_length < 2,
            f"--model_max_length {training_args.model_max_length} is below 2",
        ),
        (
            training_args.group_by_modality_length and training_args.train_sampling_strategy != "random",
            "--group_by_modality_length and --train_sampling_strategy both set the order of samples",
        ),
        (
            training_args.eval_strategy != "no" and not data_args.eval_data_path,
            f"--eval_strategy {training_args.eval_strategy} needs --eval_data_path",
        ),
        (
            data_args.eval_data_path and training_args.eval_strategy == "no",
            "--eval_data_path is given, but without --eval_strategy nothing is evaluated",
        ),
        (
            training_args.output_dir and os.path.isfile(training_args.output_dir),
            f"--output_dir {Path(training_args.output_dir or '')} is a file",
        ),
    ]
    for broken, message in rules:
        if broken:
            raise ConfigError(message)
