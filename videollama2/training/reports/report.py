"""Writes ``report.md``: what a run was, how it went and on which machine."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from videollama2 import __version__
from videollama2.checkpoints.card import training_lines
from videollama2.data.record import Record
from videollama2.training.asking.sample_questions import read_answers

REPORT_FILE = "report.md"

_POINTS = 12
"""Largest number of lines of the log in the table."""
_MOST_COUNTED = 100_000
"""Number of records up to which each is looked at; of more, evenly spread ones are."""
_CURVES = {
    "loss": "loss",
    "eval_loss": "evaluation loss",
    "eval_answer_accuracy": "answers right",
    "reward": "reward",
    "reward_accuracy": "pairs right",
    "learning_rate": "learning rate",
    "grad_norm": "gradient",
}
_RATES = {
    "samples_per_second": "samples per second",
    "text_tokens_per_second": "text tokens per second",
    "visual_tokens_per_second": "visual tokens per second",
    "sound_tokens_per_second": "sound tokens per second",
    "data_wait_share": "share of time waiting for data",
    "encoder_share": "share of time in encoders and connectors",
    "decoder_share": "share of time in the decoder",
    "optimizer_share": "share of time in the optimizer",
    "generation_share": "share of time answering",
    "model_flops_utilisation": "utilisation",
    "peak_memory_gb": "peak memory, GB",
    "bad_samples": "records left out",
}
_PACKAGES = ("torch", "transformers", "accelerate", "peft", "deepspeed", "bitsandbytes", "flash-attn")


def write_run_report(folder: Path, sets: Sequence[Sequence[Record]], processes: int, device: torch.device) -> Path:
    """Write the report of a finished run into its folder, beside its log and its record; return the report's path.

    Args:
        folder: output folder of the run.
        sets: the records of each annotation file; none of a run that has streamed them.
        processes: number of the run's processes.
        device: device of this process.
    """
    log = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    lines = [f"# {folder.resolve().name}", *training_lines(folder, folder)]
    records = (
        _table(("file", "records", "media"), _records(sets))
        if sets
        else ["The records were read as a stream and were not counted."]
    )
    lines += ["", "## Records", "", *records]
    lines += ["", "## Curves", "", *_curves(log), "", "## Rates", "", *_table(("mean over the log", ""), _rates(log))]
    if answers := read_answers(folder):
        lines += ["", "## Examples", "", *_examples(answers)]
    lines += ["", "## Environment", "", *_table(("", ""), _environment(processes, device))]
    path = folder / REPORT_FILE
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def kinds_of(records: Sequence[Record]) -> dict[str, float]:
    """Return the share of each combination of media among records, as ``video`` or ``image, image``; or ``text``."""
    step = max(1, -(-len(records) // _MOST_COUNTED))
    found = Counter(", ".join(records[place].kinds) or "text" for place in range(0, len(records), step))
    return {kind: count / found.total() for kind, count in found.most_common()}


def _records(sets: Sequence[Sequence[Record]]) -> Iterator[tuple[Any, ...]]:
    for records in filter(len, sets):
        media = "; ".join(f"{kind} {share:.1%}" for kind, share in kinds_of(records).items())
        yield Path(records[0].source).name, f"{len(records):,}", media


def _curves(log: list[dict[str, Any]]) -> list[str]:
    columns = {**_CURVES, **_marks_of(log)}
    names = [name for name in columns if any(name in row for row in log)]
    rows = [row for row in log if any(name in row for name in names if name != "learning_rate")]
    step = max(1, -(-len(rows) // _POINTS))
    chosen = [
        row for place, row in enumerate(rows) if place % step == 0 or place == len(rows) - 1 or "eval_runtime" in row
    ]
    table = [(row["step"], *(f"{row[name]:.4g}" if name in row else "" for name in names)) for row in chosen]
    return _table(("step", *(columns[name] for name in names)), table)


def _marks_of(log: list[dict[str, Any]]) -> dict[str, str]:
    """Return the names of benchmarks' numbers in the log, and their titles."""
    plain = {"loss", "answer_accuracy", "answers", "runtime"}
    names = dict.fromkeys(name for row in log for name in row if name.startswith("eval_"))
    found = ((name, name.removeprefix("eval_")) for name in names)
    return {name: title.replace("_", " ") for name, title in found if title not in plain}


def _examples(answers: list[dict[str, Any]]) -> list[str]:
    """Return a table of the sample answers before and after training."""
    last = max(answer["step"] for answer in answers)
    first, end = ({a["name"]: a for a in answers if a["step"] == step} for step in (0, last))
    rows = [
        (_cell(one["question"]), _cell(one["wanted"]), _cell(one["answer"]), _cell(end[name]["answer"]))
        for name, one in first.items()
        if name in end
    ]
    return _table(("question", "right answer", "before", f"after {last} steps"), rows)


def _cell(text: str) -> str:
    """Return a text as one cell of a table: on one line, and without what Markdown or HTML would read."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _rates(log: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    for name, title in _RATES.items():
        if values := [row[name] for row in log if name in row]:
            # Peak memory and the number of records left out only grow.
            value = max(values) if name in ("peak_memory_gb", "bad_samples") else sum(values) / len(values)
            yield title, f"{value:.4g}"


def _environment(processes: int, device: torch.device) -> Iterator[tuple[str, Any]]:
    yield "videollama2", __version__
    yield "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for name in _PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    yield "processes", processes
    yield "device", torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _table(head: Sequence[str], rows: Any) -> list[str]:
    cells = [f"| {' | '.join(str(cell) for cell in row)} |" for row in (head, *rows)]
    return [cells[0], "|" + "---|" * len(head), *cells[1:]]
