"""Commands in processes that are forked from one that has imported everything.

Importing takes a process several seconds of processor time, more than most tests need for what they test. What a
launcher adds (its environment variables, the signals that it passes on, its restarts) is set here or tested with
torch's own launcher, a fork as well: see the fixture ``torchrun`` of ``tests/training/conftest.py``.
"""

from __future__ import annotations

import importlib
import io
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import torch

from tests.helpers.ports import reserved_port

_ROOT = Path(__file__).resolve().parents[2]

GRACE_S = 120.0
"""How long the other ranks may continue after one has failed; they might wait for it for ever."""

JOIN_S = 60.0
"""How long the system may take to end a process that was killed, or that has nothing left to do."""

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.helpers.preloaded"])


def start(module: str, argv: list[str], log: Path, variables: dict[str, str] | None = None) -> BaseProcess:
    """Begin ``module.main(argv)`` in a process whose exit code is what it returns and whose output goes to ``log``."""
    log.touch()
    return start_function(_run, module, argv, log, variables or {})


def start_function(target: Callable[..., None], *args: object) -> BaseProcess:
    """Call ``target(*args)`` in such a process."""
    process = _SERVER.Process(target=target, args=args)
    process.start()
    return process


def run_ranks(
    argv: list[str],
    processes: int,
    log: Path,
    watch: Callable[[str], int] = lambda text: 0,
    timeout_s: float = 300,
    module: str = "videollama2.train",
    variables: Mapping[str, str] | None = None,
) -> int:
    """Run ``module.main(argv)`` in so many processes of one group; return the first exit code that is not 0, or 0.

    Each gets the variables that torchrun sets, and ``variables``.

    Args:
        log: a file that receives what the processes write, errors included.
        watch: called again and again with what has been written, until it returns the number of a signal, which all
            processes then get. ``SIGKILL`` kills their children too.
    """
    with reserved_port() as port:
        group = [{**(variables or {}), **_as_torchrun_sets(rank, processes, port)} for rank in range(processes)]
        ranks = [start(module, argv, log, own) for own in group]
        _watch_over(ranks, log, watch, timeout_s)
    return next((rank.exitcode for rank in ranks if rank.exitcode), 0)


def _watch_over(ranks: Sequence[BaseProcess], log: Path, watch: Callable[[str], int], timeout_s: float) -> None:
    """Wait until all processes have ended; those that last too long are killed, and the log tells so."""
    deadline = time.monotonic() + timeout_s
    number = 0
    while any(rank.is_alive() for rank in ranks):
        if any(rank.exitcode for rank in ranks):
            deadline = min(deadline, time.monotonic() + GRACE_S)
        if not number and (number := watch(log.read_text())):
            send(ranks, number)
        if time.monotonic() > deadline:
            with log.open("a") as file:
                file.write("\nkilled by the tests: not all processes ended in time\n")
            break
        time.sleep(0.02)
    end_all(ranks, timeout_s=0 if any(rank.is_alive() for rank in ranks) else JOIN_S)


def end_all(processes: Sequence[BaseProcess], timeout_s: float) -> None:
    """Wait until the processes have ended, and kill what has not after so many seconds."""
    deadline = time.monotonic() + timeout_s
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    send(processes, signal.SIGKILL)
    for process in processes:
        process.join(JOIN_S)
        assert process.exitcode is not None, f"process {process.pid} does not end although it was killed"


def receive(connection: Connection, timeout_s: float = 120.0) -> Any:
    """Return the next message of another process.

    Raises:
        TimeoutError: none has come.
        EOFError: every process that could have sent one has ended.
    """
    if not connection.poll(timeout_s):
        raise TimeoutError(f"no message after {timeout_s:.0f} s")
    return connection.recv()


@contextmanager
def killed_after(process: subprocess.Popen[Any], timeout_s: float = 240.0) -> Iterator[None]:
    """Kill a program and its children at the end of the block, or after so long, which ends any wait for its output."""
    timer = threading.Timer(timeout_s, kill_tree, [process.pid])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if process.poll() is None:
            kill_tree(process.pid)
            process.wait(JOIN_S)


def run_program(words: Sequence[object], timeout_s: float, **options: Any) -> subprocess.CompletedProcess[str]:
    """What ``subprocess.run(words, capture_output=True, text=True)`` returns, which also ends what the program started.

    Args:
        timeout_s: after so long all of it is killed, and its exit code tells so.
    """
    command = list(map(str, words))
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, **options, start_new_session=True) as program:
        try:
            out, err = program.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            kill_tree(program.pid)
            with suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)  # what has outlived its parent still holds the pipes
            out, err = program.communicate(timeout=JOIN_S)
            err += f"\nkilled by the tests after {timeout_s:.0f} s"
    return subprocess.CompletedProcess(command, program.returncode, out, err)


def run_python(
    arguments: Sequence[object],
    cwd: str | Path = _ROOT,
    env: Mapping[str, str] | None = None,
    input: str = "",
    timeout_s: float = 300,
) -> subprocess.CompletedProcess[str]:
    """What ``subprocess.run([sys.executable, *arguments], capture_output=True, text=True)`` returns, from a fork.

    Not for what depends on the order of imports, on functions registered with ``atexit``, or on variables that are read
    when Python starts or a library is imported.

    Args:
        arguments: ``-m MODULE ...``, ``-c CODE ...`` or ``FILE ...``.
        env: all variables of the process; None for those of this one.
    """
    words = list(map(str, arguments))
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder) / name for name in ("in", "out", "err")]
        for stream in streams:
            stream.write_text(input if stream.name == "in" else "")
        process = start_function(_run_python, words, str(cwd), dict(env or os.environ), streams)
        process.join(timeout_s)
        if process.exitcode is None:
            end_all([process], timeout_s=0)
            raise subprocess.TimeoutExpired(words, timeout_s, *(stream.read_bytes() for stream in streams[1:]))
        _, out, err = (stream.read_text() for stream in streams)
        return subprocess.CompletedProcess(words, process.exitcode, out, err)


def send(processes: Sequence[BaseProcess], number: int) -> None:
    """Send a signal to each process that is still alive, as a launcher passes on the one that it gets."""
    for process in processes:
        if number == signal.SIGKILL:
            kill(process)
        elif process.is_alive() and process.pid is not None:
            os.kill(process.pid, number)


def kill(process: BaseProcess) -> None:
    """Kill a process and its children, all without warning."""
    if process.is_alive() and process.pid is not None:
        kill_tree(process.pid)


def kill_tree(pid: int) -> None:
    """The same of a process that may have ended."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for each in (*parent.children(recursive=True), parent):
            each.kill()


def _as_torchrun_sets(rank: int, processes: int, port: int) -> dict[str, str]:
    if processes == 1:
        return {}
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    return {**{name: str(value) for name, value in ranks.items()}, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def _run(module: str, argv: list[str], log: Path, variables: dict[str, str]) -> None:
    _write_to(log)
    _begin_anew()
    os.environ |= variables
    sys.exit(importlib.import_module(module).main(argv))


def _write_to(log: Path) -> None:
    """Let what this process writes to its standard streams go to a file."""
    with log.open("a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)


def _begin_anew() -> None:
    """Undo what the server of forks has left in this process, and compute with one thread."""
    # A process that starts one more does so in the way that is usual on this system, as data loaders do for workers.
    # Otherwise that would be a second server of forks, which imports everything once more.
    multiprocessing.set_start_method(None, force=True)
    torch.set_num_threads(1)  # as every process of the tests; the sums of several threads differ in their last bits


def _run_python(words: list[str], cwd: str, variables: dict[str, str], streams: list[Path]) -> None:
    with ExitStack() as stack:
        files = [stack.enter_context(stream.open("r" if n == 0 else "a")) for n, stream in enumerate(streams)]
        for number, file in enumerate(files):
            os.dup2(file.fileno(), number)
    become_python(words, cwd, variables)


def become_python(words: list[str], cwd: str, variables: dict[str, str]) -> None:
    """Do what ``python WORDS`` does with these variables, with the standard streams of this process.

    Args:
        words: ``-m MODULE ...``, ``-c CODE ...``, ``FILE ...``, or ``- ...`` for a program from the standard input.
    """
    # As Python has them for files, with a standard error that holds nothing back.
    out = os.fdopen(1, "w", buffering=1 if variables.get("PYTHONUNBUFFERED") else -1)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), out, os.fdopen(2, "w", buffering=1)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    _begin_anew()
    kind, target, *rest = words if words[0] in ("-m", "-c") else ("", *words)
    sys.argv = [target if kind != "-c" else "-c", *rest]
    if kind == "-c" or target == "-":
        code = sys.stdin.read() if target == "-" else target
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    elif kind == "-m":
        sys.path.insert(0, cwd)
        sys.modules.pop(target, None)  # runpy warns of a module that was imported before it runs
        runpy.run_module(target, run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(target).resolve().parent))
        runpy.run_path(target, run_name="__main__")


def start_together(count: int, target: Callable[..., None], *args: object) -> None:
    """Call ``target(*args, barrier)`` in so many processes, which meet at the barrier; all must end well."""
    run_function(fork_together, count, target, *args)


def run_function(target: Callable[..., None], *args: object, timeout_s: float = 240.0) -> None:
    """Call ``target(*args)`` in a process of one thread, which may therefore fork, and check that it ends well."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        process = start_function(_logged, log, target, args)
        end_all([process], timeout_s)
        assert process.exitcode == 0, f"{target.__name__} ended with {process.exitcode}: {log.read_text()}"


def _logged(log: Path, target: Callable[..., None], args: tuple[object, ...]) -> None:
    _write_to(log)
    target(*args)


def fork_together(count: int, target: Callable[..., None], *args: object, timeout_s: float = 120.0) -> None:
    """Do what :func:`start_together` does by forking this process.

    A process with several threads must not do this: another thread may hold a lock, which no thread of the copy gives
    back.
    """
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(count, timeout=timeout_s)
    processes = [context.Process(target=target, args=(*args, barrier)) for _ in range(count)]
    for process in processes:
        process.start()
    end_all(processes, timeout_s)
    assert [process.exitcode for process in processes] == [0] * count
