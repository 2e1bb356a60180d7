"""Trains a video language model: parses the flags, builds, fits, saves.

    python -m videollama2.train --model_path LANGUAGE_MODEL --vision_tower ENCODER --data_path FILE.json \\
        --output_dir DIR

``--help`` lists the flags. Running the same command again continues from the last complete checkpoint in
``--output_dir``. A command that differs in anything relevant is refused (:mod:`videollama2.training.run.identity`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

if not __package__:
    # For a script, Python adds its own folder to the module path, and not the folder that holds the package.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

# Loader workers are forked, and tokenizers would warn about this in every run.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from accelerate import Accelerator, PartialState
from transformers import set_seed

from videollama2.checkpoints.card import Provenance, write_card
from videollama2.commands import USER_ERROR, run_command
from videollama2.data.collator import TrainingCollator
from videollama2.data.dataset import VideoInstructionDataset
from videollama2.data.pairs import PairCollator, PreferencePairs
from videollama2.errors import MissingDependencyError
from videollama2.eval.running.live_benchmark import LiveBenchmark
from videollama2.media.kinds import AUDIO, KINDS
from videollama2.processing import VideoLlama2Processor
from videollama2.training.arguments import DataArguments, ModelArguments, TrainingArguments, parse_arguments
from videollama2.training.asking.rollouts import PromptDataset
from videollama2.training.distributed.restarts import meet_apart_from_former_attempts
from videollama2.training.flags.recipe import save_recipe
from videollama2.training.model.build import base_name, build_model, describe_trainable
from videollama2.training.nodes import common_data, common_identity
from videollama2.training.reports.loss_plot import plot_losses
from videollama2.training.reports.meter import Collate
from videollama2.training.reports.outcome import closing_words
from videollama2.training.reports.report import write_run_report
from videollama2.training.rules.run import sample_answers
from videollama2.training.run.folder import clear, locked, mark_finished, read_record, write_record
from videollama2.training.run.identity import RunIdentity
from videollama2.training.run.start import Start, find_start
from videollama2.training.run.stopping import (
    StoppedBySignalError,
    StoppedElsewhereError,
    StopSignals,
    decide_together,
    message_of,
)
from videollama2.training.run.whole_checkpoints import explain_full_disk
from videollama2.training.trainers.dpo import DpoTrainer
from videollama2.training.trainers.grpo import GrpoTrainer
from videollama2.training.trainers.trainer import VideoLlama2Trainer


def train(model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments) -> None:
    """Run a training; the result is written to ``training_args.output_dir``. A finished run is left unchanged.

    Raises:
        VideoLlama2Error: data, weights or flags violate a rule, or the output folder holds another run.
        StoppedBySignalError: the run received a signal, and has written a checkpoint. StoppedElsewhereError: another
            process of the run has met an error.
    """
    out = training_args.output_folder
    with ExitStack() as stack:
        identity = common_identity(model_args, data_args, training_args)
        start = decide_together(lambda: _begin(identity, training_args, stack), training_args.process_index == 0)
        if start.is_finished:
            if training_args.process_index == 0:
                print(
                    "this run is finished already, so nothing was "
                    f"done\n{closing_words(out, base_name(model_args.model_path))}"
                )
        else:
            _run(model_args, data_args, training_args, identity, start)


def _begin(identity: RunIdentity, training_args: TrainingArguments, stack: ExitStack) -> Start:
    """Return the start of the run. Unless the run is finished, this process then owns the output folder."""
    out = training_args.output_folder

    def start() -> Start:
        if training_args.overwrite_output_dir:
            return Start()
        asked, deepspeed = training_args.resume_from_checkpoint, bool(training_args.deepspeed)
        return find_start(identity, out, asked, deepspeed, training_args.resume_older)

    if (found := start()).is_finished:
        return found
    stack.enter_context(locked(out))
    return start()  # looked up again: another run may have written before the lock


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
            print(f"continuing from {start.checkpoint}{_split_otherwise(identity, start.checkpoint)}", flush=True)
    out = training_args.output_folder
    # This covers more than the writing of weights, because the log can fill a disk too.
    with signals, explain_full_disk(out):
        trainer.train(resume_from_checkpoint=start.checkpoint)
        trainer.save_model(training_args.output_dir)
        trainer.save_state()
        if training_args.should_save:
            _plot(out)
            write_card(out, Provenance(trainer.base, out, "Trained by `python -m videollama2.train`."))
            write_run_report(out, trainer.sets, training_args.world_size, training_args.device)
            mark_finished(out, identity, trainer.state.global_step, training_args.resume_from_checkpoint)
            print(closing_words(out, trainer.base), flush=True)
    end_together(trainer.accelerator)


def _split_otherwise(identity: RunIdentity, checkpoint: str) -> str:
    """Return what to say if the checkpoint's run split its batches otherwise, with which random numbers change."""
    record = read_record(Path(checkpoint))
    changes = identity.split_changes(RunIdentity.from_json(record["identity"])) if record else []
    return f" with {', '.join(changes)}, so dropout draws other numbers than it would have" if changes else ""


def _build_trainer(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    identity: RunIdentity,
    signals: StopSignals,
) -> VideoLlama2Trainer:
    """Read the records, then build the model and the trainer; afterwards the output folder describes the run."""
    data = common_data(data_args, training_args)
    benchmarks = [
        LiveBenchmark.open(name, Path(training_args.eval_benchmarks_folder), training_args.eval_questions)
        for name in training_args.eval_benchmarks or ()
    ]
    set_seed(training_args.seed)
    model, processor = build_model(model_args, data_args, training_args)
    kind, samples, collator = _objective(training_args, processor)
    stage = _stage(model_args)
    trained, mixture = data.trained(processor, stage, samples)
    trainer = kind(
        model=model,
        args=training_args,
        train_dataset=trained,
        eval_dataset=data.evaluated(processor, stage),
        benchmarks=benchmarks,
        questions=data.questions(processor, stage, sample_answers(training_args)),
        data_collator=collator,
        processing_class=processor,
        base=base_name(model_args.model_path),
        parts_alone=model_args.parts_alone,
        mixture=mixture,
        joint=data.joint,
        identity=identity,
        signals=signals,
    )
    trainer.sets = data.sets
    if training_args.process_index == 0:
        out = training_args.output_folder
        if training_args.overwrite_output_dir:
            clear(out)
        write_record(out, identity)
        save_recipe(out, training_args)
        for message in data.skipped or ():
            trainer.note_bad(message)
    return trainer


def _objective(
    training_args: TrainingArguments, processor: VideoLlama2Processor
) -> tuple[type[VideoLlama2Trainer], type[VideoInstructionDataset], Collate]:
    """Return the trainer and the dataset of the run's objective, and the collator of its batches."""
    alone, shared = (TrainingCollator(processor.pad_token_id, kinds) for kinds in ((AUDIO,), tuple(KINDS)))
    if training_args.objective == "dpo":
        return DpoTrainer, PreferencePairs, PairCollator(shared)
    if training_args.objective == "grpo":
        return GrpoTrainer, PromptDataset, shared
    return VideoLlama2Trainer, VideoInstructionDataset, alone


def end_together(accelerator: Accelerator) -> None:
    """Make every process wait until the first one has written, and leave the process group before Python exits.

    A launcher stops all processes if one exits with an error, which may happen to a process whose group's threads
    outlive Python. The first process would then be stopped while it writes.
    """
    accelerator.wait_for_everyone()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _plot(out: Path) -> None:
    try:
        plot_losses(out)
    except MissingDependencyError as error:
        print(
            f"warning: the losses are not plotted: {error}", file=sys.stderr
        )  # the trained weights have already been written


def _stage(model_args: ModelArguments) -> str:
    """Return the rule by which records become labels, see :func:`videollama2.prompting.training_ids`."""
    alone = model_args.parts_alone
    if "mm_projector_a" in alone:
        return "finetune" if "audio_tower" in alone else "pretrain_chat"
    if not model_args.tune_mm_mlp_adapter:
        return "finetune"
    return {"published": "pretrain", "answer": "pretrain_answer"}[model_args.pretrain_labels]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code: 0, or 2 after a one-line error.

    A bare ``--debug`` shows the traceback instead. With a value, ``--debug`` is transformers' flag of that name.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = _take_bare_debug(arguments)
    return run_command(lambda: _train_and_tell(arguments), debug=debug, describe=message_of)


def _train_and_tell(arguments: Sequence[str]) -> int:
    meet_apart_from_former_attempts()
    try:
        train(*parse_arguments(arguments))
    except StoppedBySignalError as stop:
        if PartialState().is_main_process:
            print(stop, file=sys.stderr)
        return stop.exit_code
    except StoppedElsewhereError:
        return USER_ERROR  # the process that met the error reports it
    return 0


def _take_bare_debug(arguments: list[str]) -> bool:
    for place, argument in enumerate(arguments):
        if argument == "--debug" and (place + 1 == len(arguments) or arguments[place + 1].startswith("--")):
            del arguments[place]
            return True
    return False


if __name__ == "__main__":
    sys.exit(main())
