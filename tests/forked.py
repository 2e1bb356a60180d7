"""Commands in processes that are forked from one that has imported everything.

Importing takes a process several seconds of processor time, more than most tests need for what they test. What a
launcher adds (its environment variables, the signals that it passes on, its restarts) is set here or tested with the
real launcher in ``tests/training/test_scripts.py`` and ``tests/training/test_stopping.py``.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import torch

GRACE_S = 30.0
"""How long the other ranks may continue after one has failed; they might wait for it for ever."""

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.preloaded"])


def start(module: str, argv: list[str], log: Path, variables: dict[str, str] | None = None) -> BaseProcess:
    """Begin ``module.main(argv)`` in a process whose exit code is what it returns and whose output goes to ``log``."""
    log.touch()
    process = _SERVER.Process(target=_run, args=(module, argv, log, variables or {}))
    process.start()
    return process


def run_ranks(
    argv: list[str],
    processes: int,
    log: Path,
    watch: Callable[[str], bool] = lambda text: False,
    timeout_s: float = 600,
) -> int:
    """Run ``train.main(argv)`` in so many processes of one group; return the first exit code that is not 0, or 0.

    Args:
        log: a file that receives what the processes write, errors included.
        watch: called again and again with what has been written; once it returns true, all processes are killed.
    """
    port = _free_port()
    ranks = [start_rank(argv, rank, processes, port, log) for rank in range(processes)]
    deadline = time.monotonic() + timeout_s
    while any(rank.is_alive() for rank in ranks):
        if any(rank.exitcode for rank in ranks):
            deadline = min(deadline, time.monotonic() + GRACE_S)
        if watch(log.read_text()) or time.monotonic() > deadline:
            for rank in ranks:
                kill(rank)
            break
        time.sleep(0.02)
    for rank in ranks:
        rank.join()
    return next((rank.exitcode for rank in ranks if rank.exitcode), 0)


def start_rank(
    argv: list[str], rank: int, processes: int, port: int, log: Path, variables: dict[str, str] | None = None
) -> BaseProcess:
    """Begin ``train.main(argv)`` in one of so many processes of a group, with what torchrun sets and ``variables``."""
    return start("videollama2.train", argv, log, {**_as_torchrun_sets(rank, processes, port), **(variables or {})})


def kill(process: BaseProcess) -> None:
    """Kill a process and its children, all without warning."""
    if process.is_alive():
        parent = psutil.Process(process.pid)
        for each in (*parent.children(recursive=True), parent):
            each.kill()


def _as_torchrun_sets(rank: int, processes: int, port: int) -> dict[str, str]:
    if processes == 1:
        return {}
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    return {**{name: str(value) for name, value in ranks.items()}, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _run(module: str, argv: list[str], log: Path, variables: dict[str, str]) -> None:
    with log.open("a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    sys.stdout.reconfigure(line_buffering=True)
    torch.set_num_threads(1)  # as every process of the tests; the sums of several threads differ in their last bits
    os.environ |= variables
    sys.exit(importlib.import_module(module).main(argv))
