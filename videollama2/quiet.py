"""Keeps the output of libraries out of a command's output: hints for programmers, and bars outside of terminals."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

_VERBOSITY, _NO_BARS = "TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS"
_HINTS = ("bitsandbytes", "deepspeed", "peft", "torchao")
"""Loggers of libraries whose warnings are about their installation, such as an optional faster kernel."""


@contextmanager
def quiet_libraries(debug: bool = False) -> Iterator[None]:
    """Silence hints of libraries, and their progress bars unless the standard error is a terminal.

    Libraries that are imported within the block, also by child processes, find their own environment variables; those
    imported before are told directly. What the user has set in the environment is kept.

    Args:
        debug: whether hints are wanted, for example to look for a fault.
    """
    with ExitStack() as stack:
        if not debug:
            stack.enter_context(_environment(_VERBOSITY, "error"))
            for name in _HINTS:
                stack.enter_context(_errors_alone(logging.getLogger(name)))
        if not is_terminal(sys.stderr):
            stack.enter_context(_environment(_NO_BARS, "1"))
        stack.enter_context(_imported_transformers(debug))
        yield


def hide_library_bars() -> None:
    """Hide the bars of libraries on terminals too, where a command shows its own bar or nothing takes long."""
    from transformers.utils import logging as transformers_logging

    if os.environ.get(_NO_BARS) is None:
        transformers_logging.disable_progress_bar()


def is_terminal(stream: Any) -> bool:
    """Return whether a standard stream, which may be None, is shown to a person."""
    return stream is not None and stream.isatty()


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)


@contextmanager
def _errors_alone(logger: logging.Logger) -> Iterator[None]:
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _imported_transformers(debug: bool) -> Iterator[None]:
    """Tell a transformers that is imported already, and undo it at the end."""
    library = sys.modules.get("transformers.utils.logging")
    if library is None:
        yield
        return
    verbosity, has_bars = library.get_verbosity(), library.is_progress_bar_enabled()
    if not debug and os.environ.get(_VERBOSITY) == "error":
        library.set_verbosity_error()
    if os.environ.get(_NO_BARS) == "1":
        library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(verbosity)
        if has_bars:
            library.enable_progress_bar()
