"""What the application on Ray Serve does itself: retries, errors and metrics. No Ray is needed.

Replicas are web applications in this process that fail as told; the whole application is tested in ``test_ray.py``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="serving needs the extra serve")

from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp

from tests.serve.helpers.servers import AppThread
from videollama2.engines.ray.asgi import post
from videollama2.engines.ray.client import ReplicaClient, lost
from videollama2.engines.ray.metrics import ClusterMetrics, merged
from videollama2.engines.ray.routes import controller_router, without_request_id
from videollama2.serve.cluster.front import ApiFront, make_front_app
from videollama2.serve.cluster.protocol import WorkerStatus
from videollama2.serve.settings import Security
from videollama2.serve.web import sse
from videollama2.serve.web.errors import ApiError, shutting_down

MODEL = "tiny"
ASKED = {"model": MODEL, "messages": [{"role": "user", "content": "What?"}]}
FIRST = sse.event({"choices": [{"delta": {"content": "a"}}]})


class DiedError(Exception):
    """A replica's process has ended."""


async def dies(scope: Any, receive: Any, send: Any) -> None:
    raise DiedError("killed")


def answers(*pieces: bytes | type[Exception], status: int = 200) -> ASGIApp:
    """An application that streams these pieces, and dies where an exception stands."""

    async def stream() -> AsyncGenerator[bytes, None]:
        for piece in pieces:
            if not isinstance(piece, bytes):
                raise piece("killed")
            yield piece
            await asyncio.sleep(0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await StreamingResponse(stream(), status, media_type="text/event-stream")(scope, receive, send)

    return app


def refuses(error: ApiError) -> ASGIApp:
    return JSONResponse(error.body(), error.status, error.headers())


GOOD = answers(FIRST, sse.DONE)


class LocalReplicas:
    """Replicas in this process, of which each request takes the next; see ``client.Replicas``.

    Attributes:
        asked: what each attempt was sent: path, content, names of lost replicas, affinity.
    """

    def __init__(self, *apps: ASGIApp) -> None:
        self.apps = list(apps)
        self.asked: list[tuple[str, bytes, tuple[str, ...], str | None]] = []

    def answer(
        self, path: str, content: bytes, request_id: str, tried: Sequence[str], affinity: str | None
    ) -> LocalAnswer:
        self.asked.append((path, content, tuple(tried), affinity))
        number = min(len(self.asked), len(self.apps)) - 1
        return LocalAnswer(f"replica-{number}", post(self.apps[number], path, content, {}))

    async def status(self) -> WorkerStatus:
        return WorkerStatus(model_names=[MODEL], max_model_len=512, kinds=["image"])

    def fault(self, error: BaseException, replica: str | None) -> Exception | None:
        return lost(error, replica) if isinstance(error, DiedError) else None


class LocalAnswer:
    def __init__(self, name: str, items: AsyncGenerator[Any, None]) -> None:
        self._items = self._all(name, items)

    async def _all(self, name: str, items: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
        if name:
            yield name
        async with aclosing(items):
            async for item in items:
                yield item

    async def __anext__(self) -> Any:
        return await anext(self._items)

    def cancel(self) -> None:
        closing = asyncio.ensure_future(self._items.aclose())
        closing.add_done_callback(lambda done: done.exception())


@pytest.fixture(scope="module")
def api() -> Iterator[tuple[httpx.Client, LocalReplicas]]:
    replicas = LocalReplicas()
    client = ReplicaClient({MODEL: replicas})
    app = make_front_app(ApiFront(client), Security())
    app.include_router(controller_router(client))
    server = AppThread(app)
    try:
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as http:
            yield http, replicas
    finally:
        server.close()


Front = Callable[..., tuple[httpx.Client, LocalReplicas]]


@pytest.fixture
def front(api: tuple[httpx.Client, LocalReplicas]) -> Front:
    """Returns the API in front of these replicas."""

    def made(*apps: ASGIApp) -> tuple[httpx.Client, LocalReplicas]:
        http, replicas = api
        replicas.apps, replicas.asked = list(apps), []
        return http, replicas

    return made


def asked(http: httpx.Client, **fields: Any) -> httpx.Response:
    return http.post("/v1/chat/completions", json={**ASKED, **fields})


def error(reply: httpx.Response, status: int) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    return reply.json()["error"]


# ------------------------------------------------------------------------------------------------------------- retries


@pytest.mark.parametrize(
    "first",
    [dies, answers(DiedError), answers(sse.KEEP_ALIVE, DiedError), refuses(shutting_down())],
    ids=["at once", "before the first token", "after a keep-alive comment", "shutting down"],
)
def test_a_request_that_a_replica_lost_is_tried_again(front: Front, first: ASGIApp) -> None:
    http, replicas = front(first, GOOD)
    reply = asked(http, stream=True)
    assert (reply.status_code, reply.content) == (200, FIRST + sse.DONE)
    (path, content, _, affinity), again = replicas.asked
    assert again == (path, content, ("replica-0",), affinity) and affinity
    assert (path, json.loads(content)) == ("/v1/chat/completions", {**ASKED, "stream": True})


def test_a_whole_answer_is_tried_again_until_it_is_complete(front: Front) -> None:
    http, replicas = front(answers(b'{"a":', DiedError), answers(b'{"a": 1}'))
    assert asked(http).json() == {"a": 1}
    assert len(replicas.asked) == 2


def test_after_the_first_token_the_stream_ends_with_one_error_event(front: Front) -> None:
    http, replicas = front(answers(FIRST, b"data: {", DiedError), GOOD)
    reply = asked(http, stream=True)
    assert reply.status_code == 200 and len(replicas.asked) == 1
    first, last = reply.content.removesuffix(sse.SEPARATOR).split(sse.SEPARATOR)
    assert first + sse.SEPARATOR == FIRST
    told = json.loads(last.removeprefix(b"data: "))["error"]
    assert (told["code"], told["type"]) == ("worker_failed", "server_error")


def test_a_request_that_kills_replicas_does_not_reach_them_all(front: Front) -> None:
    http, replicas = front(dies)
    assert error(asked(http), 502)["code"] == "worker_failed"
    assert len(replicas.asked) == 3


def test_errors_of_the_request_are_passed_on(front: Front) -> None:
    refusal = ApiError(400, "too long", code="context_length_exceeded", param="messages")
    http, replicas = front(refuses(refusal))
    assert error(asked(http, stream=True), 400) == refusal.body()["error"]
    assert len(replicas.asked) == 1
    assert error(asked(http, model="none"), 404)["code"] == "model_not_found"


def test_a_request_waits_for_a_replica_and_not_for_ever() -> None:
    async def no_replica() -> None:
        client = ReplicaClient({MODEL: _Nobody()}, queue_s=0.01)
        async with client.open_chat(ASKED):
            pass

    with pytest.raises(ApiError) as raised:
        asyncio.run(no_replica())
    assert (raised.value.status, raised.value.code) == (503, "no_worker")


def test_without_any_replica_nothing_is_ready() -> None:
    with pytest.raises(ApiError) as raised:
        asyncio.run(ReplicaClient({MODEL: _Nobody()}).lengths())
    assert raised.value.code == "no_worker"


class _Nobody(LocalReplicas):
    async def status(self) -> WorkerStatus:
        raise DiedError("killed")

    def answer(self, *_: Any) -> LocalAnswer:
        async def never() -> AsyncGenerator[Any, None]:
            await asyncio.Event().wait()
            yield None

        return LocalAnswer("", never())


def test_leaving_stops_the_answer() -> None:
    async def leave() -> int:
        async def endless() -> AsyncGenerator[bytes, None]:
            yield FIRST
            await asyncio.Event().wait()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            try:
                await StreamingResponse(endless())(scope, receive, send)
            finally:
                ended.set()

        ended = asyncio.Event()
        client = ReplicaClient({MODEL: LocalReplicas(app)})
        async with client.open_chat({**ASKED, "stream": True}) as stream:
            assert await anext(aiter(stream)) == FIRST
        await asyncio.wait_for(ended.wait(), 10)
        return stream.status

    assert asyncio.run(leave()) == 200


def test_facts_of_the_models(front: Front) -> None:
    http, _ = front(GOOD)
    (model,) = http.get("/v1/models").json()["data"]
    assert (model["id"], model["max_model_len"]) == (MODEL, 512)
    assert http.post("/list_models").json() == {"models": [MODEL]}
    assert http.post("/list_max_model_lens").json() == {"max_model_lens": {MODEL: 512}}
    assert http.post("/get_worker_address", json={"model": MODEL}).json() == {"address": str(http.base_url)}
    assert error(http.post("/get_worker_address", json={"model": "x"}), 404)["code"] == "model_not_found"
    assert http.post("/worker_get_status").json()["kinds"] == ["image"]


def test_serve_adds_the_request_id() -> None:
    async def heads() -> list[dict[str, str]]:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await Response(b"", headers={"x-request-id": "a", "x-other": "b"})(scope, receive, send)

        replies = (post(each, "/", b"", {}) for each in (app, without_request_id(app)))
        return [item[1] for reply in replies async for item in reply]

    before, after = asyncio.run(heads())
    assert before["x-request-id"] == "a" and "x-request-id" not in after and after["x-other"] == "b"


def test_pieces_that_wait_are_taken_together() -> None:
    async def pieces() -> list[Any]:
        found = []
        async for item in post(answers(*[b"a"] * 100), "/", b"", {}):
            found.append(item)
            await asyncio.sleep(0.001)
        return found

    (status, _), *body = asyncio.run(pieces())
    assert status == 200 and b"".join(body) == b"a" * 100 and len(body) < 100


# ------------------------------------------------------------------------------------------------------------- metrics


def test_one_page_of_metrics_for_all_processes() -> None:
    async def others() -> dict[str, bytes]:
        return {name: metrics.expose() for name, metrics in processes.items()}

    processes = {name: ClusterMetrics(others) for name in ("a", "b")}
    for number, metrics in enumerate(processes.values()):
        metrics.paths = ("/x",)
        for _ in range(number + 1):
            metrics.seen("/x", 200, 0.1)
    page = asyncio.run(processes["a"].page()).decode()
    line = 'videollama2:http_requests_total{{path="/x",replica="{}",status="200"}} {}.0'
    assert line.format("a", 1) in page and line.format("b", 2) in page
    assert page.count("# TYPE videollama2:http_requests_total counter") == 1
    assert page.count("# TYPE videollama2:http_request_duration_seconds histogram") == 1
    assert merged({}) == b""
