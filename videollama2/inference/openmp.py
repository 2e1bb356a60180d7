"""Keeps the threads of OpenMP, on which torch computes on a CPU, to one pool.

Every thread that computes gets a pool of its own, and the pool stays when the computation ends. As soon as there are
more threads in pools than cores, libgomp lets threads sleep between two operations instead of waiting for the next one
in a loop. Waking them takes longer than many operations of a decode step: with the pool in which a model was loaded
beside that of the engine's thread, steps of a 0.5B model took 1.2 to 1.3 times as long on two cores.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch

_SOFT_PAUSE = 1
"""``omp_pause_soft`` of OpenMP 5.0: what threads hold may be given back, but settings stay."""


def release_pool() -> None:
    """End the pool of the calling thread; its next computation makes a new one."""
    _call("omp_pause_resource_all", _SOFT_PAUSE)


def compute_alone() -> None:
    """Let the calling thread compute by itself from now on, without a pool.

    (``torch.set_num_threads`` would also change the threads that are started later. MKL keeps a count of its own.)
    """
    torch.get_num_threads()  # torch sets the count of a thread once, when it is first asked or computes
    _call("omp_set_num_threads", 1)


def _call(name: str, argument: int) -> None:
    function = _function(name) if has_libgomp() else None
    if function is not None:
        function(argument)


@cache
def has_libgomp() -> bool:
    """Return whether torch computes with libgomp. In other libraries, pausing would stop the pools of all threads."""
    # The library of LLVM and Intel has the functions of libgomp too.
    return _function("GOMP_parallel") is not None and _function("__kmpc_fork_call") is None


@cache
def _function(name: str) -> Any:
    """Return a function of the OpenMP library that torch has loaded, or None where it has none."""
    try:
        # Symbols are searched in the libraries that this one needs too, among them that of OpenMP.
        return getattr(ctypes.CDLL(torch._C.__file__), name, None)
    except OSError:
        return None
