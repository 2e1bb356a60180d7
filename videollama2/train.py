"""Train a video language model: parse the flags, build, fit, save.

    python -m videollama2.train --model_path LANGUAGE_MODEL --vision_tower ENCODER --data_path FILE.json \\
        --output_dir DIR

``--help`` lists all flags. A run that finds checkpoints in ``--output_dir`` goes on from the last whole one.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    # Run as a file, Python looks for modules beside it instead of in the folder that holds the package.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

# Loader workers are forked; tokenizers would warn about it on every run.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from transformers import set_seed

from videollama2.data.collator import TrainingCollator
from videollama2.data.dataset import VideoInstructionDataset
from videollama2.data.records import read_records
from videollama2.errors import ConfigError, VideoLlama2Error
from videollama2.training.arguments import DataArguments, ModelArguments, TrainingArguments, parse_arguments
from videollama2.training.build import build_model, describe_trainable
from videollama2.training.trainer import VideoLlama2Trainer


def train(model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments) -> None:
    """One whole run; the result lies in ``training_args.output_dir``.

    Raises:
        VideoLlama2Error: data, weights or flags that break a rule.
    """
    # Annotations first: a wrong one is found in seconds, before gigabytes of weights are read.
    files = {"train": data_args.data_path, "eval": data_args.eval_data_path or []}
    records = {name: read_records(paths, data_args.data_folder) for name, paths in files.items() if paths}
    set_seed(training_args.seed)
    model, processor = build_model(model_args, data_args, training_args)
    stage = "pretrain" if model_args.tune_mm_mlp_adapter else "finetune"
    datasets = {
        name: VideoInstructionDataset(rows, processor, training_args.model_max_length, stage)
        for name, rows in records.items()
    }
    trainer = VideoLlama2Trainer(
        model=model,
        args=training_args,
        train_dataset=datasets["train"],
        eval_dataset=datasets.get("eval"),
        data_collator=TrainingCollator(processor.pad_token_id),
        processing_class=processor,
        connector_base=model_args.model_path if model_args.tune_mm_mlp_adapter else None,
    )
    if training_args.should_log:
        print(describe_trainable(model), flush=True)
    trainer.train(resume_from_checkpoint=_checkpoint_to_resume(training_args))
    trainer.save_state()
    trainer.save_model(training_args.output_dir)


def _checkpoint_to_resume(training_args: TrainingArguments) -> str | None:
    """``--resume_from_checkpoint``, else the last whole checkpoint in the output folder."""
    asked = training_args.resume_from_checkpoint
    if asked is not None and not is_whole(Path(asked)):
        raise ConfigError(f"--resume_from_checkpoint {asked}: there is no whole checkpoint")
    found = asked or last_checkpoint(Path(training_args.output_dir))
    if found and training_args.should_log:
        print(f"going on from {found}", flush=True)
    return found


def last_checkpoint(folder: Path) -> str | None:
    """The whole checkpoint of the most steps in ``folder``, if there is one."""
    numbered = {int(path.name.rpartition("-")[2]): path for path in folder.glob("checkpoint-[0-9]*")}
    whole = (path for _, path in sorted(numbered.items(), reverse=True) if is_whole(path))
    return next(map(str, whole), None)


def is_whole(checkpoint: Path) -> bool:
    """Whether the file that is written last is there and complete: a killed run may leave half a checkpoint."""
    try:
        return "global_step" in json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, or 2 after one line that says what is wrong.

    A bare ``--debug`` shows the traceback instead (with a value it is transformers' flag of that name).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = _take_bare_debug(arguments)
    try:
        train(*parse_arguments(arguments))
    except VideoLlama2Error as error:
        if debug:
            raise
        print(f"error: {_message(error)}", file=sys.stderr)
        return 2
    return 0


def _take_bare_debug(arguments: list[str]) -> bool:
    for place, argument in enumerate(arguments):
        if argument == "--debug" and (place + 1 == len(arguments) or arguments[place + 1].startswith("--")):
            del arguments[place]
            return True
    return False


def _message(error: VideoLlama2Error) -> str:
    """The message alone; one that comes out of a loader worker carries that worker's whole traceback."""
    text = str(error)
    name = f"{type(error).__module__}.{type(error).__name__}: "
    return text.rpartition(name)[2].strip() if text.startswith("Caught ") else text


if __name__ == "__main__":
    sys.exit(main())
