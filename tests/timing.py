"""Processor time of every test, which does not depend on what else the machine does.

A test that takes more than :data:`SLOW_S` is marked ``slow``. One that takes :data:`FAILS_AT_S` without the mark fails
the run; the margin is there because processors differ. ``VIDEOLLAMA2_TEST_TIMES=FILE`` writes all times as JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

SLOW_S = 10.0
FAILS_AT_S = 2 * SLOW_S

_PROPERTY = "processor_seconds"


def _processor_seconds() -> float:
    """Of this process and of the children it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class ProcessorTimes:
    """pytest plug-in: measures each test's call, and looks at the sum of it in the end."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.unmarked: list[str] = []

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        start = _processor_seconds()
        yield
        item.user_properties.append((_PROPERTY, _processor_seconds() - start))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called where the results come together, also with several workers."""
        taken = dict(report.user_properties).get(_PROPERTY)
        if report.when != "call" or taken is None:
            return
        self.seconds[report.nodeid] = taken
        if taken > FAILS_AT_S and "slow" not in report.keywords:
            self.unmarked.append(f"{report.nodeid} took {taken:.0f} s of processor time and is not marked slow")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workerinput"):
            return
        if target := os.environ.get("VIDEOLLAMA2_TEST_TIMES"):
            ordered = dict(sorted(self.seconds.items(), key=lambda entry: -entry[1]))
            Path(target).write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
        if self.unmarked and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.unmarked:
            terminalreporter.write_line(f"ERROR {line}", red=True)
