"""Train a video language model: parse the flags, build, fit, save.

    python -m videollama2.train --model_path LANGUAGE_MODEL --vision_tower ENCODER --data_path FILE.json \\
        --output_dir DIR

``--help`` lists all flags. A run that finds checkpoints in ``--output_dir`` goes on from the last whole one.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    # Run as a file, Python looks for modules beside it instead of in the folder that holds the package.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

# Loader workers are forked; tokenizers would warn about it on every run.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from accelerate import Accelerator
from torch.utils.data import ConcatDataset
from transformers import set_seed

from videollama2.commands import run_command
from videollama2.data.collator import TrainingCollator
from videollama2.data.dataset import VideoInstructionDataset
from videollama2.data.records import PackedRecords, read_sets
from videollama2.errors import MissingDependencyError
from videollama2.training.arguments import DataArguments, ModelArguments, TrainingArguments, parse_arguments
from videollama2.training.build import base_name, build_model, describe_trainable
from videollama2.training.loss_plot import plot_losses
from videollama2.training.resume import checkpoint_to_resume, told_when_full
from videollama2.training.trainer import VideoLlama2Trainer


def train(model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments) -> None:
    """One whole run; the result lies in ``training_args.output_dir``.

    Raises:
        VideoLlama2Error: data, weights or flags that break a rule.
    """
    # Annotations first: a wrong one is found in seconds, before gigabytes of weights are read.
    skipped: list[str] | None = [] if data_args.on_bad_sample == "skip" else None
    first = training_args.local_process_index == 0
    sets = read_sets(data_args.data_path, data_args.data_folder, skipped, progress=first)
    eval_sets = read_sets(data_args.eval_data_path or [], data_args.data_folder, skipped, progress=first)
    resumed = checkpoint_to_resume(
        training_args.output_dir, training_args.resume_from_checkpoint, bool(training_args.deepspeed)
    )
    set_seed(training_args.seed)
    model, processor = build_model(model_args, data_args, training_args)
    stage = _stage(model_args)

    def dataset(sets: list[PackedRecords]) -> VideoInstructionDataset:
        return VideoInstructionDataset(
            ConcatDataset(sets), processor, training_args.model_max_length, stage, skip_bad=skipped is not None
        )

    trainer = VideoLlama2Trainer(
        model=model,
        args=training_args,
        train_dataset=dataset(sets),
        eval_dataset=dataset(eval_sets) if eval_sets else None,
        data_collator=TrainingCollator(processor.pad_token_id),
        processing_class=processor,
        base=base_name(model_args.model_path),
        connector_only=model_args.tune_mm_mlp_adapter,
        mixture=([len(records) for records in sets], data_args.data_weights),
    )
    if training_args.process_index == 0:
        for message in skipped or ():
            trainer.note_bad(message)
    if training_args.should_log:
        print(describe_trainable(model), flush=True)
        if resumed:
            print(f"going on from {resumed}", flush=True)
    out = Path(training_args.output_dir)
    # Not only weights are written: the log fills a disk too.
    with told_when_full(out):
        trainer.train(resume_from_checkpoint=resumed)
        trainer.save_model(training_args.output_dir)
        trainer.save_state()
        if training_args.should_save:
            _plot(out)
    end_together(trainer.accelerator)


def end_together(accelerator: Accelerator) -> None:
    """Every process stays until the first one has written, and leaves its group before Python ends.

    A launcher stops all processes when one ends badly, and one whose group's threads outlive Python may: the first
    would be stopped while it writes.
    """
    accelerator.wait_for_everyone()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _plot(out: Path) -> None:
    try:
        plot_losses(out)
    except MissingDependencyError as error:
        print(f"not drawn: {error}", file=sys.stderr)  # all that was trained has been written


def _stage(model_args: ModelArguments) -> str:
    """How records become labels, see :func:`videollama2.prompting.training_ids`."""
    if not model_args.tune_mm_mlp_adapter:
        return "finetune"
    return {"published": "pretrain", "answer": "pretrain_answer"}[model_args.pretrain_labels]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, or 2 after one line that says what is wrong.

    A bare ``--debug`` shows the traceback instead (with a value it is transformers' flag of that name).
    """
    # Neither is for the reader to act on: a flag under its published name, and 1 x 1 convolutions, whose gradients have
    # another order of axes but the same one in memory.
    warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing` is deprecated", FutureWarning)
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = _take_bare_debug(arguments)
    return run_command(lambda: train(*parse_arguments(arguments)), debug=debug, describe=_message)


def _take_bare_debug(arguments: list[str]) -> bool:
    for place, argument in enumerate(arguments):
        if argument == "--debug" and (place + 1 == len(arguments) or arguments[place + 1].startswith("--")):
            del arguments[place]
            return True
    return False


def _message(error: Exception) -> str:
    """The message alone; one that comes out of a loader worker carries that worker's whole traceback."""
    text = str(error)
    name = f"{type(error).__module__}.{type(error).__name__}: "
    message = text.rpartition(name)[2].strip() if text.startswith("Caught ") else text
    return "; ".join(message.splitlines())  # several records may be named, a line each


if __name__ == "__main__":
    sys.exit(main())
