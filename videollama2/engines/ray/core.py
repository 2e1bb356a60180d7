"""Imports the package Ray. This happens by name here, because type checkers take ``import ray`` for this folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from videollama2.errors import EngineError, first_line

ray: Any = import_module("ray")
serve: Any = import_module("ray.serve")


@contextmanager
def joined() -> Iterator[None]:
    """Belong to the cluster that ``RAY_ADDRESS`` names or that runs on this machine, or else to one of this process.

    A process that belongs to a cluster already stays there.

    Raises:
        EngineError: the cluster cannot be reached, or Ray cannot start.
    """
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(log_to_driver=True)
    except (RuntimeError, ConnectionError, TimeoutError, ray.exceptions.RayError) as error:
        raise EngineError(f"Ray: {first_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()
