"""Keeps Python's collector of cyclic garbage from searches that find nothing, and forks from what their parent left.

torch and transformers are 2,700 modules with 400,000 objects, and all of them stay. While they are imported, the
collector would search them time and again, which takes a fifth of the processor time of an import; and once more when
the process ends, which takes another second.
"""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache


@contextmanager
def paused() -> Iterator[None]:
    """Pause the collector, unless it is off already."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def loading() -> Iterator[None]:
    """Pause the collector, and leave out of all later searches what was loaded and what existed before.

    This is for a command that loads a model once and keeps it until it ends.
    """
    with paused():
        yield
        gc.freeze()


@cache
def end_without_search() -> None:
    """Leave out the search when the interpreter ends. Exit handlers run and memory is returned all the same."""
    atexit.register(gc.freeze)


@cache
def leave_garbage_to_parent() -> None:
    """Have no forked process collect what its parent has left behind, from now on.

    FFmpeg's coders and converters have threads, and freeing one waits for them. A fork has none of the threads of its
    parent: it would wait for ever, at whatever line its collector happens to run.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=gc.freeze)
