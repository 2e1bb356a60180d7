"""Finds the checkpoints of a run that are complete and readable, with clear errors for those that are not.

A checkpoint is *whole* if it was written to its end, and *damaged* if it was whole once but cannot be read any more.
The checkpoint from which a run starts is chosen in :mod:`videollama2.training.run.start`; the trainer reads and writes
checkpoints in :mod:`videollama2.training.run.saving`.
"""

from __future__ import annotations

import errno
import json
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

from videollama2.checkpoints.files import UNREADABLE
from videollama2.errors import CheckpointError, ConfigError, VideoLlama2Error, first_line

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
STATE_FILE = "trainer_state.json"
"""The file of a checkpoint that is written last, after every process has written its part."""
SIZES_FILE = "sizes.json"


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end (a killed run may leave half of one): its last file is complete."""
    try:
        return "global_step" in json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def checkpoints_of(folder: Path) -> list[Path]:
    """Return the run's own checkpoints, whole or not, with the latest step first."""
    # A copy that a user has made beside them (checkpoint-100.old) does not belong to the run.
    named = ((path.name.removeprefix("checkpoint-"), path) for path in folder.glob("checkpoint-*"))
    numbered = {int(number): path for number, path in named if number.isascii() and number.isdigit()}
    return [path for _, path in sorted(numbered.items(), reverse=True)]


def whole_checkpoints(folder: Path) -> list[Path]:
    """Return the whole checkpoints of a run, with the latest step first."""
    return [path for path in checkpoints_of(folder) if is_whole(path)]


def last_checkpoint(folder: Path) -> str | None:
    """Return the whole checkpoint with the latest step in ``folder``, if there is one."""
    return next(map(str, whole_checkpoints(folder)), None)


def write_sizes(checkpoint: Path) -> None:
    """Write down the size of each file of a checkpoint, so that a file that is truncated later is noticed."""
    sizes = {str(path.relative_to(checkpoint)): path.stat().st_size for path in _files_of(checkpoint)}
    (checkpoint / SIZES_FILE).write_text(json.dumps(sizes, indent=1) + "\n", encoding="utf-8")


def problem_of(checkpoint: Path, thoroughly: bool = False) -> str | None:
    """Return why a whole checkpoint cannot be read any more, or None if it can.

    The check compares file sizes and reads the headers of weight files, which is fast.

    Args:
        checkpoint: folder of the checkpoint.
        thoroughly: also read every byte of pickled files and compare checksums.
    """
    try:
        sizes = json.loads((checkpoint / SIZES_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        sizes = {}  # the checkpoint is from a version that did not write sizes
    except (OSError, ValueError) as error:
        return f"{SIZES_FILE}: {error}"
    try:
        for name, size in sizes.items():
            found = (checkpoint / name).stat().st_size
            if found != size:
                return f"{name} has {found:,} bytes instead of {size:,}"
        # Sizes find what was cut off. Headers find what has the right size and the wrong content: tensors of
        # safetensors and the members of a zip archive are listed there, and a list that ends early cannot be read.
        for path in _files_of(checkpoint):
            if reason := _damage(path, thoroughly):
                return f"{path.relative_to(checkpoint)}: {reason}"
    except OSError as error:
        return f"{Path(error.filename or checkpoint).name}: {error.strerror}"
    return None


def _files_of(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != SIZES_FILE)


def _damage(path: Path, thoroughly: bool) -> str | None:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):
                return None
        if path.suffix in (".pt", ".pth", ".bin"):
            with zipfile.ZipFile(path) as archive:
                bad = archive.testzip() if thoroughly else None
            return f"the checksum of {bad} is wrong" if bad else None
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
    except (SafetensorError, zipfile.BadZipFile, ValueError) as error:
        return first_line(error)
    return None


def has_engine(checkpoint: Path) -> bool:
    """Whether DeepSpeed has written the checkpoint."""
    return any(checkpoint.glob("global_step*"))


def check_optimizer(checkpoint: Path, deepspeed: bool) -> None:
    """Raise ConfigError if this run cannot read the optimizer state of ``checkpoint``.

    Without the check, the optimizer would silently start from its initial state.

    Args:
        checkpoint: folder of the checkpoint.
        deepspeed: whether this run uses ``--deepspeed``.
    """
    if deepspeed and has_engine(checkpoint) or not deepspeed and (checkpoint / "optimizer.pt").is_file():
        return
    if has_engine(checkpoint):
        reason = "was written with --deepspeed, but this run is without it"
    elif (checkpoint / "optimizer.pt").is_file():
        reason = "was written without --deepspeed, but this run is with it"
    else:
        reason = "holds no state of the optimizer (--save_only_model)"
    raise ConfigError(
        f"{checkpoint} {reason}, so it cannot be resumed from; use the same flags or another --output_dir"
    )


@contextmanager
def explain_failed_save(folder: Path, remove: bool) -> Iterator[None]:
    """Turn a failure to write ``folder``, such as a full disk, into one clear error.

    Args:
        folder: checkpoint or result that is written inside the block.
        remove: whether to remove a half-written ``folder``: true for a checkpoint, on one of the processes.

    Raises:
        CheckpointError: in place of the exceptions that the writers raise.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = _reason(error)
        space = _free(folder.parent)
        good = last_checkpoint(folder.parent)
        if remove:
            shutil.rmtree(folder, ignore_errors=True)
        kept = (
            f"the last whole checkpoint is {good}" if good and Path(good) != folder else "there is no other checkpoint"
        )
        raise CheckpointError(f"{folder}: cannot be written ({reason}; {space}); {kept}") from error


@contextmanager
def explain_unreadable(checkpoint: str | None) -> Iterator[None]:
    """Turn damage that only shows while a checkpoint is read into one clear error, which says how to continue.

    Raises:
        CheckpointError: in place of the exceptions that the readers raise.
    """
    try:
        yield
    except VideoLlama2Error:
        raise
    except UNREADABLE as error:
        if checkpoint is None:
            raise
        raise CheckpointError(unreadable(Path(checkpoint), first_line(error))) from error


def unreadable(checkpoint: Path, problem: str) -> str:
    """Return the error message for a damaged checkpoint; it names the older one from which a run can continue."""
    whole = whole_checkpoints(checkpoint.parent)
    # Newest first, so those behind it are older.
    older = whole[whole.index(checkpoint) + 1 :] if checkpoint in whole else []
    good = next((path for path in older if problem_of(path) is None), None)
    way_out = f"--resume_older True resumes from {good}" if good else "there is no older checkpoint that is whole"
    return f"{checkpoint}: cannot be read ({problem}); {way_out}"


@contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Turn a full disk into one clear error while files other than checkpoints are written to ``folder``.

    Raises:
        CheckpointError: in place of the OSError of a full disk, an exceeded quota or a file-size limit. Any other
            OSError is raised unchanged.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        good = last_checkpoint(folder)
        kept = f"the last whole checkpoint is {good}" if good else "there is no checkpoint"
        raise CheckpointError(f"{folder}: cannot be written to ({error.strerror}; {_free(folder)}); {kept}") from error


def _reason(error: BaseException) -> str:
    """Return the operating system's message if one caused the error, else the first line of the error's own message."""
    # Writers wrap what the operating system said (torch: "PytorchStreamWriter failed"), and the cause is what a user
    # can act on.
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        inner = inner.__cause__ or inner.__context__
    return first_line(error)


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e9:.1f} GB free on the disk"
    except OSError:
        return "the free space is not known"
