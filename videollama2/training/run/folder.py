"""Manages a run's output folder: its lock, the record of the run, and the checkpoint from which it starts.

The first process calls :func:`find_start` for all processes, so that no two of them see the folder in different states.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from videollama2.checkpoints.files import ADAPTER_CONFIG, FULL_WEIGHTS, PART_FILES, RUN_FILE
from videollama2.errors import CheckpointError, ConfigError
from videollama2.training.run.identity import RunIdentity
from videollama2.training.run.resume import (
    check_optimizer,
    checkpoints_of,
    is_whole,
    problem_of,
    unreadable,
    whole_checkpoints,
)

LOCK_FILE = ".training.lock"

_RESULTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "loss.png", "trainer_state.json", RUN_FILE)
_LENGTHS = ("max_steps", "num_train_epochs")
_LEFT_OUT = "bad_samples-*.jsonl"
REFERENCE_FILE = "reference_log_probs.npy"
"""File of an output folder with what :mod:`videollama2.training.trainers.dpo` computed before the first step."""


@dataclass(frozen=True)
class Start:
    """The start of a run: at step 0, at the step of ``checkpoint``, or not at all because it ``is_finished``."""

    checkpoint: str | None = None
    is_finished: bool = False


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock ``folder`` against other training runs while the block runs.

    The lock is one of the operating system, and processes forked from this one do not hold it. It is therefore released
    when this process ends, in whichever way.

    Raises:
        ConfigError: another process trains into this folder.
        CheckpointError: the folder cannot be created.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _locked_file(folder / LOCK_FILE, fcntl)
    except OSError as error:
        raise CheckpointError(f"--output_dir {folder}: cannot be written to ({error.strerror})") from error
    with file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            (folder / LOCK_FILE).unlink(missing_ok=True)


def _locked_file(path: Path, fcntl: Any) -> TextIO:
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            # lockf, not flock: loader workers inherit the latter and may live longer than a killed trainer.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            with file:
                file.seek(0)
                owner = file.read().strip() or "another process"
            raise ConfigError(f"--output_dir {path.parent} is in use: {owner} is training into it") from error
        # The former owner may have removed the file after we opened it and before we locked it. Then our lock is on a
        # deleted file, which excludes no other process, so try again with the file that is there now.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return the record in an output folder or a checkpoint, or None if there is none.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / RUN_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        RunIdentity.from_json(record["identity"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: is not a record of a run ({type(error).__name__}: {error})") from error
    return record


def write_record(folder: Path, identity: RunIdentity, **more: Any) -> None:
    """Write the record of a run atomically; ``more`` are further fields."""
    path = folder / RUN_FILE
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps({"identity": identity.to_json(), **more}, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def mark_finished(folder: Path, identity: RunIdentity, steps: int, resumed: str | None) -> None:
    """Record that the result is complete, so that another call with the same flags has nothing to do."""
    files = sorted(path.name for pattern in _RESULTS for path in folder.glob(pattern) if path.name != RUN_FILE)
    write_record(folder, identity, finished={"steps": steps, "files": files, "resumed": resumed})


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


def clear(folder: Path) -> None:
    """Remove the files of an earlier run from ``folder``; other files there are kept."""
    for checkpoint in checkpoints_of(folder):
        shutil.rmtree(checkpoint, ignore_errors=True)
    for pattern in (*_RESULTS, _LEFT_OUT, REFERENCE_FILE):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
