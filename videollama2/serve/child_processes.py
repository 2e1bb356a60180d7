"""Starts, watches, restarts and ends the child processes of an installation, in order."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

from videollama2.errors import VideoLlama2Error

RESTARTS, RESTART_WINDOW_S = 5, 300.0
"""A worker that dies more often than this within this many seconds is not restarted again."""

_TICK_S = 0.2


class LaunchError(VideoLlama2Error):
    """Raised when a part of the installation ended."""


@dataclass
class ChildProcess:
    """One child process.

    Attributes:
        arguments: arguments of the Python interpreter.
        ready_url: URL that replies with status 200 once the part is ready.
        may_restart: whether the part is restarted if it dies.
    """

    name: str
    arguments: list[str]
    ready_url: str
    environment: dict[str, str]
    may_restart: bool = False
    was_ready: bool = False
    process: subprocess.Popen[bytes] | None = None
    deaths: list[float] = field(default_factory=list)
    start_at: float = 0.0

    def start(self) -> None:
        """Start the part in its own process group: Ctrl-C must reach only the launcher, which ends all in order."""
        is_linux = sys.platform == "linux"
        if is_linux:
            _prctl()
        self.process = subprocess.Popen(
            [sys.executable, *self.arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with_parent if is_linux else None,
        )

    def is_ready(self) -> bool:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(self.ready_url, timeout=2.0) as reply:
                return reply.status == 200
        except (urllib.error.URLError, OSError, ValueError):
            return False

    def wait(self) -> None:
        """Wait until the process has ended."""
        if self.process is not None:
            self.process.wait()

    def signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)


class Launcher:
    """Starts the parts, watches them and ends them.

    Args:
        say: function that prints a message for the operator.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.parts: list[ChildProcess] = []
        self._say = say
        self.signals = 0

    def on_signal(self, number: int, frame: object) -> None:
        """Handle a signal: the first one ends all parts in order, a second one at once."""
        self.signals += 1
        if self.signals > 1:
            for part in self.parts:
                part.signal(signal.SIGKILL)

    def start(self, *parts: ChildProcess) -> None:
        """Start parts and wait until they are ready.

        Raises:
            LaunchError: one of them died.
        """
        for part in parts:
            self.parts.append(part)
            part.start()
        waiting = list(parts)
        while waiting and not self.signals:
            self.look()
            for part in [part for part in waiting if part.is_ready()]:
                part.was_ready = True
                waiting.remove(part)
                self._say(f"{part.name} is ready")
            time.sleep(_TICK_S)

    def look(self) -> None:
        """Check for parts that died, and restart workers.

        Raises:
            LaunchError: a part died that cannot be restarted.
        """
        now = time.monotonic()
        for part in self.parts:
            if part.process is None:
                if now >= part.start_at:
                    part.start()
                continue
            code = part.process.poll()
            if code is None:
                # A worker that was ready once is restarted after a pause, which doubles with each recent death. One
                # that never was ready would fail again, so it ends the installation.
                continue
            what = f"{part.name} ended with {_cause(code)}"
            part.deaths = [death for death in part.deaths if now - death < RESTART_WINDOW_S] + [now]
            if not part.may_restart or not part.was_ready or len(part.deaths) > RESTARTS:
                raise LaunchError(f"{what}; see its messages above")
            pause = min(30.0, 2.0 ** (len(part.deaths) - 1))
            self._say(f"{what}; it is started again in {pause:g} s")
            part.process, part.start_at = None, now + pause

    def watch(self) -> None:
        """Watch the parts until a signal arrives.

        Raises:
            LaunchError: a part died that cannot be restarted.
        """
        while not self.signals:
            self.look()
            time.sleep(_TICK_S)

    def end(self) -> None:
        """End all parts in the reverse order of their start; parts of the same name end together."""
        for stage in ("page", "API", "worker", "controller"):
            parts = [part for part in self.parts if part.name.startswith(stage) and part.process is not None]
            for part in parts:
                part.signal(signal.SIGTERM)
            for part in parts:
                part.wait()


def _cause(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


@cache
def _prctl() -> Callable[..., int]:
    """Return the system call. It is loaded before the fork: in the new process, the loader's lock may be held by a
    thread that exists only in the launcher, and the process would wait for ever.
    """
    import ctypes

    return ctypes.CDLL(None).prctl


def _die_with_parent() -> None:
    """Make this process end when the launcher is killed."""
    _prctl()(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG
