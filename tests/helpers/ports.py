"""Ports for processes that are told where to listen."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_kept = ExitStack()


@contextmanager
def reserved_port() -> Iterator[int]:
    """Yield a port that whoever asks for any free one does not get while the block runs.

    A socket that is bound to it and does not listen keeps it from them. A server that asks for this very port gets it,
    if it sets ``SO_REUSEADDR`` as torch's stores and all servers here do.
    """
    with socket.socket() as keeper:
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeper.bind(("", 0))
        yield keeper.getsockname()[1]


def free_port() -> int:
    """Return a port that is reserved as long as the tests run."""
    return _kept.enter_context(reserved_port())
