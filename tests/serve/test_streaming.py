"""Replies that are sent while they are made, events as they are written and read, and bodies counted as they come."""

import asyncio
import gc
import json
import random
import threading
import time

import pytest

from tests.serve.helpers.servers import PATIENCE_S, AppThread, http
from videollama2.serve.api.routes import CHAT, openai_router
from videollama2.serve.settings import Security
from videollama2.serve.web import sse, streaming
from videollama2.serve.web.app import make_app
from videollama2.serve.web.body import MAX_DEPTH, MAX_ITEMS, BodyScanner
from videollama2.serve.web.errors import ApiError, worker_failed
from videollama2.serve.web.server import keep_what_is_loaded
from videollama2.serve.web.streaming import EventStream, Splitter, Stream


async def sent(stream):
    """What a client receives that stays until the end."""
    found, leaving = [], asyncio.Event()

    async def send(message):
        found.append(message.get("body", b""))

    async def receive():
        await leaving.wait()

    await stream({}, receive, send)
    return b"".join(found)


def run(pieces, kind=EventStream, patience_s=None):
    async def all_of_it():
        return await sent(await kind.begin(pieces, patience_s))

    return asyncio.run(all_of_it())


async def failing(*pieces):
    for piece in pieces:
        yield piece
    raise worker_failed()


def test_an_error_before_the_first_piece_has_a_status_and_later_is_an_event():
    with pytest.raises(ApiError):
        run(failing())
    told = run(failing(sse.event({"a": 1})))
    assert told == sse.event({"a": 1}) + sse.event(worker_failed().body())


def test_a_stream_that_is_silent_is_kept_alive(monkeypatch):
    monkeypatch.setattr(streaming, "KEEP_ALIVE_S", 0.02)

    async def slow():
        await asyncio.sleep(0.1)
        yield b"data: 1\n\n"
        await asyncio.sleep(0.1)
        yield b"data: 2\n\n"

    told = run(slow())
    before, after = told.split(b"data: 1\n\n")
    assert sse.KEEP_ALIVE in before and sse.KEEP_ALIVE in after and after.endswith(b"data: 2\n\n")
    assert told.replace(sse.KEEP_ALIVE, b"") == b"data: 1\n\ndata: 2\n\n"


def test_an_error_after_a_comment_is_an_event(monkeypatch):
    monkeypatch.setattr(streaming, "KEEP_ALIVE_S", 0.02)

    async def slow():
        await asyncio.sleep(0.1)
        raise worker_failed()
        yield b""

    assert run(slow()).endswith(sse.event(worker_failed().body()))


def test_pieces_are_closed_when_the_client_leaves():
    closed = threading.Event()

    async def endless():
        try:
            while True:
                yield b"x"
                await asyncio.sleep(0)
        finally:
            closed.set()

    async def leave():
        async def receive():
            return {"type": "http.disconnect"}

        async def send(message):
            await asyncio.sleep(0)

        await (await Stream.begin(endless()))({}, receive, send)

    asyncio.run(leave())
    assert closed.is_set()


def test_events_are_read_as_they_were_written():
    events = [{"a": "ü\n"}, {"b": [1]}]

    async def chunks():
        content = sse.KEEP_ALIVE + b"".join(sse.event(one, "named") for one in events) + sse.DONE
        for at in range(0, len(content), 5):
            yield content[at : at + 5]

    async def read():
        return [one async for one in sse.read_events(chunks())]

    assert asyncio.run(read()) == events


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


# --------------------------------------------------------------------------------------------------------------- bodies


def pieces(chance):
    while True:
        yield chance.randint(1, 4)


def count(text, sizes):
    counter, at = BodyScanner(), 0
    data = text.encode()
    while at < len(data):
        size = next(sizes)
        counter.feed(data[at : at + size])
        at += size
    return counter.items, counter.depth


def test_values_are_counted_whatever_pieces_a_body_comes_in():
    value = {"a": ["[,{", "\\", '"', "\\\\", {"b": [[1, 2.5], None, "ü\n\\u00e4"]}], "": {}, "c": ',"]'}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        whole = count(text, iter([len(text) * 2]))
        assert whole == (6 + 9, 5), "opening brackets, and commas between values"
        for seed in range(50):
            assert count(text, pieces(random.Random(seed))) == whole


def test_bodies_of_too_many_values_and_levels_are_refused():
    for text, status in ((f"[{'0,' * MAX_ITEMS}0]", 413), ("[" * (MAX_DEPTH + 1), 400)):
        with pytest.raises(ApiError) as raised:
            count(text, iter(lambda: 1000, 0))
        assert raised.value.status == status
    count(json.dumps({"text": "[{," * MAX_ITEMS}), iter(lambda: 1000, 0))


class Echo:
    """Answers that only say that the request was valid."""

    async def lengths(self):
        return {"m": 1}

    async def answer(self, path, body, request):
        from fastapi import Response

        return Response("{}", media_type="application/json")


QUESTION = {"role": "user", "content": "hi"}
BODIES = {
    "stops": {"stop": [1] * 95_000},
    "messages": {"messages": [QUESTION] * 258_000},
    "unknown keys": {f"key{n}": 1 for n in range(258_000)},
    "metadata": {"metadata": {f"key{n}": "a" for n in range(258_000)}},
    "faulty messages": {"messages": [{"role": "user", "content": 5}] * 10_000},
    "messages that fit": {"messages": [QUESTION] * 2000},
    "parts that fit": {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 1000}] * 5},
    "keys that fit": {f"key{n}": 1 for n in range(30_000)},
    "backslashes": {"stop": "\\" * 10**6},
    "one long text": {"messages": [{"role": "user", "content": "a" * 10**7}]},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BODIES)
def test_no_body_holds_the_event_loop(name, longest_step_s):
    """The processor time of one round of the loop, which other work on the machine does not add to."""
    app = make_app("test", Security())
    app.include_router(openai_router(Echo()))
    content = json.dumps({"model": "m", "messages": [QUESTION], **BODIES[name]}).encode()
    worst, done = [0.0], threading.Event()

    async def watch():
        last = time.thread_time()
        while not done.is_set():
            await asyncio.sleep(0)
            now = time.thread_time()
            worst[0], last = max(worst[0], now - last), now

    keep_what_is_loaded()
    with AppThread(app) as server:
        http.post(server.url + CHAT, json={"model": "m", "messages": [QUESTION]})  # what is imported on the way is
        watching = asyncio.run_coroutine_threadsafe(watch(), server.loop)
        reply = http.post(server.url + CHAT, content=content, headers={"content-type": "application/json"})
        done.set()
        watching.result(PATIENCE_S)
    gc.unfreeze()
    assert reply.status_code in (200, 400, 413)
    assert worst[0] < longest_step_s, reply.text[:200]
