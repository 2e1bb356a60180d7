"""Manages a run's output folder: its lock, the record of the run, and the files of an earlier one."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from videollama2.checkpoints.files import RUN_FILE
from videollama2.errors import CheckpointError, ConfigError
from videollama2.training.run.identity import RunIdentity
from videollama2.training.run.whole_checkpoints import checkpoints_of

LOCK_FILE = ".training.lock"

_RESULTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "loss.png", "trainer_state.json", RUN_FILE)
_LEFT_OUT = "bad_samples-*.jsonl"
REFERENCE_FILE = "reference_log_probs.npy"
"""File of an output folder with what :mod:`videollama2.training.trainers.dpo` computed before the first step."""


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


def clear(folder: Path) -> None:
    """Remove the files of an earlier run from ``folder``; other files there are kept."""
    for checkpoint in checkpoints_of(folder):
        shutil.rmtree(checkpoint, ignore_errors=True)
    for pattern in (*_RESULTS, _LEFT_OUT, REFERENCE_FILE):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
