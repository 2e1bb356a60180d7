"""The controller over real sockets, with workers that misbehave."""

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.serve.helpers.controllers import HASTY, ControllerThread, answering_frames, register
from tests.serve.helpers.servers import PATIENCE_S, StrangeWorker, begin, client_of, frames_of, http, reply, wait_until
from videollama2.serve.cluster.worker_call import Patience
from videollama2.serve.legacy import frame


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


def ask(server):
    return http.post(server.url + "/worker_generate_stream", json={"model": "m", "prompt": "x"})


def test_workers_come_and_go(controller, post):
    assert post("/list_models").json() == {"models": []}
    register(controller, "http://127.0.0.1:1001", "b", "a")
    register(controller, "http://localhost:1002", "c", queue=3, speed=2.0)
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
    with ControllerThread(expiry_s=0.3) as server, client_of(server) as client:
        register(server, "http://127.0.0.1:1", beats=True)
        wait_until(lambda: client.post("/list_models").json() == {"models": []})


def test_no_worker_is_told_at_once(controller, post):
    start = time.monotonic()
    for answer in (ask(controller), post("/get_worker_address", model="m")):
        assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
    assert time.monotonic() - start < HASTY.total, "no patience is needed for nobody"
    assert answer.json()["address"] == "", "what published clients look at"
    (only,) = frames_of(ask(controller).content)
    assert only["error_code"] == 50005


def test_a_stream_is_passed_on(controller):
    with StrangeWorker(answering_frames("a", "ab", "abc")) as worker:
        register(controller, worker)
        answer = ask(controller)
        assert [item["text"] for item in frames_of(answer.content)] == ["a", "ab", "abc"]
        assert answer.headers["content-type"] == "application/octet-stream"


def test_a_worker_that_tells_nothing_of_itself_is_asked(post):
    with StrangeWorker(answering_frames("a")) as worker, StrangeWorker(dying) as broken:
        assert post("/register_worker", worker_name=worker.url).status_code == 200
        assert post("/list_models").json() == {"models": ["m"]}
        assert post("/register_worker", worker_name=broken.url).status_code == 400


def test_refreshing_forgets_those_that_are_gone(controller, post):
    with StrangeWorker(answering_frames("a")) as worker:
        register(controller, worker, "old")
        register(controller, "http://127.0.0.1:9", "gone")
        assert post("/refresh_all_workers").json() == {"models": ["m"]}


@pytest.mark.slow
@pytest.mark.parametrize("first", [dying, hanging, full, None], ids=["dies", "hangs", "full", "unreachable"])
def test_before_the_first_token_another_worker_is_tried(first):
    patience = HASTY if first is hanging else None
    with (
        ControllerThread(patience=patience) as controller,
        StrangeWorker(first or dying) as bad,
        StrangeWorker(answering_frames("good")) as good,
    ):
        if first is None:
            bad.close()
        register(controller, bad)
        register(controller, good, queue=5)  # the bad one is first in line
        answer = ask(controller)
        assert [item["text"] for item in frames_of(answer.content)] == ["good"]
        if first is not None:
            assert "/worker_generate_stream" in bad.asked
        assert [item["text"] for item in frames_of(ask(controller).content)] == ["good"]
        assert bad.asked.count("/worker_generate_stream") <= 1, "it is passed over for a while"
        wait_until(lambda: sorted(worker.queue for worker in controller.registry.workers) == [0, 5])


def test_after_the_first_token_there_is_one_clear_error(controller):
    with StrangeWorker(dying_late) as bad, StrangeWorker(answering_frames("good")) as good:
        register(controller, bad)
        register(controller, good, queue=5)
        first, error = frames_of(ask(controller).content)
        assert first["text"] == "so far" and error["error_code"] == 50001 and "broke off" in error["text"]
        assert not good.asked
        wait_until(lambda: sorted(worker.queue for worker in controller.registry.workers) == [0, 5])


def test_when_all_are_full_their_word_is_passed_on(controller):
    with StrangeWorker(full) as one, StrangeWorker(full) as two:
        register(controller, one)
        register(controller, two)
        answer = ask(controller)
        assert answer.status_code == 429 and answer.headers["retry-after"] == "3"
        assert frames_of(answer.content)[0]["error_code"] == 42903
        assert one.asked and two.asked


def test_a_request_at_fault_is_not_tried_again(controller):
    async def refusing(path, body, writer):
        await reply(writer, {"error": {"message": "no such media", "code": "invalid_media"}}, 400)

    with StrangeWorker(refusing) as one, StrangeWorker(answering_frames("good")) as two:
        register(controller, one)
        register(controller, two, queue=5)
        answer = ask(controller)
        assert answer.status_code == 400 and frames_of(answer.content)[0]["text"] == "no such media"
        assert not two.asked


def test_a_slow_worker_that_lives_is_waited_for():
    async def slow(path, body, writer):
        if path == "/health":
            await reply(writer, {"status": "ok"})
            was_asked.set()
        else:
            await asyncio.wait_for(was_asked.wait(), PATIENCE_S)
            await answering_frames("late")(path, body, writer)

    was_asked = asyncio.Event()
    with ControllerThread(patience=Patience(silence=0.1, total=30)) as controller, StrangeWorker(slow) as worker:
        register(controller, worker)
        assert [item["text"] for item in frames_of(ask(controller).content)] == ["late"]
        assert "/health" in worker.asked


def test_a_slow_worker_holds_nobody_back(controller, post):
    async def waiting(path, body, writer):
        if path == "/health":
            await reply(writer, {})
        else:
            await asyncio.to_thread(go_on.wait, 60)
            await answering_frames("late")(path, body, writer)

    go_on = threading.Event()
    with StrangeWorker(waiting) as worker, ThreadPoolExecutor(8) as pool:
        register(controller, worker)
        url = controller.url + "/worker_generate_stream"
        waits = [pool.submit(http.post, url, json={"model": "m", "prompt": "x"}, timeout=60) for _ in range(8)]
        wait_until(lambda: worker.asked.count("/worker_generate_stream") == 8)
        assert post("/list_models").json() == {"models": ["m"]}
        assert post("/worker_get_status").json()["queue_length"] == 8
        assert not any(wait.done() for wait in waits), "the others were answered while these wait"
        go_on.set()
        assert [frames_of(wait.result(PATIENCE_S).content)[0]["text"] for wait in waits] == ["late"] * 8


def test_a_client_that_leaves_is_noticed_by_the_worker(controller):
    async def endless(path, body, writer):
        await begin(writer, frame({"text": "a", "error_code": 0}))
        await asyncio.sleep(60)

    with StrangeWorker(endless) as worker:
        register(controller, worker)
        body = {"model": "m", "prompt": "x"}
        with http.stream("POST", controller.url + "/worker_generate_stream", json=body) as stream:
            assert frames_of(next(stream.iter_raw()))
        assert worker.left.wait(PATIENCE_S)
        wait_until(lambda: controller.registry.workers[0].queue == 0)


@pytest.mark.slow
def test_registrations_are_safe_side_by_side(controller, post):
    def work(number):
        name = f"http://127.0.0.1:{2000 + number % 10}"
        with client_of(controller, timeout=20) as client:
            for _ in range(5):
                register(controller, name, f"m{number}")
                client.post("/receive_heart_beat", json={"worker_name": name, "queue_length": 1})
                client.post("/get_worker_address", json={"model": f"m{number}"})
                client.post("/list_models")

    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(work, range(10))) == [None] * 10
    assert post("/list_models").json()["models"] == sorted(f"m{number}" for number in range(10))


def test_metrics(controller, post):
    with StrangeWorker(answering_frames("a")) as worker:
        register(controller, worker, queue=2)
        assert ask(controller).status_code == 200
        assert post("/worker_generate_stream", model="m").status_code == 400
        for path in ("/a/client's", "/word"):
            post(path)
        text = http.get(controller.url + "/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(lines['videollama2:workers{model_name="m"}']) == 1
    assert float(lines['videollama2:workers_queue_length{model_name="m"}']) == 2
    count = 'videollama2:http_requests_total{path="%s",status="%s"}'
    assert float(lines[count % ("/worker_generate_stream", 200)]) >= 1
    assert float(lines[count % ("/worker_generate_stream", 400)]) >= 1
    assert float(lines[count % ("other", 404)]) >= 2 and "word" not in text


def test_follow_ups_go_where_their_picture_is_known(controller, post):
    with StrangeWorker(answering_frames("a")) as one, StrangeWorker(answering_frames("b")) as two:
        register(controller, one)
        register(controller, two)
        told = set()
        for question in ("What?", "Where?", "Why?"):
            reply = post("/worker_generate_stream", model="m", prompt=question, images=["AAAA"])
            told.add(frames_of(reply.content)[-1]["text"])
        assert len(told) == 1
        addresses = {post("/get_worker_address", model="m", affinity="x").json()["address"] for _ in range(3)}
        assert len(addresses) == 1
