"""Chat completions under load: what is bounded, who waits, and clients who leave."""

import concurrent.futures
import json
import socket
import threading

import pytest

from tests.serve.helpers.chats import PATH, answer, ask, live_chat, tiny_engine
from tests.serve.helpers.media import data_url, film, text_part, user, video_part
from tests.serve.helpers.servers import PATIENCE_S, client_of, wait_until
from videollama2.serve.worker.budget import Budget, WaitingBudget
from videollama2.serve.worker.service import ChatLimits

# --------------------------------------------------------------------------------------------------------------- bounds


def test_a_full_queue_is_a_429():
    engine = tiny_engine(max_batch=1, max_queue=1)
    with live_chat(engine) as (server, service), client_of(server) as client:
        body = {"model": "tiny", "messages": [user("Tell me")], "stream": True, "min_tokens": 900, "max_tokens": 900}
        with client.stream("POST", PATH, json=body) as running:
            lines = running.iter_lines()  # kept: a stream whose reader is gone is closed
            next(lines)
            waiting = engine.submit("wait", min_new_tokens=900, max_new_tokens=900)
            reply = ask(client, "x")
            assert reply.status_code == 429
            assert reply.json()["error"]["type"] == "rate_limit_error"
            assert int(reply.headers["retry-after"]) >= 1
            # n answers that do not all find room are none.
            waiting.cancel()
            wait_until(lambda: not engine.load["waiting"])
            assert ask(client, "x", n=3, temperature=1.0).status_code == 429
            wait_until(lambda: engine.load["waiting"] == 0)


def test_requests_that_are_being_prepared_are_bounded():
    with live_chat(limits=ChatLimits(max_requests=1)) as (server, service):
        service.preparing = 1
        with client_of(server) as client:
            assert ask(client, "x").status_code == 429
            service.preparing = 0
            assert ask(client, "x").status_code == 200


@pytest.mark.slow
def test_frames_of_running_answers_are_bounded_and_given_back():
    with (
        live_chat(limits=ChatLimits(max_frame_bytes=60_000)) as (server, service),
        client_of(server) as client,
    ):
        parts = [video_part(film()), text_part("what?")]  # 8 frames of 48 x 64 x 3
        body = {"model": "tiny", "messages": [user(*parts)], "stream": True, "min_tokens": 900, "max_tokens": 900}
        with client.stream("POST", PATH, json=body) as running:
            lines = running.iter_lines()  # kept: a stream whose reader is gone is closed
            next(lines)
            assert service.frames.used > 30_000
            reply = ask(client, *parts)
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "overloaded")
            assert ask(client, "text needs none").status_code == 200
        wait_until(lambda: service.frames.used == 0)
        assert ask(client, *parts).status_code == 200
        wait_until(lambda: service.frames.used == 0)


def test_raw_bytes_wait_their_turn():
    import asyncio

    async def main():
        budget, log = WaitingBudget(10), []

        async def hold(name, count, until):
            async with budget.hold(count):
                log.append(name)
                await until.wait()

        gates = [asyncio.Event() for _ in range(4)]
        tasks = [
            asyncio.ensure_future(hold(name, count, gate))
            for name, count, gate in zip("abcd", (6, 6, 2, 99), gates, strict=True)
        ]
        await asyncio.sleep(0)
        assert log == ["a"]  # c would fit, but comes after b
        tasks[1].cancel()
        await asyncio.wait([tasks[1]])
        await asyncio.sleep(0)
        assert log == ["a", "c"]
        for gate in gates:
            gate.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert log == ["a", "c", "d"]  # more than all counts as all
        assert budget.used == 0

    asyncio.run(main())


def test_a_budget_takes_one_that_is_too_large_alone():
    budget = Budget(10)
    assert budget.take(50)
    assert not budget.take(1)
    budget.give_back(50)
    assert budget.take(10)


# ---------------------------------------------------------------------------------------------------- clients who leave


def idle(service):
    return sum(service.engine.load.values()) == 0


def send_raw(server, body):
    """A request over a socket of our own, which can be closed at any moment."""
    data = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_whoever_leaves_frees_the_slot(stream, n):
    with live_chat() as (server, service):
        answers, submit = [], service.engine.submit
        service.engine.submit = lambda *args, **options: answers.append(submit(*args, **options)) or answers[-1]
        body = {
            "model": "tiny",
            "messages": [user("Tell me")],
            "stream": stream,
            "min_tokens": 900,
            "max_tokens": 900,
            "n": n,
            "temperature": 1.0,
        }
        connection = send_raw(server, body)
        wait_until(lambda: service.engine.load["decoding"] == n)
        if stream:
            connection.recv(100)
        connection.close()
        wait_until(lambda: idle(service))
        assert [answer.result(PATIENCE_S).finish_reason for answer in answers] == ["cancelled"] * n


def test_whoever_leaves_while_media_are_fetched_ends_that():
    with socket.create_server(("127.0.0.1", 0)) as slow:
        slow.settimeout(PATIENCE_S)
        port = slow.getsockname()[1]
        allowed = frozenset({f"127.0.0.1:{port}"})
        with live_chat(allowed_hosts=allowed, fetch_timeout_s=60.0) as (server, service):
            url = f"http://127.0.0.1:{port}/x"
            part = {"type": "image_url", "image_url": {"url": url}}
            connection = send_raw(server, {"model": "tiny", "messages": [user(part, text_part("x"))]})
            fetching, _ = slow.accept()
            fetching.settimeout(PATIENCE_S)
            assert service.preparing == 1
            connection.close()
            while fetching.recv(4096):
                pass  # the server hangs up
            wait_until(lambda: service.preparing == 0)
            fetching.close()


# ----------------------------------------------------------------------------------------------------------------- keys


@pytest.mark.slow
def test_many_clients_at_once(chat):
    """Greedy answers do not depend on who else asks."""
    questions = [f"How many shapes are there in number {number}?" for number in range(12)]
    url = data_url(film(), "video/mp4")
    part = {"type": "video_url", "video_url": {"url": url}}
    alone = [answer(chat, part, text_part(question)) for question in questions]
    barrier = threading.Barrier(len(questions), timeout=PATIENCE_S)

    def one(question):
        barrier.wait()
        return answer(chat, part, text_part(question))

    with concurrent.futures.ThreadPoolExecutor(len(questions)) as pool:
        assert list(pool.map(one, questions)) == alone
