"""Stops a run early without losing work, on a signal of the scheduler or because of a record that cannot be used.

All processes of a run must stop at the same step, or those that continue would wait for the others for ever. They
therefore ask each other before each step (:class:`Agreement`). At that moment the weights are those of a whole step and
no random number of the next one has been drawn, so a run continued from a checkpoint written there is exact to the bit.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from multiprocessing.context import ForkContext, ForkProcess
from types import FrameType, TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader

from videollama2.errors import VideoLlama2Error

T = TypeVar("T")

SIGNALS = (signal.SIGTERM, signal.SIGUSR1) if hasattr(signal, "SIGUSR1") else (signal.SIGTERM,)
"""The signals that schedulers send before they end a job; in Slurm, ``--signal`` chooses one."""

FAILED = 1 << 10
"""The number with which a process tells the others that it has failed; it is larger than any signal's number."""


class StoppedBySignalError(Exception):
    """A signal has stopped the run; ``checkpoint`` holds everything that it has learnt."""

    def __init__(self, number: int, step: int, checkpoint: str | None) -> None:
        where = f"everything learnt is in {checkpoint}" if checkpoint else "nothing was learnt yet"
        super().__init__(
            f"stopped by {signal.Signals(number).name} after step {step}: {where}; run the same command to continue"
        )
        self.exit_code = 128 + number


class InterruptedEvaluationError(Exception):
    """An evaluation was left because a process wants to stop; the processes have still to agree on it."""


class StoppedElsewhereError(Exception):
    """Another process of this run has failed; it reports the error, so this one reports nothing."""


def message_of(error: BaseException) -> str:
    """Return an error's message, without the traceback that an error of a loader worker carries in it."""
    text = str(error)
    name = f"{type(error).__module__}.{type(error).__name__}: "
    message = text.rpartition(name)[2].strip() if text.startswith("Caught ") else text
    return "; ".join(message.splitlines())  # the message may name several records, one per line


class StopSignals:
    """A context manager that records the signals of :data:`SIGNALS`, which would otherwise end the process.

    ``number`` is the last signal received, or 0. Outside the main thread, where Python allows no signal handlers,
    nothing is recorded.
    """

    def __init__(self) -> None:
        self.number = 0
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        # A handler only takes a note: the step under way ends as usual, and the loop asks between two steps.
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number


class Agreement:
    """A channel over which the processes of a run agree on the largest of their numbers.

    It uses the CPU (gloo), so that no GPU has to be synchronised. Creating one is a collective operation: every process
    must do it at the same place.
    """

    def __init__(self) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self._group = torch.distributed.new_group(backend="gloo") if distributed else None

    def largest(self, number: int) -> int:
        """Return the largest ``number`` of all processes, every one of which must make this call."""
        if self._group is None:
            return number
        shared = torch.tensor([number])
        torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX, group=self._group)
        return int(shared)


def decide_together(decide: Callable[[], T], is_first: bool) -> T:
    """Call ``decide`` on the first process and return its result on all processes.

    Raises:
        StoppedElsewhereError: on the other processes, if ``decide`` raises a VideoLlama2Error on the first one.
    """
    decision: list[Any] = [None]
    # An error must not be raised before the broadcast, or the other processes would wait in it for ever.
    error = None
    if is_first:
        try:
            decision = [decide()]
        except VideoLlama2Error as caught:
            error = caught
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        broadcast_object_list(decision)
    if error is not None:
        raise error
    if decision[0] is None:
        raise StoppedElsewhereError
    return decision[0]


class RandomState:
    """A snapshot of this process's random generators (Python, NumPy, torch and CUDA)."""

    def __init__(self) -> None:
        self._python, self._numpy, self._torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None

    def restore(self) -> None:
        """Set the generators back to the snapshot."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)


def shield_workers(loader: DataLoader) -> None:
    """Keep the signals of :data:`SIGNALS` from ending the worker processes of ``loader``.

    Launchers signal the whole process group and Slurm signals every process of a job, but only the training process
    knows what to do about it; the death of a worker would break the current step. A worker is safe from its first
    instruction: it is forked with the signals blocked, and unblocks them when it ignores them.

    Systems that do not fork their workers are covered only once a worker runs its first Python code.
    """
    if loader.num_workers and multiprocessing.get_start_method() == "fork":
        loader.multiprocessing_context = _ShieldingContext()
    loader.worker_init_fn = partial(_begin_worker, loader.worker_init_fn)


def end_workers(loaders: Iterable[DataLoader], error: BaseException | None = None) -> None:
    """End the worker processes of ``loaders``, and those of iterators in the frames that an ``error`` came through.

    An iterator ends its workers when it is freed. torch's errors refer to themselves, so what their frames hold would
    be freed by the garbage collector only, later and in an order in which the workers are not told to end.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    for loader in loaders:
        loader._iterator = None  # persistent workers belong to an iterator that the loader keeps


class _ShieldingProcess(ForkProcess):
    """A process that begins with the signals of :data:`SIGNALS` blocked; those sent meanwhile are kept for later."""

    def start(self) -> None:
        former = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)


class _ShieldingContext(ForkContext):
    Process = _ShieldingProcess


def _begin_worker(former: Callable[[int], None] | None, worker: int) -> None:
    """Leave the launcher's process group and ignore the signals that mean the training process."""
    if former is not None:
        former(worker)
    # Ctrl-C and launchers signal the whole group; from now on that does not reach this worker.
    os.setpgrp()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # this also drops a signal that arrived while they were blocked
    signal.signal(signal.SIGTERM, _obey_the_next)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _obey_the_next(number: int, frame: FrameType | None) -> None:
    """Ignore a first SIGTERM, which may be a scheduler's; a worker that hangs is sent a second one by its parent."""
    signal.signal(number, signal.SIG_DFL)
