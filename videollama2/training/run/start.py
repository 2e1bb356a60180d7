"""Decides where a run starts: at step 0, at a checkpoint, or not at all because its result is there.

The first process calls :func:`find_start` for all processes, so that no two of them see the folder in different states.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollama2.checkpoints.files import ADAPTER_CONFIG, FULL_WEIGHTS, PART_FILES
from videollama2.errors import CheckpointError, ConfigError
from videollama2.training.run.folder import read_record
from videollama2.training.run.identity import RunIdentity
from videollama2.training.run.whole_checkpoints import (
    check_optimizer,
    is_whole,
    problem_of,
    unreadable,
    whole_checkpoints,
)

_LENGTHS = ("max_steps", "num_train_epochs")


@dataclass(frozen=True)
class Start:
    """The start of a run: at step 0, at the step of ``checkpoint``, or not at all because it ``is_finished``."""

    checkpoint: str | None = None
    is_finished: bool = False


def find_start(
    identity: RunIdentity, folder: Path, asked: str | None, deepspeed: bool, resume_older: bool = False
) -> Start:
    """Find where the run ``identity`` starts in ``folder``.

    Args:
        identity: data, weights and flags of this run.
        folder: output folder.
        asked: value of ``--resume_from_checkpoint``.
        deepspeed: whether this run uses ``--deepspeed``.
        resume_older: skip the newest checkpoints if they cannot be read.

    Raises:
        ConfigError: the folder holds another run, or weights without a record of their run; or the checkpoint is not
            whole, or its optimizer state is of another kind.
        CheckpointError: the checkpoint or a record is damaged.
    """
    record = read_record(folder)
    finished = record and record.get("finished")
    # A result that was moved or removed since is to be made again.
    if finished and not all((folder / name).is_file() for name in finished["files"]):
        finished = None
    whole = whole_checkpoints(folder)
    # As long as nothing was learnt, another run may take the folder: a record alone does not reserve it.
    if record is not None and (finished or whole):
        identity.check(RunIdentity.from_json(record["identity"]), folder)
    if finished and asked in (None, finished["resumed"]):
        return Start(is_finished=True)
    if asked is not None:
        chosen = Path(asked)
        if not is_whole(chosen):
            raise ConfigError(f"--resume_from_checkpoint {asked} is not a whole checkpoint")
        _check_readable(chosen)
        check_optimizer(chosen, deepspeed)
        _check_asked(chosen, identity)
        return Start(asked)
    if whole:
        chosen = _readable(whole, resume_older)
        check_optimizer(chosen, deepspeed)
        _check_record(chosen, identity)
        return Start(str(chosen))
    _check_nothing_is_lost(folder, record)
    return Start()


def _readable(whole: list[Path], resume_older: bool) -> Path:
    """Return the newest checkpoint or, with ``resume_older``, the newest that can be read."""
    if not resume_older:
        _check_readable(whole[0])
        return whole[0]
    for path in whole:
        if problem_of(path, thoroughly=True) is None:
            return path
    raise CheckpointError(f"{whole[0].parent}: none of its {len(whole)} checkpoints can be read")


def _check_readable(checkpoint: Path) -> None:
    if problem := problem_of(checkpoint):
        raise CheckpointError(unreadable(checkpoint, problem))


def _check_record(checkpoint: Path, identity: RunIdentity) -> None:
    record = read_record(checkpoint)
    if record is None:
        raise ConfigError(
            f"{checkpoint} has no record of the run that wrote it: --resume_from_checkpoint {checkpoint} resumes from "
            "it anyway, --overwrite_output_dir True starts over"
        )
    identity.check(RunIdentity.from_json(record["identity"]), checkpoint)


def _check_asked(checkpoint: Path, identity: RunIdentity) -> None:
    """Raise ConfigError if the checkpoint that ``--resume_from_checkpoint`` names is of a run that differs.

    Learning rates, the order of data and more come from the checkpoint, so other flags would be given in vain. Only the
    length of the run may change.
    """
    record = read_record(checkpoint)
    former = None if record is None else RunIdentity.from_json(record["identity"])
    if former is not None and (different := identity.differences(former, free=_LENGTHS)):
        raise ConfigError(
            f"--resume_from_checkpoint {checkpoint}: its run has other flags or data: {'; '.join(different)}. Give the "
            "same flags and data, or begin a new run from the weights of its result (--model_path)"
        )


def _check_nothing_is_lost(folder: Path, record: dict[str, Any] | None) -> None:
    """Raise ConfigError rather than overwrite a model that another program has written to ``folder``."""
    names = (*FULL_WEIGHTS, ADAPTER_CONFIG, *PART_FILES)
    found = next((name for name in names if (folder / name).is_file()), None)
    if record is None and found is not None:
        raise ConfigError(
            f"--output_dir {folder} holds {found}, but no record of the run that wrote it: give another folder, or "
            "--overwrite_output_dir True to overwrite it"
        )
