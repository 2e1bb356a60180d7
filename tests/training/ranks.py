"""Processes of ``train.py`` that are forked from one that has imported everything.

Importing takes a process several seconds of processor time, more than the training of most tests. What a launcher adds
(its environment variables, the signals that it passes on, its restarts) is set here or tested with the real launcher in
``test_scripts.py`` and ``test_stopping.py``.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

GRACE_S = 30.0
"""How long the other processes may go on after one has failed; they might wait for it for ever."""

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.training.preloaded"])


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
    log.touch()
    port = _free_port()
    ranks = [_SERVER.Process(target=_train, args=(argv, rank, processes, port, log)) for rank in range(processes)]
    for rank in ranks:
        rank.start()
    deadline = time.monotonic() + timeout_s
    while any(rank.is_alive() for rank in ranks):
        if any(rank.exitcode for rank in ranks):
            deadline = min(deadline, time.monotonic() + GRACE_S)
        if watch(log.read_text()) or time.monotonic() > deadline:
            _kill(ranks)
            break
        time.sleep(0.02)
    for rank in ranks:
        rank.join()
    return next((rank.exitcode for rank in ranks if rank.exitcode), 0)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _kill(ranks: list[multiprocessing.context.ForkServerProcess]) -> None:
    for rank in ranks:
        if rank.is_alive():
            parent = psutil.Process(rank.pid)
            for process in (*parent.children(recursive=True), parent):
                process.kill()


def _train(argv: list[str], rank: int, processes: int, port: int, log: Path) -> None:
    with log.open("a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    sys.stdout.reconfigure(line_buffering=True)
    if processes > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    from videollama2 import train

    sys.exit(train.main(argv))
