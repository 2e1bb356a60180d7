"""DeepSpeed compiles parts of itself at its first start, one process at a time: what a killed run leaves of that."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

STALE = 900.0
"""Seconds after which nobody can still be compiling; it takes one or two minutes."""


def clear_stale_locks(stale: float = STALE) -> list[Path]:
    """Remove torch's locks of compilations that were killed: every later run would wait for them for ever, silently.

    A younger lock may belong to a run that is compiling now: it is only told.

    Returns:
        the locks removed.
    """
    removed = []
    for lock in _locks():
        try:
            age = time.time() - lock.stat().st_mtime
            if age > stale:
                lock.unlink()
                removed.append(lock)
            else:
                print(f"waiting for another process to compile; if there is none, remove {lock}", file=sys.stderr)
        except FileNotFoundError:
            continue  # another process was faster, or has just finished
    return removed


def _locks() -> list[Path]:
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    if given is None:
        from torch.utils.cpp_extension import get_default_build_root

        given = get_default_build_root()
    return [*Path(given).glob("deepspeed*/lock"), *Path(given).glob("*/deepspeed*/lock"), *_operations(Path(given))]


def _operations(root: Path) -> list[Path]:
    """DeepSpeed's optimizers are folders without its name."""
    return [lock for name in ("cpu_adam", "fused_adam", "utils") for lock in root.glob(f"**/{name}/lock")]
