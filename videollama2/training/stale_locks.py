"""Skips an operation that DeepSpeed compiles needlessly when a run begins, and removes the locks of killed runs."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil

STALE = 900.0
"""Age in seconds from which a lock on a shared file system counts as stale; compiling takes one or two minutes."""

_REMOTE = ("nfs", "lustre", "gpfs", "beegfs", "cifs", "smb", "fuse", "ceph", "9p", "afs")
"""Types of file systems to which other machines may write."""


def skip_shared_memory_reduction() -> None:
    """Keep DeepSpeed from compiling its all-reduce through shared memory, which it does when processes meet on CPUs.

    Only tensor-parallel inference calls that operation. Compiling takes one or two minutes and a C++ compiler.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def clear_stale_locks(stale: float = STALE) -> list[Path]:
    """Remove locks that killed compilations have left, because every later run would silently wait for them for ever.

    torch keeps the lock file open while it compiles. On a local disk, a lock is therefore stale if no process has it
    open. On a file system that machines share, it is stale if no process of this machine has it open and it is older
    than ``stale`` seconds. Any other lock is kept and reported on stderr.

    Returns:
        The locks that were removed.
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
            continue  # another process has removed the lock, or has just finished compiling
    return removed


def _owner(lock: Path) -> int | None:
    """Return the id of the process of this machine that has the file open; other users' processes are not visible."""
    for process in psutil.process_iter():
        try:
            if any(os.path.samefile(file.path, lock) for file in process.open_files()):
                return process.pid
        except (psutil.Error, OSError):
            continue
    return None


def _is_remote(path: Path) -> bool:
    """Whether the file is on a file system to which other machines may write."""
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
    """Return the locks of DeepSpeed's operations whose folders do not have ``deepspeed`` in their names."""
    return [lock for name in ("cpu_adam", "fused_adam", "utils") for lock in root.glob(f"**/{name}/lock")]
