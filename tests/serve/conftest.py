"""Fixtures of the serving tests. Processes live for the session; what a test kills it starts again."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve.servers import AppThread, Process, controller_process, http, wait_until, worker_process
from videollama2.serve.settings import MediaPolicy, Security

MODEL = "videollama2-tiny"


class ServiceClient(httpx.Client):
    """A client that knows the service behind its server, which runs in this process."""

    service: Any


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment of the tests holds is not theirs."""
    monkeypatch.delenv("VIDEOLLAMA2_API_KEY", raising=False)
    monkeypatch.delenv("VIDEOLLAMA2_WORKER_TOKEN", raising=False)


@pytest.fixture(scope="session")
def tiny_engine() -> Iterator:
    """The tiny model's engine in this process, four answers at once."""
    from videollama2 import model_init
    from videollama2.inference.engine import Engine

    model, processor, _ = model_init(MODEL)
    with Engine(model, processor, max_batch=4, max_queue=8) as engine:
        yield engine


@pytest.fixture(scope="session")
def tiny_service(tiny_engine) -> Iterator:
    """A worker's service over it."""
    from videollama2.serve.untrusted_media.sandbox import Sandbox
    from videollama2.serve.worker.app import WorkerService

    policy = MediaPolicy(decode_processes=1)
    sandbox = Sandbox.of(policy, tiny_engine.processor)
    yield WorkerService(tiny_engine, MODEL, policy, sandbox)
    sandbox.close()


@pytest.fixture(scope="session")
def tiny_worker(tiny_service) -> Iterator[AppThread]:
    """That service as it is served."""
    from videollama2.serve.worker.app import make_worker_app

    with AppThread(make_worker_app(tiny_service, Security())) as server:
        yield server


@pytest.fixture(scope="module")
def chat() -> Iterator[ServiceClient]:
    """A client of a server with the tiny model."""
    from tests.serve.api_fixtures import live_chat

    with live_chat() as (server, service), ServiceClient(base_url=server.url, timeout=60, trust_env=False) as client:
        client.service = service
        yield client


@dataclass(frozen=True)
class Installation:
    """A controller and its workers, each a process."""

    controller: Process
    workers: list[Process]
    folder: Path


@pytest.fixture(scope="session")
def installation(tmp_path_factory, python_of_forks) -> Iterator[Installation]:
    """A controller and two workers as processes, with heart-beats that tests can wait for.

    The workers are forks of a process that has imported everything; tests kill the second one and start it again.
    """
    folder = tmp_path_factory.mktemp("installation")
    controller = controller_process(folder / "controller.log", "--expiry", "4")
    parts: list[Process] = [controller]
    try:
        for number in (1, 2):
            parts.append(
                worker_process(
                    folder / f"worker{number}.log",
                    controller.url,
                    "--heart-beat-interval",
                    "1",
                    "--limit-model-concurrency",
                    "16",
                    "--max-queue",
                    "128",
                    python=python_of_forks,
                )
            )
        for part in parts:
            part.ready()
        found = Installation(controller, parts[1:], folder)
        wait_until(lambda: registered(found) == 2, what="both workers register")
        # In its first seconds a controller cannot say that a model does not exist: its worker may not have registered.
        wait_until(lambda: address_of(found, "nobody").status_code == 404, what="the controller knows its models")
        yield found
    finally:
        for part in parts:
            part.close()


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
