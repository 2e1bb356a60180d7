"""Checkpoints of a run: which one is whole, which one to go on from, and what happens when one cannot be written."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from videollama2.errors import CheckpointError, ConfigError, first_line

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
STATE_FILE = "trainer_state.json"
"""Written last of all, after every process has written its part."""


def is_whole(checkpoint: Path) -> bool:
    """Whether the file that is written last is there and complete: a killed run may leave half a checkpoint."""
    try:
        return "global_step" in json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def last_checkpoint(folder: Path) -> str | None:
    """The whole checkpoint of the most steps in ``folder``, if there is one."""
    # A copy that somebody put beside them (checkpoint-100.old) is none of the run's.
    named = ((path.name.removeprefix("checkpoint-"), path) for path in folder.glob("checkpoint-*"))
    numbered = {int(number): path for number, path in named if number.isascii() and number.isdigit()}
    whole = (path for _, path in sorted(numbered.items(), reverse=True) if is_whole(path))
    return next(map(str, whole), None)


def checkpoint_to_resume(output_dir: str, asked: str | None, deepspeed: bool = False) -> str | None:
    """``--resume_from_checkpoint``, else the last whole checkpoint in the output folder.

    Args:
        deepspeed: whether this run has ``--deepspeed``.

    Raises:
        ConfigError: the one that was asked for is not whole, or this run cannot read its optimizer: that would begin
            anew, in silence.
    """
    if asked is not None and not is_whole(Path(asked)):
        raise ConfigError(f"--resume_from_checkpoint {asked}: there is no whole checkpoint")
    found = asked or last_checkpoint(Path(output_dir))
    if found is not None:
        _check_optimizer(Path(found), deepspeed)
    return found


def has_engine(checkpoint: Path) -> bool:
    """Whether DeepSpeed has written it."""
    return any(checkpoint.glob("global_step*"))


def _check_optimizer(checkpoint: Path, deepspeed: bool) -> None:
    if deepspeed and has_engine(checkpoint) or not deepspeed and (checkpoint / "optimizer.pt").is_file():
        return
    if has_engine(checkpoint):
        reason = "was written with --deepspeed, this run is without it"
    elif (checkpoint / "optimizer.pt").is_file():
        reason = "was written without --deepspeed, this run is with it"
    else:
        reason = "holds no state of the optimizer (--save_only_model)"
    raise ConfigError(f"{checkpoint} {reason}: cannot go on from there; give the same flags or another --output_dir")


@contextmanager
def told_when_it_fails(folder: Path, remove: bool) -> Iterator[None]:
    """A disk that is full is one clear error; what was half written does not stay in the way.

    Args:
        folder: what is being written.
        remove: whether to remove it when that fails: a checkpoint, on one process.

    Raises:
        CheckpointError: instead of whatever the writers raise.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = _reason(error)
        space = _free(folder.parent)
        good = last_checkpoint(folder.parent)
        if remove:
            shutil.rmtree(folder, ignore_errors=True)
        kept = f"the last whole checkpoint is {good}" if good and Path(good) != folder else "there is no other one"
        raise CheckpointError(f"{folder}: cannot be written ({reason}; {space}); {kept}") from error


@contextmanager
def told_when_full(folder: Path) -> Iterator[None]:
    """A disk that fills up while something else than a checkpoint is written to ``folder`` is one clear error too.

    Raises:
        CheckpointError: instead of the OSError of a full disk, of a quota or of a file that may not grow; other errors
            pass.
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
    """What the system said, where a writer has wrapped that into words of its own; else the first line of these."""
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
        return "the disk cannot be asked"
