"""Defines the flags of ``train.py`` that choose what is asked during a run, beside the loss on ``--eval_data_path``."""

from dataclasses import dataclass, field


@dataclass
class EvaluationFlags:
    """Benchmarks and sample answers; see :mod:`videollama2.training.asking.trainer`."""

    eval_benchmarks: list[str] | None = field(
        default=None,
        metadata={"help": "Benchmarks of `videollama2 eval list`, or files of questions, for every evaluation."},
    )
    eval_benchmarks_folder: str = field(
        default="eval", metadata={"help": "Folder that holds the data folders of these benchmarks."}
    )
    eval_questions: int | None = field(
        default=None,
        metadata={"help": "Number of questions of each benchmark, spread evenly over it. Default: all."},
    )
    sample_answers: int = field(
        default=4,
        metadata={
            "help": "Number of records whose answers are shown before and after training, in report.md and, with their "
            "frames, in TensorBoard. They are taken from --eval_data_path or else from the training data, and "
            "as many from each benchmark. 0: none."
        },
    )
