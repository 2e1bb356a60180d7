"""Defines the flags of ``train.py`` for the run: those of transformers' ``TrainingArguments`` and further ones.

The flags for the model and for the data are in :mod:`.model` and :mod:`.data`. They have their published
names, and every flag has an effect.
"""

import json
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, is_tensorboard_available

from videollama2.errors import ConfigError, MissingDependencyError
from videollama2.model.base import choose_deepspeed_accelerator
from videollama2.quiet import is_terminal
from videollama2.training.flags.evaluation import EvaluationFlags
from videollama2.training.flags.objective import ObjectiveFlags
from videollama2.training.stale_locks import clear_stale_locks, skip_shared_memory_reduction

_FSDP = "accelerate shards on GPUs alone; use --fully_shard True for FSDP2"

RECOMPUTED = ("language_model", "mm_projector", "vision_tower", "audio_tower")
"""Parts of the model that can recompute their activations."""

LORA_PARTS = ("language_model", "vision_tower", "audio_tower")
"""Parts of the model whose linear layers LoRA can adapt."""

_REFUSED = {
    "fsdp": _FSDP,
    "fsdp_config": _FSDP,
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
        default=False, metadata={"help": "Must stay False: the collator reads keys that the model does not take."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Start over: remove the run that --output_dir holds."}
    )
    recipe: str | None = field(
        default=None,
        metadata={"help": "YAML file with any of these flags; those of the command line override it."},
    )
    # All flags of the command line and of its recipe, for the recipe that the run writes. It is not a flag itself.
    given = dict[str, Any]()
    resume_older: bool = field(
        default=False,
        metadata={"help": "Resume from the newest readable checkpoint if newer ones are damaged."},
    )
    optim: str = field(default="adamw_torch_fused", metadata={"help": "Optimizer: any that transformers knows."})
    fully_shard: bool = field(
        default=False,
        metadata={"help": "FSDP2: shard weights, gradients and optimizer state over the processes."},
    )
    gradient_checkpointing_parts: list[str] = field(
        default_factory=lambda: list(RECOMPUTED),
        metadata={"help": "With --gradient_checkpointing: the parts that recompute. Default: all parts."},
    )
    gradient_checkpointing_every: int = field(
        default=1, metadata={"help": "With --gradient_checkpointing: recompute every N-th layer of a part."}
    )
    model_max_length: int = field(
        default=512,
        metadata={"help": "Longest sample in tokens, visual ones included; the rest is cut."},
    )
    mm_projector_lr: float | None = field(
        default=None, metadata={"help": "Learning rate of the connectors. Default: --learning_rate."}
    )
    vision_tower_lr: float | None = field(
        default=None, metadata={"help": "Learning rate of the vision encoder. Default: --learning_rate."}
    )
    freeze_mm_mlp_adapter: bool = field(default=False, metadata={"help": "Freeze the connectors."})
    group_by_modality_length: bool = field(
        default=False,
        metadata={"help": "Group samples of one modality and similar lengths into batches, to save padding."},
    )
    lora_enable: bool = field(
        default=False,
        metadata={"help": "Train LoRA matrices beside frozen weights, by default those of the language model."},
    )
    lora_parts: list[str] = field(
        default_factory=lambda: [LORA_PARTS[0]],
        metadata={"help": f"Parts with LoRA matrices, among {', '.join(LORA_PARTS)}. Default: {LORA_PARTS[0]}."},
    )
    lora_r: int = field(default=64, metadata={"help": "Rank of the LoRA matrices."})
    lora_alpha: int = field(
        default=16,
        metadata={"help": "The product of the LoRA matrices is scaled by lora_alpha / lora_r."},
    )
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout on the input of the LoRA matrices."})
    lora_bias: Literal["none", "all", "lora_only"] = field(
        default="none", metadata={"help": "Which biases learn: none, all, or those of adapted layers."}
    )
    lora_target: str | None = field(
        default=None,
        metadata={"help": "Regular expression for whole names of adapted layers. Default: all linear layers."},
    )
    lora_rslora: bool = field(
        default=False,
        metadata={"help": "rsLoRA: scale by lora_alpha / sqrt(lora_r) instead, so that high ranks learn."},
    )
    lora_dora: bool = field(
        default=False, metadata={"help": "DoRA: learn the length of each row of an adapted weight separately."}
    )
    torch_compile: bool = field(
        default=False, metadata={"help": "Compile the decoder's layers, for sequences of any length."}
    )
    use_liger_kernel: bool = field(
        default=False,
        metadata={"help": "Use the norms, rotary positions and gated products of liger-kernel; needs a GPU."},
    )
    bits: Literal[4, 8, 16] = field(
        default=16,
        metadata={"help": "4 or 8: quantise the language model (bitsandbytes) under LoRA."},
    )
    double_quant: bool = field(
        default=True, metadata={"help": "With --bits 4: quantise the constants of the quantisation too."}
    )
    quant_type: Literal["nf4", "fp4"] = field(
        default="nf4", metadata={"help": "With --bits 4: format of the quantised numbers."}
    )
    report_to: list[str] | None = field(
        default=None,
        metadata={"help": "Where losses are logged: tensorboard (default if installed), wandb, ...; none; all."},
    )

    # These flags of transformers would not do here what they promise and are refused; see _REFUSED.
    fsdp: str | None = field(
        default=None, metadata={"nargs": "?", "const": "True", "help": "Refused: use --fully_shard True."}
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
    def adapted_parts(self) -> frozenset[str]:
        """The parts of the model that learn through LoRA matrices; none without ``--lora_enable``."""
        return frozenset(self.lora_parts if self.lora_enable else ())

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
            if str(self.deepspeed).endswith(".json"):
                _check_json(Path(str(self.deepspeed)))
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
        compiles = self.torch_compile or self.torch_compile_backend or self.torch_compile_mode
        if compiles and self.tf32 is None and not self.use_cpu:
            self.tf32 = False  # transformers would compute products of float32 with fewer bits, so losses would differ
        self._choose_reports()
        super().__post_init__()

    def _choose_reports(self) -> None:
        if self.report_to is None:
            found = ["tensorboard"] if is_tensorboard_available() else []
            self.report_to = found  # pyright: ignore[reportIncompatibleVariableOverride] - one name is a list too
        names = [self.report_to] if isinstance(self.report_to, str) else self.report_to
        for name in names:
            if name not in ("none", "all", *INTEGRATION_TO_CALLBACK):
                raise ConfigError(f"--report_to {name} is not one of none, all, {', '.join(INTEGRATION_TO_CALLBACK)}")
            if name in ("none", "all") and len(names) > 1:
                raise ConfigError(f"--report_to {' '.join(names)}: {name} cannot be combined with others")
            if name in ("tensorboard", "wandb"):
                _need_package(name, f"--report_to {name}")


def _check_json(path: Path) -> None:
    try:
        if not isinstance(json.loads(path.read_text(encoding="utf-8")), dict):
            raise ValueError("it is no object")
    except FileNotFoundError as error:
        raise ConfigError(f"--deepspeed {path}: there is no such file") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"--deepspeed {path}: cannot be read as JSON ({error})") from error


def _need_package(name: str, flag: str) -> None:
    if find_spec(name) is None:
        raise MissingDependencyError.of(f"{flag} needs the package {name}", name)
