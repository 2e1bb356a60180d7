"""Defines the flags of ``train.py`` that choose what is asked during a run, beside the loss on ``--eval_data_path``."""

from dataclasses import dataclass, field


@dataclass
class EvaluationFlags:
    """Benchmarks and sample answers; see :mod:`videollama2.training.asking.trainer`."""

    eval_benchmarks: list[str] | None = field(
        default=None,
        metadata={"help": "Benchmarks of `videollama2 eval list`, or files of questions, asked in every evaluation."},
    )
    eval_benchmarks_folder: str = field(
        default="eval", metadata={"help": "Folder that holds the data folders of these benchmarks."}
    )
    eval_questions: int | None = field(
        default=None,
        metadata={"help": "Ask so many questions of each benchmark, evenly spread. Default: all."},
    )
    sample_answers: int = field(
        default=4,
        metadata={
            "help": "Records (of --eval_data_path, else of the training data) whose answers report.md shows before and "
            "after training, and TensorBoard with their frames; as many of each benchmark. 0: none."
        },
    )
