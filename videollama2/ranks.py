"""Finds what belongs to a process: its rank among several, its GPU and its processor cores.

Ranks are told by the variables of torchrun, by those of MPI, or by those of a Slurm step (``srun``).
"""

from __future__ import annotations

import os

from videollama2.errors import ConfigError

_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)
"""Variables of rank, number of processes, and rank on the machine. The first launcher that sets the first two counts.

``SLURM_NTASKS`` is not among them: a batch script has it too, where one process runs and not one of several.
"""


def rank_and_world() -> tuple[int, int]:
    """Return the rank of this process and the number of processes; (0, 1) without a launcher.

    Raises:
        ConfigError: the variables are not valid numbers.
    """
    rank_name, world_name, _ = _launcher()
    try:
        rank, world = int(os.environ.get(rank_name, "0")), int(os.environ.get(world_name, "1"))
    except ValueError as error:
        raise ConfigError(f"{rank_name} and {world_name} must be whole numbers ({error})") from error
    if not 0 <= rank < world:
        raise ConfigError(f"{rank_name} {rank} must be below {world_name} {world}")
    return rank, world


def _launcher() -> tuple[str, str, str]:
    # One of torchrun's variables alone is still taken for it, so that its rank is not ignored.
    if "RANK" in os.environ or "WORLD_SIZE" in os.environ:
        return _LAUNCHERS[0]
    return next((names for names in _LAUNCHERS if all(name in os.environ for name in names[:2])), _LAUNCHERS[0])


def own_device() -> str | None:
    """Return this process's GPU if a launcher started several processes; None leaves the choice to the loader."""
    local = os.environ.get(_launcher()[2])
    if local is None:
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    # Slurm may show each process its own GPUs alone.
    return f"cuda:{int(local) % torch.cuda.device_count()}"


def usable_cores() -> int:
    """Return the number of processor cores on which this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
