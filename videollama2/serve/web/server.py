"""Runs all web applications: it listens, logs, closes idle connections, and drains before it ends."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from videollama2.errors import ConfigError
from videollama2.serve.settings import Security, is_loopback
from videollama2.serve.web.guard import Gate, with_request_id

HEADER_TIMEOUT_S = 15.0
DRAIN_TIMEOUT_S = 300.0

_log = logging.getLogger(__name__)


def configure_logging(level: int = logging.INFO, part: str = "-") -> None:
    """Log to standard error, each line with the id of its request.

    Args:
        part: name of this part of the installation, since several may share a terminal.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(with_request_id)
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {part} %(name)s [%(request_id)s] %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in ("uvicorn", "uvicorn.error", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to this address.

    Raises:
        ConfigError: the address cannot be bound.
    """
    try:
        # IPv4 comes first, because most clients look for "localhost" there.
        found = sorted(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), key=lambda entry: entry[0])
        family, kind, protocol, _, place = found[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(place)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}") from error
    bound.set_inheritable(False)
    return bound


def warn_if_open(host: str, security: Security) -> None:
    """Log a warning if strangers could use this server."""
    if not security.api_keys and not is_loopback(host):
        _log.warning(
            "listening on %s without an API key: everyone who can reach this port can use it; see --api-key-file", host
        )


def serve(
    app: FastAPI,
    host: str,
    port: int,
    *,
    drain: Callable[[], Awaitable[None]] | None = None,
    drain_timeout_s: float = DRAIN_TIMEOUT_S,
    bound: socket.socket | None = None,
    on_listening: Callable[[], None] | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT, then drain: refuse new work, finish running work, exit. A second signal exits at
    once.

    Args:
        drain: further work to do when draining begins.
        drain_timeout_s: maximum time for running work to finish.
        bound: socket from :func:`bind`; None creates one.
        on_listening: called in the event loop once connections are accepted.

    Returns:
        The exit code.

    Raises:
        ConfigError: the address cannot be bound.
    """
    listener = bound or bind(host, port)
    place = f"{host}:{listener.getsockname()[1]}"

    def listening() -> None:
        _log.info("%s listens on %s", app.title, place)
        if on_listening is not None:
            on_listening()

    server = make_server(app, drain=drain, drain_timeout_s=drain_timeout_s, on_listening=listening)
    keep_what_is_loaded()
    server.run([listener])
    return 0 if server.started else 3


def keep_what_is_loaded() -> None:
    """Exclude the loaded modules and the model from garbage collection.

    With torch loaded, a full collection takes half a second, and requests with many values trigger one.
    """
    gc.collect()
    gc.freeze()


@contextmanager
def ended_by_signals() -> Iterator[Event]:
    """Yield an event that SIGTERM and SIGINT set inside the block, where they do not end the process."""
    ended = Event()
    signals = (signal.SIGTERM, signal.SIGINT)
    former = {number: signal.signal(number, lambda *_: ended.set()) for number in signals}
    try:
        yield ended
    finally:
        for number, handler in former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def make_server(
    app: FastAPI,
    *,
    drain: Callable[[], Awaitable[None]] | None = None,
    drain_timeout_s: float = DRAIN_TIMEOUT_S,
    on_listening: Callable[[], None] | None = None,
    header_timeout_s: float = HEADER_TIMEOUT_S,
) -> DrainingServer:
    """Return the server of :func:`serve`, for callers that have their own socket.

    Args:
        header_timeout_s: seconds for a request's headers to arrive on an open connection.
    """
    config = server_config(app, header_timeout_s)
    return DrainingServer(config, app.state.gate, drain, drain_timeout_s, on_listening)


def server_config(app: Any, header_timeout_s: float = HEADER_TIMEOUT_S) -> uvicorn.Config:
    """Return the settings of all servers: connections that are idle, or whose headers do not arrive, are closed."""
    return uvicorn.Config(
        app,
        http=_protocol(header_timeout_s),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        lifespan="on",
        proxy_headers=False,  # a caller could forge these headers
    )


class DrainingServer(uvicorn.Server):
    """A server that exits only when its running requests have ended."""

    def __init__(
        self,
        config: uvicorn.Config,
        gate: Gate,
        drain: Callable[[], Awaitable[None]] | None,
        drain_timeout_s: float,
        on_listening: Callable[[], None] | None,
    ) -> None:
        super().__init__(config)
        self.on_listening = on_listening
        self._gate, self._drain, self._drain_timeout_s = gate, drain, drain_timeout_s
        self._running_loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None
        self._signals = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._running_loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started and self.on_listening is not None:
            self.on_listening()

    def handle_exit(self, sig: int, frame: Any) -> None:
        # uvicorn's handler would in the end kill the process with the same signal; a drained server exits with code 0.
        self._signals += 1
        if self._running_loop is None or self._signals > 1:
            self.should_exit = self.force_exit = True
            return
        self._running_loop.call_soon_threadsafe(self.begin_draining, signal.Signals(sig).name)

    def begin_draining(self, why: str) -> None:
        """Start draining. Must be called in the event loop."""
        _log.info("%s: draining, %d requests under way", why, self._gate.active)
        self._draining = asyncio.ensure_future(self._finish())

    async def _finish(self) -> None:
        try:
            self._gate.close()
            if self._drain is not None:
                await self._drain()
            if not await self._gate.wait_idle(self._drain_timeout_s):
                _log.warning("%d requests did not end in %g s", self._gate.active, self._drain_timeout_s)
        finally:
            self.should_exit = True


def _protocol(timeout_s: float) -> type[H11Protocol]:
    return type("PatientProtocol", (_Protocol,), {"header_timeout_s": timeout_s})


class _Protocol(H11Protocol):
    """Closes connections whose request headers do not arrive in time, however slowly their bytes trickle in."""

    header_timeout_s = HEADER_TIMEOUT_S
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._forget()
        elif self._late is None and self.timeout_keep_alive_task is None:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._late = self.loop.call_later(self.header_timeout_s, self._on_late)

    def _on_late(self) -> None:
        self._late = None
        if self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None:
            self.transport.close()

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
