"""Servers in this process: applications in a thread of their own, and a worker that misbehaves as told."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
from fastapi import FastAPI

from videollama2.serve.web.server import bind, make_server

if TYPE_CHECKING:
    from typing_extensions import Self

LOCAL: dict[str, Any] = {"trust_env": False, "verify": False}
"""Options of clients of servers on loopback: nothing here speaks TLS, whose certificates take 25 ms to load."""

PATIENCE_S = 45.0
"""How long what must come soon may take on a machine that is busy; what would come by itself later takes longer."""

http = httpx.Client(timeout=PATIENCE_S, **LOCAL)
"""For single requests."""

STATUS_PATH = "/worker_get_status"


def client_of(server: Any, **options: Any) -> httpx.Client:
    """A client of a server of these tests."""
    return httpx.Client(**{"base_url": server.url, "timeout": 60, **LOCAL, **options})


def wait_until(holds: Callable[[], Any], seconds: float = PATIENCE_S, what: str = "") -> Any:
    """What ``holds`` returns once it is true."""
    deadline = time.monotonic() + seconds
    while True:
        found = holds()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds} s: {what or holds}"
        time.sleep(0.02)


class AppThread:
    """An application as it is served, on a free port of loopback."""

    service: Any
    """What is behind it, where a fixture tells."""

    def __init__(self, app: FastAPI, **options: Any) -> None:
        listening = threading.Event()
        self.app = app
        self.server = make_server(app, on_listening=listening.set, **options)
        # Not socket.create_server: asyncio would let its answers wait for acknowledgements, 40 ms each.
        self._socket = bind("127.0.0.1", 0)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self.server.run, args=([self._socket],), daemon=True)
        self._thread.start()
        assert listening.wait(PATIENCE_S), "the server does not listen"

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        assert self.server._running_loop is not None
        return self.server._running_loop

    def drain(self) -> None:
        self.loop.call_soon_threadsafe(self.server.begin_draining, "test")

    def join(self, seconds: float = PATIENCE_S) -> None:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"the server of {self.app.title!r} did not end"

    def close(self) -> None:
        """Take no more connections and let running requests end; the thread of the server ends a moment later.

        It looks ten times a second whether it should, and again whether its connections are closed. A test that
        waited for this would wait longer than most take; :func:`join_ended` waits for all together.
        """
        if self._thread.is_alive() and not self.server.should_exit:
            asyncio.run_coroutine_threadsafe(self._end(), self.loop).result(PATIENCE_S)
        _ended[:] = [server for server in (*_ended, self) if server._thread.is_alive()]

    async def _end(self) -> None:
        for listening in self.server.servers:
            listening.close()
        deadline = time.monotonic() + (self.server.config.timeout_graceful_shutdown or 0)
        while self.app.state.gate.active and time.monotonic() < deadline:
            await asyncio.sleep(0.002)
        self.server.should_exit = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


_ended: list[AppThread] = []
"""Servers that have been closed and whose threads may not have ended yet."""


def join_ended() -> None:
    """Wait until the threads of all closed servers have ended."""
    while _ended:
        _ended.pop().join()


class StrangeWorker:
    """Something that speaks HTTP like a worker, and then does what ``behave`` does with the connection.

    ``behave`` gets the request's path, its body and a stream writer whose head is not sent yet.
    """

    def __init__(self, behave: Callable[[str, bytes, asyncio.StreamWriter], Any]) -> None:
        self._behave = behave
        self.asked: list[str] = []
        """Paths of requests, without the controller's own questions for the status, which come when it pleases."""
        self.heads: list[str] = []
        self.left = threading.Event()
        """A client has closed its connection before the reply was complete."""
        self.loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._started.wait(PATIENCE_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self._server = self.loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._started.set()
        self.loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ")[1].decode()
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            body = await reader.readexactly(int(lengths[0].split(b":")[1])) if lengths else b""
            if path != STATUS_PATH:
                self.asked.append(path)
            self.heads.append(head.decode("latin-1").lower())
            leaving = asyncio.ensure_future(reader.read())
            working = asyncio.ensure_future(self._behave(path, body, writer))
            await asyncio.wait({leaving, working}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                self.left.set()
                working.cancel()
            leaving.cancel()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _finish(self) -> None:
        """Ends every connection, so that no coroutine is left for the garbage collector to close.

        It would do so in the middle of whatever another test is doing, on a loop that no longer runs.
        """
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def close(self) -> None:
        if self.loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._finish(), self.loop).result(PATIENCE_S)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE_S)
        self.loop.close()

    def __enter__(self) -> StrangeWorker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


async def begin(writer: asyncio.StreamWriter, *chunks: bytes, status: int = 200) -> None:
    """A chunked reply that is not ended."""
    writer.write(b"HTTP/1.1 %d X\r\ntransfer-encoding: chunked\r\n\r\n" % status)
    for chunk in chunks:
        writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
    await writer.drain()


async def reply(
    writer: asyncio.StreamWriter, content: bytes | dict[str, Any], status: int = 200, head: str = ""
) -> None:
    """A whole reply."""
    content = json.dumps(content).encode() if isinstance(content, dict) else content
    writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(content)}\r\n{head}\r\n".encode() + content)
    await writer.drain()


def frames_of(content: bytes) -> list[dict[str, Any]]:
    """Objects of a ``\\0``-stream."""
    *parts, rest = content.split(b"\0")
    assert rest == b"", content[-200:]
    return [json.loads(part) for part in parts]
