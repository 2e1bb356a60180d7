"""DeepSpeed compiles parts of itself at its first start, one process at a time: what a killed run leaves of that."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil

STALE = 900.0
"""Seconds after which nobody can still be compiling, where the owner cannot be asked; it takes one or two minutes."""

_REMOTE = ("nfs", "lustre", "gpfs", "beegfs", "cifs", "smb", "fuse", "ceph", "9p", "afs")
"""File systems that other machines may write to."""


def clear_stale_locks(stale: float = STALE) -> list[Path]:
    """Remove torch's locks of compilations that were killed: every later run would wait for them for ever, silently.

    torch keeps the file open while it compiles, so on a disk of this machine its owner is the process that has it open,
    and a lock that no process has open is nobody's. On a file system of several machines age has to tell. A lock that
    has an owner, or may have one, stays and is told.

    Returns:
        the locks removed.
    """
    removed = []
    for lock in _locks():
        try:
            age, owner = time.time() - lock.stat().st_mtime, _owner(lock)
            if owner is None and (age > stale or not _is_remote(lock)):
                lock.unlink()
                removed.append(lock)
            else:
                who = f"process {owner} is compiling" if owner else "another machine may be compiling"
                print(f"{who}; waiting for {lock}", file=sys.stderr)
        except FileNotFoundError:
            continue  # another process was faster, or has just finished
    return removed


def _owner(lock: Path) -> int | None:
    """The process of this machine that has the file open; those of other users cannot be asked."""
    for process in psutil.process_iter():
        try:
            if any(os.path.samefile(file.path, lock) for file in process.open_files()):
                return process.pid
        except (psutil.Error, OSError):
            continue
    return None


def _is_remote(path: Path) -> bool:
    """Whether the file lies where other machines may have put it."""
    resolved = str(path.resolve())
    mounts = [part for part in psutil.disk_partitions(all=True) if _lies_in(resolved, part.mountpoint)]
    kind = max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else ""
    return kind.lower().startswith(_REMOTE)


def _lies_in(path: str, mount: str) -> bool:
    return os.path.commonpath([path, mount]) == mount


def _locks() -> list[Path]:
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    if given is None:
        from torch.utils.cpp_extension import get_default_build_root

        given = get_default_build_root()
    return [*Path(given).glob("deepspeed*/lock"), *Path(given).glob("*/deepspeed*/lock"), *_operations(Path(given))]


def _operations(root: Path) -> list[Path]:
    """DeepSpeed's optimizers are folders without its name."""
    return [lock for name in ("cpu_adam", "fused_adam", "utils") for lock in root.glob(f"**/{name}/lock")]
