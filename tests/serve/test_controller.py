"""The controller over real sockets, with workers that misbehave."""

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.serve.servers import AppThread, StrangeWorker, begin, frames_of, http, reply, wait_until
from videollama2.serve.cluster.controller_app import WORKER_PATHS, Controller, make_controller_app
from videollama2.serve.cluster.registry import Registry
from videollama2.serve.cluster.worker_call import Patience
from videollama2.serve.legacy import frame
from videollama2.serve.settings import Security
from videollama2.serve.web.streaming import Splitter

HASTY = Patience(silence=0.15, probe=0.3, total=30)
"""For workers that hang. The others of this file say that they live when they are asked, however slow they are."""


def make(security=None, **registry):
    controller = Controller(Registry(**registry), security or Security(), HASTY)
    server = AppThread(make_controller_app(controller))
    server.controller = controller
    return server


@pytest.fixture(scope="module")
def shared():
    with make() as found:
        yield found


@pytest.fixture
def server(shared):
    """One controller for many tests: starting and ending one takes as long as a test."""
    wait_until(lambda: shared.app.state.gate.active == 0)
    for worker in shared.controller.registry.workers:
        shared.controller.registry.remove(worker.name)
    return shared


@pytest.fixture
def post(server):
    with httpx.Client(base_url=server.url, timeout=10, trust_env=False, verify=False) as client:
        yield lambda path, **body: client.post(path, json=body)


def register(post, worker, models=("m",), queue=0, speed=1.0):
    status = {"model_names": list(models), "speed": speed, "queue_length": queue}
    answer = post(
        "/register_worker", worker_name=getattr(worker, "url", worker), check_heart_beat=True, worker_status=status
    )
    assert answer.status_code == 200, answer.text


def answering(*texts):
    """A worker that answers with these frames."""

    async def behave(path, body, writer):
        if path == "/worker_get_status":
            await reply(writer, {"model_names": ["m"], "speed": 2.0, "queue_length": 1})
        elif path == "/health":
            await reply(writer, {})
        else:
            await begin(writer, *(frame({"text": text, "error_code": 0}) for text in texts))
            writer.write(b"0\r\n\r\n")
            await writer.drain()

    return behave


async def dying(path, body, writer):
    """Takes a request and is gone."""


async def dying_late(path, body, writer):
    if path == "/health":
        return await reply(writer, {})
    whole = frame({"text": "so far", "error_code": 0})
    return await begin(writer, whole, whole[:7])


async def hanging(path, body, writer):
    await asyncio.sleep(60)


async def full(path, body, writer):
    error = {"error": {"message": "too many", "type": "rate_limit_error", "code": "queue_full", "param": None}}
    await reply(writer, json.dumps(error).encode(), 429, "retry-after: 3\r\n")


def ask(post):
    return post("/worker_generate_stream", model="m", prompt="x")


def test_workers_come_and_go(post):
    assert post("/list_models").json() == {"models": []}
    register(post, "http://127.0.0.1:1001", ["b", "a"])
    register(post, "http://localhost:1002", ["c"], queue=3, speed=2.0)
    assert post("/list_models").json() == {"models": ["a", "b", "c"]}
    assert post("/list_multimodal_models").json() == {"models": ["a", "b", "c"]}
    assert post("/list_language_models").json() == {"models": []}
    assert post("/get_worker_address", model="c").json() == {"address": "http://localhost:1002"}
    assert post("/receive_heart_beat", worker_name="http://localhost:1002", queue_length=1).json() == {"exist": True}
    assert post("/receive_heart_beat", worker_name="http://localhost:9", queue_length=1).json() == {"exist": False}
    assert post("/worker_get_status").json() == {"model_names": ["a", "b", "c"], "speed": 3.0, "queue_length": 1}
    assert post("/unregister_worker", worker_name="http://localhost:1002").json() == {"exist": True}
    assert post("/list_models").json() == {"models": ["a", "b"]}


def test_silent_workers_expire():
    with make(expiry_s=0.3) as server, httpx.Client(base_url=server.url, trust_env=False, verify=False) as client:
        register(lambda path, **body: client.post(path, json=body), "http://127.0.0.1:1")
        wait_until(lambda: client.post("/list_models").json() == {"models": []})


def test_no_worker_is_told_at_once(post):
    start = time.monotonic()
    for answer in (ask(post), post("/get_worker_address", model="m")):
        assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
    assert time.monotonic() - start < HASTY.total, "no patience is needed for nobody"
    assert answer.json()["address"] == "", "what published clients look at"
    (only,) = frames_of(ask(post).content)
    assert only["error_code"] == 50005


def test_a_stream_is_passed_on(post):
    with StrangeWorker(answering("a", "ab", "abc")) as worker:
        register(post, worker)
        answer = ask(post)
        assert [item["text"] for item in frames_of(answer.content)] == ["a", "ab", "abc"]
        assert answer.headers["content-type"] == "application/octet-stream"


def test_a_worker_that_tells_nothing_of_itself_is_asked(post):
    with StrangeWorker(answering("a")) as worker, StrangeWorker(dying) as broken:
        assert post("/register_worker", worker_name=worker.url).status_code == 200
        assert post("/list_models").json() == {"models": ["m"]}
        assert post("/register_worker", worker_name=broken.url).status_code == 400


def test_refreshing_forgets_those_that_are_gone(post):
    with StrangeWorker(answering("a")) as worker:
        register(post, worker, ["old"])
        register(post, "http://127.0.0.1:9", ["gone"])
        assert post("/refresh_all_workers").json() == {"models": ["m"]}


@pytest.mark.parametrize("first", [dying, hanging, full, None], ids=["dies", "hangs", "full", "unreachable"])
def test_before_the_first_token_another_worker_is_tried(post, server, first):
    with StrangeWorker(first or dying) as bad, StrangeWorker(answering("good")) as good:
        if first is None:
            bad.close()
        register(post, bad)
        register(post, good, queue=5)  # the bad one is first in line
        answer = ask(post)
        assert [item["text"] for item in frames_of(answer.content)] == ["good"]
        if first is not None:
            assert "/worker_generate_stream" in bad.asked
        assert [item["text"] for item in frames_of(ask(post).content)] == ["good"]
        assert bad.asked.count("/worker_generate_stream") <= 1, "it is passed over for a while"
        wait_until(lambda: sorted(worker.queue for worker in server.controller.registry.workers) == [0, 5])


def test_after_the_first_token_there_is_one_clear_error(post, server):
    with StrangeWorker(dying_late) as bad, StrangeWorker(answering("good")) as good:
        register(post, bad)
        register(post, good, queue=5)
        first, error = frames_of(ask(post).content)
        assert first["text"] == "so far" and error["error_code"] == 50001 and "broke off" in error["text"]
        assert not good.asked
        wait_until(lambda: sorted(worker.queue for worker in server.controller.registry.workers) == [0, 5])


def test_when_all_are_full_their_word_is_passed_on(post):
    with StrangeWorker(full) as one, StrangeWorker(full) as two:
        register(post, one)
        register(post, two)
        answer = ask(post)
        assert answer.status_code == 429 and answer.headers["retry-after"] == "3"
        assert frames_of(answer.content)[0]["error_code"] == 42903
        assert one.asked and two.asked


def test_a_request_at_fault_is_not_tried_again(post):
    async def refusing(path, body, writer):
        await reply(writer, {"error": {"message": "no such media", "code": "invalid_media"}}, 400)

    with StrangeWorker(refusing) as one, StrangeWorker(answering("good")) as two:
        register(post, one)
        register(post, two, queue=5)
        answer = ask(post)
        assert answer.status_code == 400 and frames_of(answer.content)[0]["text"] == "no such media"
        assert not two.asked


def test_a_slow_worker_that_lives_is_waited_for(post):
    async def slow(path, body, writer):
        if path == "/health":
            await reply(writer, {"status": "ok"})
        else:
            await asyncio.sleep(0.6)
            await answering("late")(path, body, writer)

    with StrangeWorker(slow) as worker:
        register(post, worker)
        assert [item["text"] for item in frames_of(ask(post).content)] == ["late"]
        assert "/health" in worker.asked


def test_a_slow_worker_holds_nobody_back(server, post):
    async def waiting(path, body, writer):
        if path == "/health":
            await reply(writer, {})
        else:
            await asyncio.to_thread(go_on.wait, 60)
            await answering("late")(path, body, writer)

    go_on = threading.Event()
    with StrangeWorker(waiting) as worker, ThreadPoolExecutor(8) as pool:
        register(post, worker)
        url = server.url + "/worker_generate_stream"
        waits = [pool.submit(http.post, url, json={"model": "m", "prompt": "x"}, timeout=60) for _ in range(8)]
        wait_until(lambda: worker.asked.count("/worker_generate_stream") == 8)
        assert post("/list_models").json() == {"models": ["m"]}
        assert post("/worker_get_status").json()["queue_length"] == 8
        assert not any(wait.done() for wait in waits), "the others were answered while these wait"
        go_on.set()
        assert [frames_of(wait.result().content)[0]["text"] for wait in waits] == ["late"] * 8


def test_a_client_that_leaves_is_noticed_by_the_worker(server, post):
    async def endless(path, body, writer):
        await begin(writer, frame({"text": "a", "error_code": 0}))
        await asyncio.sleep(60)

    with StrangeWorker(endless) as worker:
        register(post, worker)
        body = {"model": "m", "prompt": "x"}
        with http.stream("POST", server.url + "/worker_generate_stream", json=body) as stream:
            assert frames_of(next(stream.iter_raw()))
        assert worker.left.wait(5)
        wait_until(lambda: server.controller.registry.workers[0].queue == 0)


def test_registrations_are_safe_side_by_side(server, post):
    def work(number):
        name = f"http://127.0.0.1:{2000 + number % 10}"
        with httpx.Client(base_url=server.url, timeout=20, trust_env=False, verify=False) as client:
            for _ in range(5):
                register(lambda path, **body: client.post(path, json=body), name, [f"m{number}"])
                client.post("/receive_heart_beat", json={"worker_name": name, "queue_length": 1})
                client.post("/get_worker_address", json={"model": f"m{number}"})
                client.post("/list_models")

    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(work, range(10))) == [None] * 10
    assert post("/list_models").json()["models"] == sorted(f"m{number}" for number in range(10))


# ----------------------------------------------------------------------------------------------------------- security


def test_every_route_needs_a_key_and_workers_the_token():
    security = Security(api_keys=("key",), worker_token="token")
    with make(security) as server, httpx.Client(base_url=server.url, trust_env=False, verify=False) as client:
        routes = client.get("/openapi.json", headers={"authorization": "Bearer key"}).json()["paths"]
        assert set(WORKER_PATHS) <= set(routes) and len(routes) > 10
        for path, methods in routes.items():
            for method in methods:
                status = client.request(method, path, json={}).status_code
                assert (status == 200) if path in ("/health", "/ready") else (status == 401), path
                with_key = client.request(method, path, json={}, headers={"authorization": "Bearer key"})
                assert (with_key.status_code == 401) is (path in WORKER_PATHS), path
                with_token = client.request(method, path, json={}, headers={"authorization": "Bearer token"})
                assert with_token.status_code != 401, path


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("http://169.254.169.254", 403),
        ("http://10.0.0.1:80", 403),
        ("http://192.168.1.1:80", 403),
        ("http://[::ffff:10.0.0.1]:80", 403),
        ("http://[fd00::1]:80", 403),
        ("http://1.1.1.1:80", 403),
        ("http://127.0.0.1:80/x", 400),
        ("http://a@127.0.0.1:80", 400),
        ("file:///etc/passwd", 400),
        ("127.0.0.1:80", 400),
        ("http://127.0.0.1:80 ", 400),
        ("http://127.0.0.1:80\r\nX: y", 400),
    ],
)
def test_a_forged_registration_is_refused(post, name, status):
    """Server-side request forgery by what registers as a worker."""
    answer = post("/register_worker", worker_name=name, worker_status={"model_names": ["m"]})
    assert answer.status_code == status, answer.text
    assert post("/list_models").json() == {"models": []}


@pytest.mark.parametrize("name", ["X-Forwarded-For", "Forwarded", "Via", "X-Real-IP"])
def test_registrations_through_a_proxy_need_the_token(server, name):
    body = {"worker_name": "http://127.0.0.1:1", "worker_status": {"model_names": ["m"]}}
    for value in ("127.0.0.1", "10.1.2.3"):
        reply = http.post(server.url + "/register_worker", json=body, headers={name: value})
        assert reply.status_code == 403 and not server.controller.registry.workers


def test_metrics(server, post):
    with StrangeWorker(answering("a")) as worker:
        register(post, worker, queue=2)
        assert ask(post).status_code == 200
        assert post("/worker_generate_stream", model="m").status_code == 400
        for path in ("/a/client's", "/word"):
            post(path)
        text = http.get(server.url + "/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(lines['videollama2:workers{model_name="m"}']) == 1
    assert float(lines['videollama2:workers_queue_length{model_name="m"}']) == 2
    count = 'videollama2:http_requests_total{path="%s",status="%s"}'
    assert float(lines[count % ("/worker_generate_stream", 200)]) >= 1
    assert float(lines[count % ("/worker_generate_stream", 400)]) >= 1
    assert float(lines[count % ("other", 404)]) >= 2 and "word" not in text


def test_follow_ups_go_where_their_picture_is_known(server, post):
    with StrangeWorker(answering("a")) as one, StrangeWorker(answering("b")) as two:
        register(post, one)
        register(post, two)
        told = set()
        for question in ("What?", "Where?", "Why?"):
            reply = post("/worker_generate_stream", model="m", prompt=question, images=["AAAA"])
            told.add(frames_of(reply.content)[-1]["text"])
        assert len(told) == 1
        addresses = {post("/get_worker_address", model="m", affinity="x").json()["address"] for _ in range(3)}
        assert len(addresses) == 1


def test_a_caller_from_elsewhere_is_refused():
    security = Security(worker_token="token", allowed_workers=("10.0.0.0/8",))
    with make(security) as server:
        headers = {"authorization": "Bearer token"}
        for path in ("/register_worker", "/receive_heart_beat", "/unregister_worker"):
            body = {"worker_name": "http://10.0.0.1:80", "worker_status": {"model_names": ["m"]}}
            answer = http.post(server.url + path, json=body, headers=headers)
            assert answer.status_code == 403 and answer.json()["error"]["code"] == "forbidden"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"worker_name": 5},
        {"worker_name": "http://127.0.0.1:1", "worker_status": {"model_names": []}},
        {"worker_name": "http://127.0.0.1:1", "worker_status": {"model_names": ["m"], "speed": 0}},
        {"worker_name": "http://127.0.0.1:1", "worker_status": {"model_names": ["a\nb"]}},
        {"worker_name": "http://127.0.0.1:1", "worker_status": {"model_names": ["m"], "queue_length": -1}},
        {"worker_name": "http://127.0.0.1:1", "worker_status": {"model_names": ["m"] * 65}},
    ],
)
def test_a_malformed_registration_is_refused(post, body):
    assert post("/register_worker", **body).status_code == 400


def test_workers_are_shown_the_token_and_not_the_clients_key():
    security = Security(api_keys=("key",), worker_token="token")
    with make(security) as server, StrangeWorker(answering("x")) as worker:
        body = {"worker_name": worker.url, "worker_status": {"model_names": ["m"]}}
        headers = {"authorization": "Bearer token"}
        assert http.post(server.url + "/register_worker", json=body, headers=headers).status_code == 200
        headers = {"authorization": "Bearer key", "x-request-id": "seen-1"}
        http.post(server.url + "/worker_generate_stream", json={"model": "m", "prompt": "x"}, headers=headers)
        (head,) = worker.heads
        assert "authorization: bearer token" in head and "x-request-id: seen-1" in head


# ------------------------------------------------------------------------------------------------------------ streams


def test_a_splitter_takes_any_pieces():
    data = b"one\0two\0\0three\0rest"
    for size in (1, 2, 3, 5, 100):
        splitter, parts = Splitter(b"\0"), []
        for start in range(0, len(data), size):
            parts += splitter.feed(data[start : start + size])
        assert parts == [b"one", b"two", b"", b"three"] and splitter.rest == b"rest"
    splitter, parts = Splitter(b"\n\n"), []
    for byte in b"a\n\nb\n\n\nc":
        parts += splitter.feed(bytes([byte]))
    assert parts == [b"a", b"b"] and splitter.rest == b"\nc"
