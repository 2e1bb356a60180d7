"""Processor time of every test, which depends little on what else the machine does.

A test that takes more than :data:`SLOW_S` is to be marked ``slow``. One that takes :data:`FAILS_AT_S` without the mark
fails a run of the suite; the margin is there because two processors that share a core take longer for the same, and
the limit grows on slower machines (:func:`slowness`). Runs of a few tests are free of it, since the first test of a
process also pays for imports. ``VIDEOLLAMA2_TEST_TIMES=FILE`` writes all times as JSON, those of set-up and teardown
too, and shows their sums for each wing, as they stand in ``tests/README.md``.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SLOW_S = 4.0
FAILS_AT_S = 10.0

MANY_TESTS = 1000
"""Results of a run in which imports no longer matter."""

_TICKS = os.sysconf("SC_CLK_TCK")

YARDSTICK_S = 0.033
"""Of :func:`_yardstick` on the machine on which the limits were set."""


def processor_seconds() -> float:
    """Of this process, of the children it has waited for, and of those that live, with theirs."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system + _of_living_children("self")


def _of_living_children(pid: str) -> float:
    """Seconds of the processes below one, as Linux tells them; 0 elsewhere.

    This runs three times for each test, and looks at every thread, so it is written for speed.
    """
    seconds, tasks = 0.0, f"/proc/{pid}/task"
    for thread in _names(tasks):
        for child in _read(f"{tasks}/{thread}/children").split():
            fields = _read(f"/proc/{child}/stat").rpartition(")")[2].split()
            # utime, stime, cutime and cstime of proc(5), in ticks. The server of forks (forked.py) imports everything
            # when the first test needs it; only what it has started belongs to a test.
            is_server = pid == "self" and "multiprocessing.forkserver" in _read(f"/proc/{child}/cmdline")
            seconds += sum(map(int, fields[13 if is_server else 11 : 15])) / _TICKS + _of_living_children(child)
    return seconds


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:  # the process has ended
        return []


def _read(path: str) -> str:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read().decode(errors="replace")
    except OSError:  # the process has ended
        return ""


def _yardstick() -> float:
    """Processor seconds of work such as tests do: parsing, searching and counting in Python."""
    start = time.process_time()
    text = json.dumps([{"number": i, "word": str(i) * 3} for i in range(4000)])
    found = re.findall(r'"word": "(\d+)"', text)
    assert len(found) == len(json.loads(text)) and sum(i * i % 7 for i in range(400_000))
    return time.process_time() - start


def slowness() -> float:
    """How many times longer this machine takes than the one on which the limits were set; 1 where it is faster."""
    return max(1.0, min(_yardstick() for _ in range(3)) / YARDSTICK_S)


class ProcessorTimes:
    """pytest plug-in: measures set-up, call and teardown of each test, and looks at the calls in the end."""

    def __init__(self) -> None:
        self._seen = 0.0
        self.seconds: dict[str, float] = {}
        self.wings: dict[str, dict[bool, float]] = {}
        """Seconds of each wing, of its slow tests and of the others."""
        self.unmarked: dict[str, float] = {}
        """Seconds of tests over the limit without a mark."""

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        self._seen = self._seen or processor_seconds()
        yield
        self._note(item, "setup")

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        yield
        self._note(item, "call")

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[None]:
        yield
        self._note(item, "teardown")

    def _note(self, item: pytest.Item, phase: str) -> None:
        """Note the seconds since the end of the phase before, be it one of the test before."""
        before, self._seen = self._seen, processor_seconds()
        # A browser that is closed takes the time of its processes with it: nobody has waited for them.
        item.user_properties.append((phase, max(0.0, self._seen - before)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called where the results come together, also with several workers."""
        taken = dict(report.user_properties).get(report.when)
        if not isinstance(taken, float):
            return
        self.seconds[f"{report.nodeid} {report.when}"] = taken
        is_slow = "slow" in report.keywords
        wing = str(Path(report.nodeid.partition("::")[0]).parent)
        self.wings.setdefault(wing, {False: 0.0, True: 0.0})[is_slow] += taken
        if report.when == "call" and taken > FAILS_AT_S and not is_slow:
            self.unmarked[report.nodeid] = taken

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workerinput"):
            return
        if target := os.environ.get("VIDEOLLAMA2_TEST_TIMES"):
            ordered = dict(sorted(self.seconds.items(), key=lambda entry: -entry[1]))
            Path(target).write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
        if self.unmarked:
            limit = FAILS_AT_S * slowness() if len(self.seconds) >= MANY_TESTS else float("inf")
            self.unmarked = {name: taken for name, taken in self.unmarked.items() if taken > limit}
        if self.unmarked and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if os.environ.get("VIDEOLLAMA2_TEST_TIMES"):
            for wing, seconds in sorted(self.wings.items()):
                terminalreporter.write_line(f"{wing}: {seconds[False]:.0f} s, slow tests {seconds[True]:.0f} s")
        for name, taken in self.unmarked.items():
            line = f"ERROR {name} took {taken:.0f} s of processor time and is not marked slow"
            terminalreporter.write_line(line, red=True)
