"""Writes the numbers of a report where training runs are followed: TensorBoard, Weights & Biases."""

from __future__ import annotations

import re
from html import escape
from importlib.util import find_spec
from pathlib import Path

from videollama2.errors import ConfigError, DataError, MissingDependencyError, first_line
from videollama2.eval.report.document import Report
from videollama2.eval.report.tables import build_markdown

_STEP = re.compile(r"checkpoint-(\d+)$")


def training_step(model: str) -> int:
    """Return N for a model whose path ends with ``checkpoint-N``, and 0 for any other.

    The evaluations of all checkpoints of a training run then make one curve.
    """
    found = _STEP.search(model.rstrip("/"))
    return int(found.group(1)) if found else 0


def scalars(report: Report) -> dict[str, float]:
    """Return the means of all metrics and of their categories by name.

    The names are ``BENCHMARK/METRIC, PROTOCOL`` and, for categories, ``BENCHMARK, METRIC, PROTOCOL/CATEGORY``.
    """
    benchmark, found = report.header.benchmark, {}
    for metric in report.metrics:
        name = f"{metric.name}, {metric.protocol}"
        if metric.overall.value is not None:
            found[f"{benchmark}/{name}"] = metric.overall.value
        for category, cell in metric.categories.items() if len(metric.categories) > 1 else ():
            if cell.value is not None:
                found[f"{benchmark}, {name}/{category}"] = cell.value
    return found


def check_writers_installed(tensorboard: Path | None, wandb: str | None) -> None:
    """Check that the packages exist that these options need, before the first question is asked.

    Raises:
        MissingDependencyError: one does not.
    """
    for name, given in (("tensorboard", tensorboard), ("wandb", wandb)):
        if given is not None and find_spec(name) is None:
            raise MissingDependencyError.of(f"--{name} needs {name}", name)


def write_tensorboard(report: Report, folder: Path) -> None:
    """Add the :func:`scalars`, and the report as text, to a log folder of TensorBoard.

    Raises:
        DataError: the folder cannot be written.
    """
    from torch.utils.tensorboard import SummaryWriter

    step = training_step(report.header.model)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writer = SummaryWriter(str(folder))
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error})") from error
    with writer:
        for name, value in scalars(report).items():
            writer.add_scalar(name, value, step)
        writer.add_text(report.header.heading(), build_markdown(report), step)


def write_wandb(report: Report, project: str) -> None:
    """Log the :func:`scalars` over ``checkpoint``, the head of the report, and its text, to a project of W&B.

    The evaluation is a run of its own, in the group of the training run, unless ``WANDB_RUN_ID`` names a run to add to.
    ``WANDB_MODE``, ``WANDB_DIR``, ``WANDB_ENTITY`` and ``WANDB_API_KEY`` mean the same as for other programs.

    Raises:
        ConfigError: W&B refuses the key, the project or an option, or cannot be reached.
    """
    import wandb

    header, step = report.header, training_step(report.header.model)
    try:
        run = wandb.init(
            project=project,
            name=header.heading(),
            group=_STEP.sub("", header.model.rstrip("/")).rstrip("/"),
            job_type="evaluation",
            config=header.to_json(),
            resume="allow",
        )
        with run:
            run.define_metric("checkpoint", hidden=True)
            values = scalars(report)
            for name in values:
                run.define_metric(name, step_metric="checkpoint")
            text = wandb.Html(f"<pre>{escape(build_markdown(report))}</pre>")
            run.log({"checkpoint": step, **values, "report": text})
    except wandb.Error as error:
        raise ConfigError(f"--wandb {project}: {first_line(error)}") from error
