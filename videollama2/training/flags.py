"""The flags of ``train.py``, under their published names. Every flag has an effect."""

import sys
from argparse import ArgumentTypeError
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers.hf_argparser import string_to_bool
from transformers.integrations.integration_utils import is_tensorboard_available

from videollama2.constants import MAX_FRAMES
from videollama2.errors import ConfigError, MediaError, MissingDependencyError
from videollama2.flat_form import FLAT_MODEL_TYPES
from videollama2.media.frames import FrameSampling
from videollama2.model.base import choose_deepspeed_accelerator
from videollama2.quiet import is_terminal
from videollama2.training.evaluation_flags import EvaluationFlags
from videollama2.training.objective_flags import ObjectiveFlags
from videollama2.training.stale_locks import clear_stale_locks, skip_shared_memory_reduction


@dataclass
class ModelArguments:
    """Flags for the parts of the model and for which of them learn."""

    model_path: str = field(
        metadata={
            "help": "Language model (needs --vision_tower, --audio_tower or both), or a VideoLLaMA 2 checkpoint to "
            "continue from."
        }
    )
    model_type: str | None = field(
        default=None,
        metadata={"help": f"Checked against the decoder found in --model_path: {', '.join(FLAT_MODEL_TYPES)}."},
    )
    vision_tower: str | None = field(default=None, metadata={"help": "CLIP or SigLIP encoder, folder or hub name."})
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
        metadata={"help": "First stage: only the connector learns, from captions; mm_projector.bin is written."},
    )
    audio_tower: str | None = field(
        default=None,
        metadata={
            "help": "BEATs encoder for a model that does not hear yet: Microsoft's .pt file, or the audio_tower.bin of "
            "the second audio stage."
        },
    )
    mm_projector_a_type: str | None = field(
        default=None, metadata={"help": "Audio projector. Default: the checkpoint's, for a new one 'mlp2x_gelu'."}
    )
    pretrain_mm_mlp_adapter_a: str | None = field(
        default=None, metadata={"help": "File of audio projector weights to start from, as the audio stages write it."}
    )
    tune_mm_mlp_adapter_a: bool = field(
        default=False,
        metadata={
            "help": "Audio stages: the audio projector learns, and nothing else without one of the next two flags; "
            "mm_projector_a.bin is written."
        },
    )
    tune_audio_tower: bool = field(
        default=False, metadata={"help": "The audio encoder learns; the audio stages write audio_tower.bin."}
    )
    tune_adapter_llm: bool = field(
        default=False,
        metadata={"help": "Joint stage: the language model and both connectors learn; a whole model is written."},
    )
    audio_gradient_multiplier: float | None = field(
        default=None,
        metadata={
            "help": "Factor by which gradients shrink in each layer of the audio encoder; 1 keeps them. Default: the "
            "encoder's, as published 0.6."
        },
    )
    freeze_backbone: bool = field(default=False, metadata={"help": "The language model and its head do not learn."})
    pretrain_labels: Literal["published", "answer"] = field(
        default="published",
        metadata={
            "help": "First stage: 'published' learns question and answer without an end, 'answer' the answer and "
            "the end token."
        },
    )
    freeze_vision_tower: bool = field(default=True, metadata={"help": "The vision encoder does not learn."})
    freeze_regex: str | None = field(
        default=None,
        metadata={
            "help": "Regular expression for whole names of parameters that do not learn though other flags let them, "
            "such as 'model.language_model.layers.[0-9].*'."
        },
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "How the language model attends: sdpa (default), eager, flash_attention_2 or flex_attention, the "
            "last two on a GPU."
        },
    )

    def __post_init__(self) -> None:
        # An empty value lets the caller of a script undo a flag that the script sets.
        for name in (
            *("model_type", "vision_tower", "mm_projector_type", "pretrain_mm_mlp_adapter"),
            *("audio_tower", "mm_projector_a_type", "pretrain_mm_mlp_adapter_a"),
        ):
            setattr(self, name, getattr(self, name) or None)

    @property
    def parts_alone(self) -> tuple[str, ...]:
        """The parts that learn alone and are written instead of a whole model; none if the language model may learn."""
        parts = ("mm_projector",) if self.tune_mm_mlp_adapter else ()
        if self.tune_mm_mlp_adapter_a and not self.tune_adapter_llm:
            parts += ("mm_projector_a", "audio_tower") if self.tune_audio_tower else ("mm_projector_a",)
        return parts


@dataclass
class DataArguments:
    """Flags for the training data."""

    data_path: list[str] | None = field(
        default=None,
        metadata={"help": "Annotation files: JSON, tar shards, Parquet, datasets' folders; also addresses (s3://...)."},
    )
    data_path_a: list[str] | None = field(
        default=None,
        metadata={"help": "More annotation files; the published audio stages name theirs here."},
    )
    va: list[str] | None = field(
        default=None,
        metadata={
            "help": "Whether the sound of videos is heard too, True or False; one value for each annotation file, or "
            "one for all. Default: False. A record may say otherwise."
        },
    )
    joint_ratio: list[int] | None = field(
        default=None,
        metadata={
            "help": "How many audio-video, audio and other records are together in every batch. Default: with --va, "
            "and where the data holds all three, 2 1 1."
        },
    )
    data_folder: str | None = field(
        default=None,
        metadata={"help": "What media paths are relative to. Default: the annotation file's folder."},
    )
    data_weights: list[float] | None = field(
        default=None,
        metadata={"help": "One number per annotation file: its share of an epoch. Default: every record once."},
    )
    data_weights_by: Literal["records", "tokens"] = field(
        default="records", metadata={"help": "Whether weights are shares of records or of tokens."}
    )
    data_curriculum: list[str] | None = field(
        default=None,
        metadata={"help": "Weights from a step on, in place of --data_weights: STEP:WEIGHT,WEIGHT,... from step 0."},
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read records while training, without counting them first; needs --max_steps."},
    )
    shuffle_buffer: int = field(
        default=1000, metadata={"help": "With --streaming: each record is drawn from so many; 1 keeps their order."}
    )
    records_cache: str | None = field(
        default=None,
        metadata={"help": "Folder on a local disk that keeps checked records and their lengths by content."},
    )
    media_cache: str | None = field(
        default=None, metadata={"help": "Folder on a local disk that keeps the frames of decoded videos by content."}
    )
    media_cache_gb: float = field(
        default=100.0, metadata={"help": "With --media_cache: its largest size; what was used least recently goes."}
    )
    features: str | None = field(
        default=None,
        metadata={"help": "Folder in which `videollama2 data features` has kept features of the media."},
    )
    packing: int | None = field(
        default=None,
        metadata={"help": "Pack records into rows of this many tokens; a batch size then counts rows."},
    )
    on_bad_sample: Literal["error", "skip"] = field(
        default="error",
        metadata={"help": "A record that cannot be used stops the run, or is left out and listed."},
    )
    eval_data_path: list[str] | None = field(
        default=None,
        metadata={"help": "Annotation files for --eval_strategy; loss and share of right answers are logged."},
    )
    num_frames: int | None = field(
        default=None, metadata={"help": "Frames per video. Default: the checkpoint's, for a new model 8."}
    )
    sampling: Literal["index", "time", "fps"] = field(
        default="index",
        metadata={"help": "Frames evenly over their numbers or over time, or --fps of each second (fps)."},
    )
    fps: float = field(default=1.0, metadata={"help": "With --sampling fps: frames per second."})
    max_frames: int = field(
        default=MAX_FRAMES, metadata={"help": "With --sampling fps: most frames of a video, spread over all of it."}
    )
    image_aspect_ratio: Literal["pad", "square"] | None = field(
        default=None,
        metadata={
            "help": "'pad' makes frames square with bars, 'square' resizes them as they are. Recorded in the "
            "checkpoint and used at inference. Default: the checkpoint's, for a new model 'square'."
        },
    )

    @property
    def files(self) -> list[str]:
        """All annotation files of the training data."""
        return [*(self.data_path or ()), *(self.data_path_a or ())]

    @property
    def files_heard(self) -> list[tuple[str, bool]]:
        """All annotation files, those of the evaluation included, and whether their videos are heard."""
        heard = self.heard * len(self.files) if len(self.heard) == 1 else self.heard
        return [*zip(self.files, heard, strict=True), *((file, any(heard)) for file in self.eval_data_path or ())]

    @property
    def frame_sampling(self) -> FrameSampling:
        """The choice of a video's frames; a record's own number of frames comes first."""
        return FrameSampling.over(self.sampling, fps=self.fps, max_frames=self.max_frames)

    @property
    def heard(self) -> list[bool]:
        """The values of ``--va``: one for all annotation files, or one for each."""
        return [string_to_bool(value) for value in self.va or ("False",)]

    def __post_init__(self) -> None:
        try:
            FrameSampling("model" if self.num_frames is None else self.num_frames)
            FrameSampling(fps=self.fps, max_frames=self.max_frames)
        except MediaError as error:
            raise ConfigError(f"--{error}") from error
        for value in self.va or ():
            try:
                string_to_bool(value)
            except ArgumentTypeError as error:
                raise ConfigError(f"--va {value}: must be True or False") from error


_COMPILING = (
    "the frames and tokens of each batch differ in number, which makes torch recompile for minutes and fail in "
    "the backward pass"
)
_FSDP = "accelerate would shard on GPUs alone; FSDP2 is --fully_shard True"

RECOMPUTED = ("language_model", "mm_projector", "vision_tower", "audio_tower")
"""Parts of the model that can recompute their activations."""

_REFUSED = {
    "torch_compile": _COMPILING,
    "torch_compile_backend": _COMPILING,
    "torch_compile_mode": _COMPILING,
    "fsdp": _FSDP,
    "fsdp_config": _FSDP,
    "use_liger_kernel": "it knows no such model; its main saving, logits of a few positions at a time, is made anyway",
    "auto_find_batch_size": "it continues with smaller batches than the run was started with; set "
    "--per_device_train_batch_size and --gradient_accumulation_steps",
    "enable_jit_checkpoint": "it saves between the backward pass and the optimizer's step, from which a run "
    "cannot be resumed exactly; without it, SIGTERM and SIGUSR1 leave a whole checkpoint after the step under way",
}
"""Flags of transformers that would not do here what they promise, each with the reason."""


@dataclass
class TrainingArguments(ObjectiveFlags, EvaluationFlags, transformers.TrainingArguments):
    """The training arguments of transformers and those that are special to this model."""

    # The keys of samples are read by the collator; transformers would remove those that the model does not know.
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay False: the collator reads what the model does not."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Start over in a folder that holds another run, which is removed."}
    )
    recipe: str | None = field(
        default=None,
        metadata={"help": "YAML file that holds any of these flags; those of the command line override it."},
    )
    # All flags of the command line and of its recipe, for the recipe that the run writes. It is no flag itself.
    given = dict[str, Any]()
    resume_older: bool = field(
        default=False,
        metadata={"help": "Resume from the newest readable checkpoint if newer ones are damaged."},
    )
    optim: str = field(default="adamw_torch_fused", metadata={"help": "Any optimizer of transformers."})
    fully_shard: bool = field(
        default=False,
        metadata={"help": "FSDP2: cut weights, gradients and optimizer state into slices, one for each process."},
    )
    gradient_checkpointing_parts: list[str] = field(
        default_factory=lambda: list(RECOMPUTED),
        metadata={"help": "With --gradient_checkpointing: the parts that recompute. Default: all parts."},
    )
    gradient_checkpointing_every: int = field(
        default=1, metadata={"help": "With --gradient_checkpointing: of each part, only every N-th layer recomputes."}
    )
    model_max_length: int = field(
        default=512,
        metadata={"help": "Tokens of a sample, visual ones included; the rest is cut."},
    )
    mm_projector_lr: float | None = field(
        default=None, metadata={"help": "Learning rate of the connectors. Default: --learning_rate."}
    )
    vision_tower_lr: float | None = field(
        default=None, metadata={"help": "Learning rate of the vision encoder. Default: --learning_rate."}
    )
    freeze_mm_mlp_adapter: bool = field(default=False, metadata={"help": "The connectors do not learn."})
    group_by_modality_length: bool = field(
        default=False,
        metadata={"help": "Batches of one modality and similar lengths, so that little is padding."},
    )
    lora_enable: bool = field(
        default=False, metadata={"help": "The language model learns through low-rank matrices beside its own."}
    )
    lora_r: int = field(default=64, metadata={"help": "Rank of these matrices."})
    lora_alpha: int = field(default=16, metadata={"help": "They count lora_alpha / lora_r."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout before them."})
    lora_bias: Literal["none", "all", "lora_only"] = field(
        default="none", metadata={"help": "Which biases learn with them."}
    )
    lora_target: str | None = field(
        default=None,
        metadata={"help": "Regular expression for whole names of adapted layers. Default: all linear ones."},
    )
    lora_rslora: bool = field(
        default=False, metadata={"help": "The matrices count lora_alpha / sqrt(lora_r), so that high ranks learn."}
    )
    lora_dora: bool = field(
        default=False, metadata={"help": "DoRA: the length of each row of an adapted weight is learned by itself."}
    )
    bits: Literal[4, 8, 16] = field(
        default=16, metadata={"help": "4 or 8: the language model is quantised (bitsandbytes) under LoRA."}
    )
    double_quant: bool = field(
        default=True, metadata={"help": "With --bits 4: quantise the constants of the quantisation too."}
    )
    quant_type: Literal["nf4", "fp4"] = field(default="nf4", metadata={"help": "With --bits 4: the number format."})
    report_to: None | str | list[str] = field(
        default=None,
        metadata={"help": "tensorboard, wandb, none, ... Default: tensorboard where it is installed."},
    )

    # These flags of transformers would not do here what they promise and are refused; see _REFUSED.
    torch_compile: bool = field(default=False, metadata={"help": "Refused: the media of a batch vary in shape."})
    fsdp: str | None = field(
        default=None, metadata={"nargs": "?", "const": "True", "help": "Refused: use --fully_shard True."}
    )
    use_liger_kernel: bool = field(
        default=False, metadata={"help": "Refused: logits exist for a few positions at a time without it."}
    )
    auto_find_batch_size: bool = field(
        default=False, metadata={"help": "Refused: a run would continue with other batches than it was started with."}
    )
    enable_jit_checkpoint: bool = field(
        default=False, metadata={"help": "Refused: SIGTERM and SIGUSR1 leave a checkpoint without it."}
    )

    # These would have no effect here, or a wrong one, so they are no flags. The attributes remain, since transformers
    # reads them.
    do_train: bool = field(default=False, init=False)
    do_eval: bool = field(default=False, init=False)
    do_predict: bool = field(default=False, init=False)
    label_names: list[str] | None = field(default=None, init=False)
    label_smoothing_factor: float = field(default=0.0, init=False)  # needs logits that training does not compute
    length_column_name: str = field(default="length", init=False)
    liger_kernel_config: dict[str, bool] | None = field(default=None, init=False)
    # Evaluation sums loss and answers batch by batch, see eval_loss.py.
    prediction_loss_only: bool = field(default=False, init=False)
    eval_accumulation_steps: int | None = field(default=None, init=False)
    eval_do_concat_batches: bool = field(default=True, init=False)
    eval_use_gather_object: bool = field(default=False, init=False)
    include_for_metrics: list[str] = field(default_factory=list, init=False)
    batch_eval_metrics: bool = field(default=False, init=False)
    bf16_full_eval: bool = field(default=False, init=False)
    fp16_full_eval: bool = field(default=False, init=False)

    @property
    def output_folder(self) -> Path:
        """``output_dir``, which transformers sets to a default if it is not given."""
        assert self.output_dir is not None
        return Path(self.output_dir)

    def __post_init__(self) -> None:
        for name, reason in _REFUSED.items():
            if (value := getattr(self, name)) not in (None, False):
                raise ConfigError(f"--{name} {value} is refused: {reason}")
        if self.deepspeed:
            _need_package("deepspeed", f"--deepspeed {self.deepspeed}")
            if str(self.deepspeed).endswith(".json") and not Path(str(self.deepspeed)).is_file():
                raise ConfigError(f"--deepspeed {self.deepspeed}: there is no such file")
            clear_stale_locks()
        # transformers would decide this by the level of its hints.
        if self.disable_tqdm is None:
            self.disable_tqdm = not is_terminal(sys.stderr)
        # Without use_cpu, accelerate finds no device on a machine without a GPU and treats each process of a
        # distributed run as a run of its own, so that gradients would not be exchanged.
        if not torch.accelerator.is_available():
            self.use_cpu = True
        choose_deepspeed_accelerator()
        if self.deepspeed:
            skip_shared_memory_reduction()
        if self.use_cpu:
            self.dataloader_pin_memory = False
            self.tf32 = None  # the published scripts set it, and without a GPU transformers would refuse it
        if self.ddp_find_unused_parameters is None:
            # Every weight that learns gets a gradient in every step, even in a step without media.
            self.ddp_find_unused_parameters = False
        if self.eval_benchmarks and self.eval_steps and self.eval_strategy == "no":
            self.eval_strategy = "steps"
        self._choose_reports()
        super().__post_init__()

    def _choose_reports(self) -> None:
        if self.report_to is None:
            self.report_to = ["tensorboard"] if is_tensorboard_available() else []
        for name in [self.report_to] if isinstance(self.report_to, str) else self.report_to:
            if name in ("tensorboard", "wandb"):
                _need_package(name, f"--report_to {name}")


def _need_package(name: str, flag: str) -> None:
    if find_spec(name) is None:
        raise MissingDependencyError(f"{flag} needs the package {name}: pip install {name}")
