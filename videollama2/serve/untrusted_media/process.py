"""Starts a decoding process from the server's side, sends it jobs, and ends it."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from videollama2.serve.untrusted_media.wire import WireError, read_message, write_message

START_TIMEOUT_S = 60.0
"""Half a second is typical; the margin is for machines under load."""

_log = logging.getLogger(__name__)

_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from videollama2.serve.untrusted_media.child import main; main(int(sys.argv[2]))"
)
# One thread is enough: a process decodes one medium at a time, and every thread's stack counts against its memory.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}


class ChildError(Exception):
    """Raised when the process could not do its work. ``reason`` is ``timeout``, ``memory`` or ``crash``."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class ChildLimits:
    """The limits that a process starts with."""

    max_pixels: int
    max_frames: int
    max_seconds: float
    max_bytes: int
    memory_bytes: int
    job_seconds: float
    jobs: int

    @classmethod
    def of(cls, policy: Any, jobs: int) -> ChildLimits:
        """Take the limits from a :class:`videollama2.serve.settings.MediaPolicy`."""
        return cls(
            policy.max_pixels,
            policy.max_frames,
            policy.max_duration_s,
            policy.max_bytes,
            policy.decode_memory_bytes,
            policy.decode_timeout_s,
            jobs,
        )

    def message(self) -> dict[str, Any]:
        """Return the first message to the process, which holds its limits."""
        return {
            "limits": {
                "max_pixels": self.max_pixels,
                "max_frames": self.max_frames,
                "max_seconds": self.max_seconds,
            },
            "max_bytes": self.max_bytes,
            "memory_bytes": self.memory_bytes,
            "life_cpu_seconds": int(self.jobs * (self.job_seconds + 1)) + 60,
        }


class Child:
    """A decoding process. It belongs to the thread that creates it, and on Linux ends together with that thread.

    Raises:
        OSError: the process cannot be started. ChildError: it ended before it was ready.
    """

    def __init__(self, limits: ChildLimits) -> None:
        self._limits = limits
        self._left = limits.jobs
        self._killed_for: str | None = None
        # The child gets the server's module path: its environment is empty, and this package may not be installed.
        path = json.dumps([os.path.abspath(entry) for entry in sys.path])
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", _PROGRAM, path, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            cwd=Path(sys.executable).anchor,
            start_new_session=True,
        )
        if self.process.stdin is None or self.process.stdout is None:
            raise ChildError("crash", "the process has no pipes")
        self._requests = self.process.stdin
        self._replies = cast("io.BufferedReader", self.process.stdout)  # the type that Popen gives a pipe
        ready, _ = self._exchange(limits.message(), (), START_TIMEOUT_S)
        self.in_force: tuple[str, ...] = tuple(ready.get("ready", ()))
        _log.debug("decoding process %d is ready, limits: %s", self.process.pid, " ".join(self.in_force))

    @property
    def fit(self) -> bool:
        """Whether the process can take another job."""
        return self._left > 0 and self._killed_for is None and self.process.poll() is None

    def ask(
        self, header: dict[str, Any], blobs: Sequence[Any], timeout_s: float
    ) -> tuple[dict[str, Any], list[bytearray]]:
        """Send one job and return the reply.

        Raises:
            ChildError: the process did not answer, or not in time. It cannot be used any more.
        """
        self._left -= 1
        reply, arrays = self._exchange(header, blobs, timeout_s)
        if reply.get("error") == "memory":
            self.kill("memory")  # too little memory may be left for the next job
        return reply, arrays

    def kill(self, reason: str = "killed") -> None:
        """End the process at once and without waiting. May be called from any thread."""
        self._killed_for = self._killed_for or reason
        self.process.kill()

    def end(self) -> None:
        """End the process, wait until it has ended and close its pipes."""
        self.kill()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            _log.warning("decoding process %d does not end", self.process.pid)
        for pipe in (self._requests, self._replies):
            with suppress(OSError):  # data that could not be sent
                pipe.close()

    def _exchange(
        self, header: dict[str, Any], blobs: Sequence[Any], timeout_s: float
    ) -> tuple[dict[str, Any], list[bytearray]]:
        # Pipes have no timeout. A timer kills the process when its time is up, which ends the blocked write or read.
        timer = threading.Timer(timeout_s, self.kill, ("timeout",))
        timer.daemon = True
        timer.start()
        try:
            write_message(self._requests, header, blobs)
            return read_message(self._replies, self._limits.memory_bytes)
        except (OSError, ValueError, WireError) as error:
            self.end()
            raise self._error_of_end(error) from error
        finally:
            timer.cancel()

    def _error_of_end(self, error: Exception) -> ChildError:
        """Return an error that gives the reason why the process failed, as far as its exit status reveals it."""
        code = self.process.returncode
        detail = f"decoding process {self.process.pid} ended with {_name(code)}: {error}"
        if self._killed_for == "timeout" or code == -getattr(signal, "SIGXCPU", 24):
            return ChildError("timeout", detail)
        return ChildError("crash", detail)


def _name(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"
    return f"code {code}"


def _environment() -> dict[str, str]:
    """Return an environment without the server's variables, which may hold keys. Windows needs its system folder."""
    kept = {name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ}
    return {**kept, **_ENVIRONMENT}
