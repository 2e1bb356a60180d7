"""Asking through a controller: failover, errors, and answers that are read as they come."""

import asyncio
import json
import logging
import threading

import pytest

from tests.helpers.ports import free_port
from tests.serve.helpers.controllers import HASTY, ClockAhead, ControllerThread, register
from tests.serve.helpers.servers import PATIENCE_S, StrangeWorker, begin, reply
from videollama2.serve.cluster.client import ControllerClient
from videollama2.serve.cluster.failover import MOST_DEATHS
from videollama2.serve.cluster.worker_call import Patience
from videollama2.serve.settings import Security
from videollama2.serve.web.errors import ApiError

DONE = b"data: [DONE]\n\n"


def with_client(url, use, **options):
    """The result of ``use(client)``."""

    async def run():
        client = ControllerClient(url, **options)
        try:
            return await use(client)
        finally:
            await client.aclose()

    return asyncio.run(run())


async def read(client, stream=True, **fields):
    async with client.open_chat({"model": "m", "messages": [], "stream": stream, **fields}, "id-1") as chat:
        if not stream:
            return await chat.json()
        return b"".join([chunk async for chunk in chat])


def chunk(text):
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + b"\n\n"


def answering(*texts):
    async def behave(path, body, writer):
        if path == "/health":
            await reply(writer, {})
        elif json.loads(body)["stream"]:
            await begin(writer, *map(chunk, texts), DONE)
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        else:
            await reply(writer, {"text": "".join(texts)})

    return behave


async def dying(path, body, writer):
    """Takes a request and is gone."""


async def dying_late(path, body, writer):
    await begin(writer, chunk("so far"))


async def dying_within(path, body, writer):
    writer.write(b"HTTP/1.1 200 X\r\ncontent-length: 1000\r\n\r\n{")
    await writer.drain()


async def hanging(path, body, writer):
    await asyncio.sleep(60)


def test_what_parts_ask_all_the_time_is_not_logged(controller, caplog):
    """The API asks for models and lengths every few seconds; these lines would hide all others."""
    with caplog.at_level(logging.DEBUG, logger="videollama2.serve.web.guard"):
        assert with_client(controller.url, lambda client: client.lengths()) == {}
    records = [record for record in caplog.records if record.name == "videollama2.serve.web.guard"]
    assert records and all(record.levelno == logging.DEBUG for record in records), caplog.text


def test_models_and_addresses(controller):
    register(controller, "http://127.0.0.1:1", "a", "b")
    assert with_client(controller.url, lambda client: client.models()) == ["a", "b"]
    assert with_client(controller.url, lambda client: client.worker_address("a")) == "http://127.0.0.1:1"
    assert with_client(controller.url, lambda client: client.models(refresh=True)) == [], "it is not there"


def test_missing_models():
    clock = ClockAhead()
    with ControllerThread(clock=clock) as server:
        with pytest.raises(ApiError) as raised:
            with_client(server.url, read)
        assert (raised.value.status, raised.value.code) == (503, "no_worker") and raised.value.retry_after
        clock.ahead += server.registry.expiry_s
        register(server, "http://127.0.0.1:1")
        with pytest.raises(ApiError) as raised:
            with_client(server.url, lambda client: read(client, model="never"))
        assert (raised.value.status, raised.value.code) == (404, "model_not_found")


def test_without_the_token_the_list_is_the_last_one():
    with ControllerThread(Security(("key",), "token")) as server:
        url = server.url
        assert with_client(url, lambda client: client.models(refresh=True), credential="key") == []
        assert with_client(url, lambda client: client.models(refresh=True), credential="token") == []
        with pytest.raises(ApiError) as raised:
            with_client(url, lambda client: client.models(refresh=True), credential="wrong")
        assert raised.value.status == 401


def test_a_controller_that_is_away():
    for use in (lambda client: client.models(), read):
        with pytest.raises(ApiError) as raised:
            with_client(f"http://127.0.0.1:{free_port()}", use)
        assert (raised.value.status, raised.value.code) == (503, "unreachable")


def test_streams_and_whole_replies(controller):
    with StrangeWorker(answering("a", "b")) as worker:
        register(controller, worker)
        assert with_client(controller.url, read) == chunk("a") + chunk("b") + DONE
        assert with_client(controller.url, lambda client: read(client, stream=False)) == {"text": "ab"}
        assert "x-request-id: id-1" in worker.heads[0]


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("first", [dying, hanging, None], ids=["dies", "hangs", "unreachable"])
def test_before_the_first_token_another_worker_is_tried(controller, first, stream):
    async def twice(client):
        return [await read(client, stream), await read(client, stream)]

    with StrangeWorker(first or dying) as bad, StrangeWorker(answering("good")) as good:
        if first is None:
            bad.close()
        register(controller, bad)
        register(controller, good, queue=5)
        expected = chunk("good") + DONE if stream else {"text": "good"}
        options = {"patience": HASTY} if first is hanging else {}
        assert with_client(controller.url, twice, **options) == [expected] * 2
        assert bad.asked.count("/v1/chat/completions") <= 1, "it is passed over for a while"


def test_a_request_that_breaks_workers_is_not_taken_to_all_of_them(controller):
    workers = [StrangeWorker(dying) for _ in range(5)]
    try:
        for worker in workers:
            register(controller, worker)
        with pytest.raises(ApiError) as raised:
            with_client(controller.url, read)
        assert (raised.value.status, raised.value.code) == (502, "worker_failed")
        assert sum("/v1/chat/completions" in worker.asked for worker in workers) == MOST_DEATHS
    finally:
        for worker in workers:
            worker.close()


@pytest.mark.parametrize("stream", [True, False])
def test_a_worker_that_lives_and_never_answers_is_given_up_and_not_replaced(controller, stream):
    async def endless(path, body, writer):
        if path == "/health":
            await reply(writer, {})
        else:
            await asyncio.sleep(60)

    async def use():
        client = ControllerClient(controller.url, patience=Patience(connect=1, silence=0.1, probe=2, total=0.3))
        try:
            return await read(client, stream)
        finally:
            await client.aclose()

    with StrangeWorker(endless) as bad, StrangeWorker(answering("good")) as good:
        register(controller, bad)
        register(controller, good, queue=50)
        with pytest.raises(ApiError) as raised:
            asyncio.run(use())
        assert (raised.value.status, raised.value.code) == (504, "worker_timeout") and not good.asked


def test_questions_about_one_clip_go_to_one_worker(controller):
    workers = [StrangeWorker(answering("a")) for _ in range(3)]
    try:
        for worker in workers:
            register(controller, worker)
        media = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}

        async def use(client):
            for text in ("What?", "Where?", "Why?"):
                await read(client, messages=[{"role": "user", "content": [media, {"type": "text", "text": text}]}])

        with_client(controller.url, use)
        assert sorted(worker.asked.count("/v1/chat/completions") for worker in workers) == [0, 0, 3]
    finally:
        for worker in workers:
            worker.close()


def test_a_whole_reply_is_begun_anew_as_long_as_nothing_was_passed_on(controller):
    with StrangeWorker(dying_within) as bad, StrangeWorker(answering("good")) as good:
        register(controller, bad)
        register(controller, good, queue=5)
        assert with_client(controller.url, lambda client: read(client, stream=False)) == {"text": "good"}
        assert bad.asked


def test_after_the_first_token_there_is_one_clear_error(controller):
    seen = []

    async def use(client):
        async with client.open_chat({"model": "m", "messages": [], "stream": True}) as chat:
            async for piece in chat:
                seen.append(piece)

    with StrangeWorker(dying_late) as bad, StrangeWorker(answering("good")) as good:
        register(controller, bad)
        register(controller, good, queue=5)
        with pytest.raises(ApiError) as raised:
            with_client(controller.url, use)
        assert seen == [chunk("so far")] and raised.value.code == "worker_failed" and not good.asked


def test_a_worker_that_is_the_only_one_and_gone(controller):
    register(controller, f"http://127.0.0.1:{free_port()}")

    async def twice(client):
        for _ in range(2):
            with pytest.raises(ApiError) as raised:
                await read(client)
            assert (raised.value.status, raised.value.code) == (503, "no_worker")

    with_client(controller.url, twice)


@pytest.mark.parametrize("status", [400, 404, 413, 500])
def test_errors_of_the_request_are_passed_on(controller, status):
    async def refusing(path, body, writer):
        error = {"message": "told", "type": "t", "code": "c", "param": "p"}
        await reply(writer, {"error": error}, status)

    with StrangeWorker(refusing) as one, StrangeWorker(answering("good")) as two:
        register(controller, one)
        register(controller, two, queue=5)
        with pytest.raises(ApiError) as raised:
            with_client(controller.url, read)
        error = raised.value
        assert (error.status, error.message, error.type, error.code, error.param) == (status, "told", "t", "c", "p")
        assert not two.asked


def test_what_a_strange_worker_sends_is_no_fault_of_ours(controller):
    async def nonsense(path, body, writer):
        await reply(writer, b"not json")

    async def huge(path, body, writer):
        writer.write(b"HTTP/1.1 400 X\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(100):
            writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        await writer.drain()

    with StrangeWorker(nonsense) as worker:
        register(controller, worker)
        with pytest.raises(ApiError, match="broken answer"):
            with_client(controller.url, lambda client: read(client, stream=False))
    with StrangeWorker(huge) as worker:
        controller.registry.remove(controller.registry.workers[0].name)
        register(controller, worker)
        with pytest.raises(ApiError, match="status 400"):
            with_client(controller.url, read)


def test_leaving_a_stream_early_is_noticed_by_the_worker(controller):
    async def endless(path, body, writer):
        await begin(writer, chunk("a"))
        await asyncio.sleep(60)

    async def use(client):
        async with client.open_chat({"model": "m", "messages": [], "stream": True}) as chat:
            return await anext(aiter(chat))

    with StrangeWorker(endless) as worker:
        register(controller, worker)
        assert with_client(controller.url, use) == chunk("a")
        assert worker.left.wait(PATIENCE_S)


def test_many_streams_side_by_side(controller):
    go_on = threading.Event()

    async def together(path, body, writer):
        await begin(writer, chunk("a"))
        await asyncio.to_thread(go_on.wait, PATIENCE_S)
        await asyncio.sleep(0)
        writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(DONE), DONE))
        await writer.drain()

    async def use(client):
        waiting = [asyncio.ensure_future(read(client)) for _ in range(20)]
        await asyncio.sleep(0)
        go_on.set()
        return await asyncio.gather(*waiting)

    with StrangeWorker(together) as worker:
        register(controller, worker)
        assert with_client(controller.url, use) == [chunk("a") + DONE] * 20
