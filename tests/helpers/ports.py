"""Ports of loopback for processes that are told where to listen."""

from __future__ import annotations

import socket

_kept: list[socket.socket] = []


def free_port() -> int:
    """Return a port that whoever asks for any free one does not get while the tests run.

    A socket that is bound to it and does not listen keeps it from them. A server that asks for this very port gets it,
    if it sets ``SO_REUSEADDR``, as servers do.
    """
    keeper = socket.socket()
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    keeper.bind(("127.0.0.1", 0))
    _kept.append(keeper)
    return keeper.getsockname()[1]
