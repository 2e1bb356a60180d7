"""Stopping early without losing work: on a signal of the scheduler, or because of a record that cannot be used.

All processes of a run must stop at the same step, or those that go on would wait for the others for ever. So they ask
each other before each step (:class:`Agreement`), when the weights are those of a whole step and no random number of the
next one has been drawn: a checkpoint written there is gone on from to the bit.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate.utils import broadcast_object_list

from videollama2.errors import VideoLlama2Error

T = TypeVar("T")

SIGNALS = (signal.SIGTERM, signal.SIGUSR1) if hasattr(signal, "SIGUSR1") else (signal.SIGTERM,)
"""What schedulers send before they take a machine away; Slurm's ``--signal`` names one."""

FAILED = 1 << 10
"""What a process tells the others when it cannot go on: larger than any signal's number."""


class StoppedBySignalError(Exception):
    """The run has stopped as it was told to; everything that it has learnt is in ``checkpoint``."""

    def __init__(self, number: int, step: int, checkpoint: str | None) -> None:
        where = f"everything learnt is in {checkpoint}" if checkpoint else "nothing was learnt yet"
        super().__init__(
            f"stopped by {signal.Signals(number).name} after step {step}: {where}; the same command goes on"
        )
        self.exit_code = 128 + number


class StoppedElsewhereError(Exception):
    """Another process of this run has met an error, which it tells; this one has nothing to add."""


def message_of(error: BaseException) -> str:
    """The message alone; one that comes out of a loader worker carries that worker's whole traceback."""
    text = str(error)
    name = f"{type(error).__module__}.{type(error).__name__}: "
    message = text.rpartition(name)[2].strip() if text.startswith("Caught ") else text
    return "; ".join(message.splitlines())  # several records may be named, a line each


class StopSignals:
    """Notes the signals of :data:`SIGNALS` inside a ``with`` block instead of dying of them.

    Outside the main thread, where Python allows no handlers, nothing is noted.
    """

    def __init__(self) -> None:
        self.number = 0
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
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
    """The largest number that any process of the run names, known to all of them.

    They talk over the CPU: no GPU is waited for. Every process must make one in the same place.
    """

    def __init__(self) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self._group = torch.distributed.new_group(backend="gloo") if distributed else None

    def largest(self, number: int) -> int:
        """Of this process's ``number`` and those of all others, which call this too."""
        if self._group is None:
            return number
        shared = torch.tensor([number])
        torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX, group=self._group)
        return int(shared)


def decide_together(decide: Callable[[], T], is_first: bool) -> T:
    """What the first process decides, on all processes.

    Raises:
        StoppedElsewhereError: on the others, where deciding raises a VideoLlama2Error on the first.
    """
    decision: list[Any] = [None]
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
    """The random generators of this process as they were when this was made."""

    def __init__(self) -> None:
        self._python, self._numpy, self._torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None

    def restore(self) -> None:
        """Put them back."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)


def leave_signals_to_the_parent(worker: int) -> None:
    """For loader workers: launchers signal the whole group of a process, and a worker that dies of it takes the step
    under way with it. In a group of its own it lives as long as its parent, whose end it notices.
    """
    os.setpgrp()
