"""Train a video language model: parse the flags, build, fit, save.

    python -m videollama2.train --model_path LANGUAGE_MODEL --vision_tower ENCODER --data_path FILE.json \\
        --output_dir DIR

``--help`` lists the flags. The same command again goes on from the last whole checkpoint in ``--output_dir``; a command
that differs in anything that matters is refused there (:mod:`videollama2.training.identity`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

if not __package__:
    # Run as a file, Python looks for modules beside it instead of in the folder that holds the package.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

# Loader workers are forked; tokenizers would warn about it on every run.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from accelerate import Accelerator, PartialState
from torch.utils.data import ConcatDataset
from transformers import set_seed

from videollama2.commands import USER_ERROR, run_command
from videollama2.data.collator import TrainingCollator
from videollama2.data.dataset import VideoInstructionDataset
from videollama2.data.records import PackedRecords, read_sets
from videollama2.errors import MissingDependencyError
from videollama2.training.arguments import DataArguments, ModelArguments, TrainingArguments, parse_arguments
from videollama2.training.build import base_name, build_model, describe_trainable
from videollama2.training.identity import RunIdentity
from videollama2.training.loss_plot import plot_losses
from videollama2.training.outcome import closing_words
from videollama2.training.resume import told_when_full
from videollama2.training.run_folder import Start, clear, find_start, locked, mark_finished, write_record
from videollama2.training.stopping import (
    StoppedBySignalError,
    StoppedElsewhereError,
    StopSignals,
    decide_together,
    message_of,
)
from videollama2.training.trainer import VideoLlama2Trainer


def train(model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments) -> None:
    """One whole run; the result lies in ``training_args.output_dir``. Of a run that is finished, nothing is changed.

    Raises:
        VideoLlama2Error: data, weights or flags that break a rule, or an output folder that holds another run.
        StoppedBySignalError: the run was told to stop, and has written a checkpoint. StoppedElsewhereError: another
            process of it has met an error.
    """
    out = Path(training_args.output_dir)
    with ExitStack() as stack:
        identity, start = decide_together(
            lambda: _begin(model_args, data_args, training_args, stack), training_args.process_index == 0
        )
        if start.is_finished:
            if training_args.process_index == 0:
                print(f"this run is finished, nothing was done\n{closing_words(out, base_name(model_args.model_path))}")
        else:
            _run(model_args, data_args, training_args, identity, start)


def _begin(
    model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments, stack: ExitStack
) -> tuple[RunIdentity, Start]:
    """What the run is and where it begins; unless it is finished, the output folder is this process's afterwards."""
    identity = RunIdentity.of(model_args, data_args, training_args)
    out = Path(training_args.output_dir)

    def start() -> Start:
        if training_args.overwrite_output_dir:
            return Start()
        asked, deepspeed = training_args.resume_from_checkpoint, bool(training_args.deepspeed)
        return find_start(identity, out, asked, deepspeed, training_args.resume_older)

    if (found := start()).is_finished:
        return identity, found
    stack.enter_context(locked(out))
    return identity, start()  # what another run has done to the folder until it was locked counts


def _run(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    identity: RunIdentity,
    start: Start,
) -> None:
    signals = StopSignals()
    trainer = _build_trainer(model_args, data_args, training_args, identity=identity, signals=signals)
    if training_args.should_log:
        print(describe_trainable(trainer.model), flush=True)
        if start.checkpoint:
            print(f"going on from {start.checkpoint}", flush=True)
    out = Path(training_args.output_dir)
    # Not only weights are written: the log fills a disk too.
    with signals, told_when_full(out):
        trainer.train(resume_from_checkpoint=start.checkpoint)
        trainer.save_model(training_args.output_dir)
        trainer.save_state()
        if training_args.should_save:
            _plot(out)
            mark_finished(out, identity, trainer.state.global_step, training_args.resume_from_checkpoint)
            print(closing_words(out, trainer.base), flush=True)
    end_together(trainer.accelerator)


def _build_trainer(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    identity: RunIdentity,
    signals: StopSignals,
) -> VideoLlama2Trainer:
    """Read the records, then the model; the output folder holds the record of the run afterwards."""
    # Annotations first: a wrong one is found in seconds, before gigabytes of weights are read.
    skipped: list[str] | None = [] if data_args.on_bad_sample == "skip" else None
    first = training_args.local_process_index == 0
    read = partial(read_sets, data_folder=data_args.data_folder, skipped=skipped, progress=first)
    sets, eval_sets = read(data_args.data_path), read(data_args.eval_data_path or [])
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
        identity=identity,
        signals=signals,
    )
    if training_args.process_index == 0:
        out = Path(training_args.output_dir)
        if training_args.overwrite_output_dir:
            clear(out)
        write_record(out, identity)
        for message in skipped or ():
            trainer.note_bad(message)
    return trainer


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
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = _take_bare_debug(arguments)
    return run_command(lambda: _train_and_tell(arguments), debug=debug, describe=message_of)


def _train_and_tell(arguments: Sequence[str]) -> int:
    try:
        train(*parse_arguments(arguments))
    except StoppedBySignalError as stop:
        if PartialState().is_main_process:
            print(stop, file=sys.stderr)
        return stop.exit_code
    except StoppedElsewhereError:
        return USER_ERROR  # the process that met the error tells it
    return 0


def _take_bare_debug(arguments: list[str]) -> bool:
    for place, argument in enumerate(arguments):
        if argument == "--debug" and (place + 1 == len(arguments) or arguments[place + 1].startswith("--")):
            del arguments[place]
            return True
    return False


if __name__ == "__main__":
    sys.exit(main())
