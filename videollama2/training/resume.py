"""Checkpoints of a run: which one is whole, which one to go on from, and what happens when one cannot be written."""

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
"""Written last of all, after every process has written its part."""
SIZES_FILE = "sizes.json"


def is_whole(checkpoint: Path) -> bool:
    """Whether the file that is written last is there and complete: a killed run may leave half a checkpoint."""
    try:
        return "global_step" in json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def checkpoints_of(folder: Path) -> list[Path]:
    """The run's own checkpoints, whole or not, the one of the most steps first."""
    # A copy that somebody put beside them (checkpoint-100.old) is none of the run's.
    named = ((path.name.removeprefix("checkpoint-"), path) for path in folder.glob("checkpoint-*"))
    numbered = {int(number): path for number, path in named if number.isascii() and number.isdigit()}
    return [path for _, path in sorted(numbered.items(), reverse=True)]


def whole_checkpoints(folder: Path) -> list[Path]:
    """Those of :func:`checkpoints_of` that were written to the end."""
    return [path for path in checkpoints_of(folder) if is_whole(path)]


def last_checkpoint(folder: Path) -> str | None:
    """The whole checkpoint of the most steps in ``folder``, if there is one."""
    return next(map(str, whole_checkpoints(folder)), None)


def write_sizes(checkpoint: Path) -> None:
    """Note how large each file is, so that one that was cut off later is noticed."""
    sizes = {str(path.relative_to(checkpoint)): path.stat().st_size for path in _files_of(checkpoint)}
    (checkpoint / SIZES_FILE).write_text(json.dumps(sizes, indent=1) + "\n", encoding="utf-8")


def problem_of(checkpoint: Path, thoroughly: bool = False) -> str | None:
    """Why a whole checkpoint cannot be read any more, None where it can.

    Sizes and the tables of contents of weight files are looked at, which takes no time.

    Args:
        thoroughly: read every byte of pickled files too and compare checksums.
    """
    try:
        sizes = json.loads((checkpoint / SIZES_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        sizes = {}  # written before sizes were noted
    except (OSError, ValueError) as error:
        return f"{SIZES_FILE}: {error}"
    try:
        for name, size in sizes.items():
            found = (checkpoint / name).stat().st_size
            if found != size:
                return f"{name} has {found:,} bytes instead of {size:,}"
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
    """Whether DeepSpeed has written it."""
    return any(checkpoint.glob("global_step*"))


def check_optimizer(checkpoint: Path, deepspeed: bool) -> None:
    """Raise ConfigError where this run cannot read the optimizer of ``checkpoint``: it would begin anew, in silence.

    Args:
        deepspeed: whether this run has ``--deepspeed``.
    """
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
def told_when_unreadable(checkpoint: str | None) -> Iterator[None]:
    """Damage that only shows while a checkpoint is read is one clear error, with the way to go on.

    Raises:
        CheckpointError: instead of whatever the readers raise.
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
    """What to say of a damaged checkpoint, and from which older one a run can go on."""
    whole = whole_checkpoints(checkpoint.parent)
    older = whole[whole.index(checkpoint) + 1 :] if checkpoint in whole else []
    good = next((path for path in older if problem_of(path) is None), None)
    way_out = f"--resume_older True goes on from {good}" if good else "there is no older whole one"
    return f"{checkpoint}: cannot be read ({problem}); {way_out}"


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
