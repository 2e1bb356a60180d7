"""Finds what belongs to a process: its rank among several (torchrun's variables), its GPU and its processor cores."""

from __future__ import annotations

import os

from videollama2.errors import ConfigError


def rank_and_world() -> tuple[int, int]:
    """Return the rank of this process and the number of processes; (0, 1) without a launcher.

    Raises:
        ConfigError: the variables are not valid numbers.
    """
    try:
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError as error:
        raise ConfigError(f"RANK and WORLD_SIZE must be whole numbers ({error})") from error
    if not 0 <= rank < world:
        raise ConfigError(f"RANK {rank} must be below WORLD_SIZE {world}")
    return rank, world


def own_device() -> str | None:
    """Return this process's GPU if a launcher started several processes; None leaves the choice to the loader."""
    local = os.environ.get("LOCAL_RANK")
    if local is None:
        return None
    import torch

    return f"cuda:{local}" if torch.cuda.is_available() else None


def usable_cores() -> int:
    """Return the number of processor cores on which this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
