"""Fixtures of the serving tests. Processes live for the session; what a test kills it starts again."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.helpers.timing import slowness
from tests.serve.helpers.chats import KEY, live_chat, openai_client, tiny
from tests.serve.helpers.controllers import ControllerThread
from tests.serve.helpers.media import picture, write
from tests.serve.helpers.processes import (
    MODEL,
    Installation,
    Process,
    address_of,
    controller_process,
    registered,
    worker_process,
)
from tests.serve.helpers.servers import LOCAL, AppThread, http, join_ended, wait_until
from tests.serve.helpers.web_apps import make
from videollama2.serve.settings import MediaPolicy, Security

if TYPE_CHECKING:  # where no page is shown, no torch is imported
    from tests.serve.helpers.pages import Browser, Open, RecordedEngine, Served, Visitor


class ServiceClient(httpx.Client):
    """A client that knows the service behind its server, which runs in this process."""

    service: Any


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment of the tests holds is not theirs."""
    monkeypatch.delenv("VIDEOLLAMA2_API_KEY", raising=False)
    monkeypatch.delenv("VIDEOLLAMA2_WORKER_TOKEN", raising=False)


@pytest.fixture(scope="session", autouse=True)
def ended_servers() -> Iterator[None]:
    """Every server that tests have closed must end."""
    yield
    join_ended()


@pytest.fixture(scope="session")
def longest_step_s() -> float:
    """Processor seconds that a server may work without letting other work run: 50 ms, and more on a slower machine."""
    return 0.05 * slowness()


# -------------------------------------------------------------------------------------------------------------- workers


@pytest.fixture(scope="session")
def tiny_engine() -> Iterator:
    """The tiny model's engine in this process, four answers at once."""
    from videollama2.inference.engine import Engine

    with Engine(*tiny(), max_batch=4, max_queue=8) as engine:
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


@pytest.fixture(scope="session")
def chat() -> Iterator[ServiceClient]:
    """A client of a server with the tiny model, which the tests of chat completions have in common."""
    with live_chat() as (server, service), ServiceClient(base_url=server.url, timeout=60, **LOCAL) as client:
        client.service = service
        yield client
        wait_until(lambda: sum(service.engine.load.values()) == 0, what="no answer is being computed any more")


@pytest.fixture(scope="session")
def keyed_chat() -> Iterator[AppThread]:
    """Another one, which wants a key."""
    with live_chat(security=Security(api_keys=(KEY,))) as (server, service):
        server.service = service
        yield server


@pytest.fixture(scope="session")
def keyed_client(keyed_chat: AppThread) -> Iterator[Any]:
    """OpenAI's own client of it."""
    with openai_client(keyed_chat, KEY) as found:
        yield found


@pytest.fixture(scope="session")
def shared_controller() -> Iterator[ControllerThread]:
    with ControllerThread() as found:
        yield found


@pytest.fixture
def controller(shared_controller: ControllerThread) -> ControllerThread:
    """A controller that knows no worker. There is one for all tests."""
    shared_controller.forget_workers()
    return shared_controller


@pytest.fixture
def post(controller: ControllerThread) -> Callable[..., httpx.Response]:
    """Sends a path of it what is given by name."""
    return lambda path, **body: http.post(controller.url + path, json=body)


@pytest.fixture(scope="session")
def media_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose files may be asked about, with a link that leads out of it and a file beside it."""
    folder = tmp_path_factory.mktemp("served") / "media"
    folder.mkdir()
    write(folder / "inside.png", picture())
    write(folder.parent / "outside.png", picture())
    (folder / "link.png").symlink_to(folder.parent / "outside.png")
    return folder


@pytest.fixture(scope="session")
def guarded_api(media_root: Path) -> Iterator[ServiceClient]:
    """A client of a server that may read that folder and fetch from two hosts."""
    changes = {"media_root": media_root, "allowed_hosts": frozenset({"localhost", "rebind.example"}), "max_frames": 32}
    with live_chat(**changes) as (server, service), ServiceClient(base_url=server.url, timeout=60, **LOCAL) as client:
        client.service = service
        yield client


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory, python_of_forks: Path) -> Iterator[Installation]:
    """A controller and two workers as processes, with heart-beats that tests can wait for.

    The workers are forks of a process that has imported everything; tests kill the second one and start it again.
    """
    folder = tmp_path_factory.mktemp("installation")
    controller = controller_process(folder / "controller.log", "--expiry", "4")
    parts: list[Process] = [controller]
    worker_flags = ("--heart-beat-interval", "1", "--limit-model-concurrency", "16", "--max-queue", "128")
    try:
        for number in (1, 2):
            log = folder / f"worker{number}.log"
            parts.append(worker_process(log, controller.url, *worker_flags, python=python_of_forks))
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


# ----------------------------------------------------------------------------------------------------- web applications


@pytest.fixture(scope="session")
def web_server() -> Iterator[AppThread]:
    """A small application with keys, see ``helpers/web_apps.py``."""
    with AppThread(make()) as found:
        yield found


@pytest.fixture(scope="session")
def web_client(web_server: AppThread) -> Iterator[httpx.Client]:
    """A client of it that shows a key."""
    headers = {"authorization": "Bearer alpha"}
    with httpx.Client(base_url=web_server.url, headers=headers, timeout=10, **LOCAL) as found:
        yield found


# ------------------------------------------------------------------------------------------------------------- the page


@pytest.fixture(scope="session")
def page_engine() -> Iterator[RecordedEngine]:
    """An engine that keeps its answers, and is slow where it is told to be."""
    from tests.serve.helpers.pages import TINY, RecordedEngine
    from videollama2 import model_init

    model, processor, _ = model_init(TINY)
    with RecordedEngine(model, processor, max_batch=4) as engine:
        model.lm_head.register_forward_hook(lambda *_: time.sleep(engine.step_seconds))
        yield engine


@pytest.fixture(scope="session")
def served(page_engine: RecordedEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The page that runs."""
    from tests.serve.helpers.pages import serve

    with serve(page_engine, tmp_path_factory.mktemp("page")) as page:
        yield page


_BROWSER = pytest.StashKey["tuple[ExitStack, Browser]"]()


@pytest.fixture
def browser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Browser:
    """A browser that tests which follow each other have in common, in whatever files they are."""
    from tests.serve.helpers.pages import open_browser

    stash = request.config.stash
    if _BROWSER not in stash:
        opened = ExitStack()
        stash[_BROWSER] = opened, opened.enter_context(open_browser(tmp_path_factory.mktemp("camera")))
    return stash[_BROWSER][1]


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Close the browser before a test that has none: while it runs, this thread can start no event loop."""
    if _BROWSER in item.config.stash and "browser" not in getattr(nextitem, "fixturenames", ()):
        opened, _ = item.config.stash[_BROWSER]
        del item.config.stash[_BROWSER]
        opened.close()


_HAS_PASSED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Generator[None, Any, Any]:
    report = yield
    if report.when == "call":
        item.stash[_HAS_PASSED] = report.passed
    return report


@pytest.fixture
def page(served: Served, browser: Browser, request: pytest.FixtureRequest) -> Iterator[Visitor]:
    """A page without a conversation. Tests that leave the advanced options alone have it in common.

    To open one takes the browser longer than most tests.
    """
    from tests.serve.helpers.pages import Visitor

    _reset(served)
    if browser.visitor is not None and browser.visitor.address != served.address:
        browser.visitor.close()
        browser.visitor = None
    if browser.visitor is None:
        browser.visitor = Visitor(browser, served.address)
    else:
        browser.visitor.begin_anew()
    yield browser.visitor
    _check(browser.visitor)
    if not request.node.stash.get(_HAS_PASSED, False):  # the next test shall not meet what this one has left
        browser.visitor.close()
        browser.visitor = None


@pytest.fixture
def visit(served: Served, browser: Browser) -> Iterator[Open]:
    """Opens the page; in the end, no visitor's browser may have asked anybody else for anything, nor met an error."""
    from tests.serve.helpers.pages import Visitor

    visitors: list[Visitor] = []

    def open_page(size: str = "desktop", **options: Any) -> Visitor:
        visitors.append(Visitor(browser, served.address, size, **options))
        return visitors[-1]

    _reset(served)
    yield open_page
    for visitor in visitors:
        visitor.close()
        _check(visitor)


def _reset(served: Served) -> None:
    from tests.serve.helpers.pages import LONG, TINY

    served.backend.names, served.backend.faults, served.backend.scripted = [TINY, LONG], [], ""
    served.engine.__dict__["answers"] = []


def _check(visitor: Visitor) -> None:
    assert visitor.outside() == [], "the browser has asked somebody else"
    assert visitor.faults == []
