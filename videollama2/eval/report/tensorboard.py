"""Write the numbers of a report where TensorBoard shows them, for instance beside the losses of a training run."""

from __future__ import annotations

import re
from pathlib import Path

from videollama2.errors import DataError, MissingDependencyError
from videollama2.eval.report.document import Report
from videollama2.eval.report.tables import build_markdown

_STEP = re.compile(r"checkpoint-(\d+)$")


def training_step(model: str) -> int:
    """Return N for a model whose path ends with ``checkpoint-N``, and 0 for any other.

    The evaluations of all checkpoints of a training run then make one curve.
    """
    found = _STEP.search(model.rstrip("/"))
    return int(found.group(1)) if found else 0


def write_tensorboard(report: Report, folder: Path) -> None:
    """Add the means of all metrics and of their categories, and the report as text, to a log folder.

    The names are ``BENCHMARK/METRIC, PROTOCOL`` and, for categories, ``BENCHMARK, METRIC, PROTOCOL/CATEGORY``.

    Raises:
        MissingDependencyError: tensorboard is not installed.
        DataError: the folder cannot be written.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError("--tensorboard needs tensorboard: pip install tensorboard") from error
    header, step = report.header, training_step(report.header.model)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writer = SummaryWriter(str(folder))
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error})") from error
    with writer:
        for metric in report.metrics:
            name = f"{metric.name}, {metric.protocol}"
            if metric.overall.value is not None:
                writer.add_scalar(f"{header.benchmark}/{name}", metric.overall.value, step)
            for category, cell in metric.categories.items() if len(metric.categories) > 1 else ():
                if cell.value is not None:
                    writer.add_scalar(f"{header.benchmark}, {name}/{category}", cell.value, step)
        writer.add_text(header.heading(), build_markdown(report), step)
