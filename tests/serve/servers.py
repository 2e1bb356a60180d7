"""Servers for tests: applications in a thread of their own, parts of the installation as processes, and a worker that
misbehaves as told."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from tests.conftest import ROOT
from videollama2.serve.web.server import bind, make_server

http = httpx.Client(timeout=10, trust_env=False, verify=False)
"""For single requests; nothing here speaks TLS, whose certificates take long to load."""


PATIENCE_S = 45.0
"""How long what must come soon may take on a machine that is busy; what would come by itself later takes longer."""


STATUS_PATH = "/worker_get_status"


def wait_until(holds: Callable[[], Any], seconds: float = PATIENCE_S, what: str = "") -> Any:
    """What ``holds`` returns once it is true."""
    deadline = time.monotonic() + seconds
    while True:
        found = holds()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds} s: {what or holds}"
        time.sleep(0.02)


class ClockAhead:
    """The clock of a controller, which a test can set ahead."""

    ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class AppThread:
    """An application as it is served, on a free port of loopback."""

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
        assert listening.wait(30)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self.server._running_loop

    def drain(self) -> None:
        self.loop.call_soon_threadsafe(self.server.begin_draining, "test")

    def join(self, seconds: float = 15.0) -> None:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the server did not end"

    def close(self) -> None:
        self.server.should_exit = True
        self._thread.join(15)

    def __enter__(self) -> AppThread:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@contextmanager
def running(command: list[str], log: Path, is_ready: Callable[[], bool], **environment: str) -> Iterator[None]:
    """Run a server until the end of the block, which begins when it is ready."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def tell() -> bool:
        assert process.poll() is None, log.read_text(errors="replace")[-4000:]
        return is_ready()

    try:
        wait_until(tell, 900, "the server is ready")
        yield
        process.send_signal(signal.SIGINT)
        process.wait(120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


class Process:
    """A part of the installation as its own process, with its log in a file."""

    def __init__(
        self,
        arguments: list[str],
        url: str,
        log: Path,
        environment: dict[str, str] | None = None,
        python: str | Path = sys.executable,
    ) -> None:
        self.arguments, self.url, self.log, self._python = arguments, url, log, python
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(environment or {})}
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [self._python, *self.arguments],
                cwd=ROOT,
                env=self._environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def ready(self, seconds: float = 240.0) -> Process:
        def is_ready() -> bool:
            assert self.process.poll() is None, f"{self.arguments} ended\n{self.tail()}"
            try:
                return http.get(self.url + "/ready", timeout=2).status_code == 200
            except httpx.HTTPError:
                return False

        wait_until(is_ready, seconds, f"{self.arguments} ready\n{self.tail()}")
        return self

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]

    def memory(self) -> int:
        """Resident bytes."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) << 10
        return 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()


def controller_process(log: Path, *flags: str, environment: dict[str, str] | None = None, port: int = 0) -> Process:
    port = port or free_port()
    arguments = ["-m", "videollama2.serve.controller", "--host", "127.0.0.1", "--port", str(port), *flags]
    return Process(arguments, f"http://127.0.0.1:{port}", log, environment)


def worker_process(
    log: Path,
    controller: str,
    *flags: str,
    environment: dict[str, str] | None = None,
    port: int = 0,
    python: str | Path = sys.executable,
) -> Process:
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    arguments = [
        "-m",
        "videollama2.serve.model_worker",
        "--host",
        "127.0.0.1",
        "--controller",
        controller,
        "--port",
        str(port),
        "--worker",
        url,
        "--model-path",
        "videollama2-tiny",
        "--decode-processes",
        "1",
        *flags,
    ]
    return Process(arguments, url, log, environment, python)


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
        assert self._started.wait(10)

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
        asyncio.run_coroutine_threadsafe(self._finish(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
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
