"""Parts of the installation as processes of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil

from tests.conftest import ROOT
from tests.helpers.ports import free_port
from tests.serve.helpers.servers import PATIENCE_S, http, wait_until

MODEL = "videollama2-tiny"


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
            process.wait(PATIENCE_S)


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
        """Resident bytes of the process that listens, which may be a fork that :attr:`process` stands for."""
        listening = [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
        (pid,) = {each.pid for each in listening if each.laddr and each.laddr.port == self._port and each.pid}
        return psutil.Process(pid).memory_info().rss

    @property
    def _port(self) -> int:
        port = urlsplit(self.url).port
        assert port is not None
        return port

    def _is_listening(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)
        # A fork is killed a moment later. Before, whatever is started in its place would find its port taken.
        wait_until(lambda: not self._is_listening(), what=f"{self.arguments} gives back its port")

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


@dataclass(frozen=True)
class Installation:
    """A controller and its workers, each a process."""

    controller: Process
    workers: list[Process]
    folder: Path


def registered(installation: Installation) -> int:
    """Workers that the controller has."""
    seen: set[str] = set()
    for _ in range(2):
        try:
            reply = address_of(installation, MODEL, *seen)
        except httpx.HTTPError:
            return 0
        if reply.status_code != 200:
            break
        seen.add(reply.json()["address"])
    return len(seen)


def address_of(installation: Installation, model: str, *exclude: str) -> httpx.Response:
    """The controller's reply to the question which worker is to answer."""
    body = {"model": model, "exclude": list(exclude)}
    return http.post(f"{installation.controller.url}/get_worker_address", json=body)
