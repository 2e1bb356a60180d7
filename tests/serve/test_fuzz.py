"""Requests and media that nobody would make on purpose: no fault of the server, no crash, no hang."""

import json
import random
import struct

import pytest

from tests.serve.helpers.chats import live_chat
from tests.serve.helpers.media import film, image_part, picture, text_part, user, video_part
from tests.serve.helpers.servers import client_of

hypothesis = pytest.importorskip("hypothesis")
schemathesis = pytest.importorskip("schemathesis")
# Schemathesis is a plugin of pytest, which rewrites its modules as they are imported. All of it is imported here, where
# no server runs yet: Python 3.11 cannot parse a module while the garbage collector makes it print a traceback.
pytest.importorskip("schemathesis.specs.openapi.schemas")

PATH = "/v1/chat/completions"
REQUESTS, BROKEN_REQUESTS, MUTANTS = 20, 15, 100
SETTINGS = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(hypothesis.HealthCheck),
    "phases": [hypothesis.Phase.generate],
}


@pytest.fixture(scope="module")
def api():
    changes = {"max_pixels": 500_000, "max_frames": 16, "decode_timeout_s": 10.0}
    with live_chat(**changes) as (server, service), client_of(server, timeout=30) as client:
        client.app, client.service = server.app, service
        yield client
        assert sum(service.engine.load.values()) == 0
        assert service.preparing == 0


def check(reply):
    """Whatever was asked: an answer, or an error of OpenAI's form that is the client's fault."""
    assert reply.status_code < 500, reply.text
    assert "Traceback" not in reply.text
    if reply.status_code != 200:
        error = reply.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]


def body_of(case):
    """What the case would send; short answers keep the run short."""
    body = case.body
    if isinstance(body, dict):
        body = {**body, "model": "tiny"} if "model" in body and isinstance(body["model"], str) else body
        if isinstance(body.get("n"), int):
            body["n"] = min(body["n"], 2)
        for message in body["messages"] if isinstance(body.get("messages"), list) else ():
            if isinstance(message, dict) and not message.get("content"):
                message["content"] = "x"
        for name in ("max_tokens", "max_completion_tokens"):
            if isinstance(body.get(name), (int, float)) and body[name] > 2:
                body[name] = 2
        if body.get("max_tokens") is None and body.get("max_completion_tokens") is None:
            body["max_completion_tokens"] = 2
    return body


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "examples"), [("POSITIVE", REQUESTS), ("NEGATIVE", BROKEN_REQUESTS)])
def test_requests_from_the_servers_own_schema(api, mode, examples):
    schema = schemathesis.openapi.from_dict(api.get("/openapi.json").json())
    mode = getattr(schemathesis.GenerationMode, mode)
    strategy = schema[PATH]["POST"].as_strategy(generation_mode=mode)
    seen = []

    @hypothesis.settings(max_examples=examples, **SETTINGS)
    @hypothesis.given(strategy)
    def run(case):
        try:
            content = json.dumps(body_of(case)).encode()
        except TypeError:  # no body at all
            content = b""
        reply = api.post(PATH, content=content, headers={"content-type": "application/json"})
        check(reply)
        seen.append(reply.status_code)

    run()
    assert len(seen) >= examples // 2
    assert len(set(seen)) > 1 or mode == schemathesis.GenerationMode.NEGATIVE


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/ready"])
def test_odd_ways_to_ask_for_other_paths(api, path):
    for method in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "NONSENSE"):
        reply = api.request(method, path, headers={"authorization": b"Bearer \xff", "x-request-id": b"\xff"})
        assert reply.status_code < 500


def json_mutants(count):
    """A good request with bytes changed, and with values swapped for others."""
    rng = random.Random(5)
    good = {
        "model": "tiny",
        "messages": [user(image_part(picture(4, 4)), text_part("what?"))],
        "max_tokens": 2,
        "temperature": 0.5,
        "stop": ["x"],
        "seed": 1,
        "stream": False,
    }
    odd = [
        None,
        True,
        -1,
        10**30,
        1e308,
        "",
        "\0",
        "\ud800",
        [],
        {},
        [[]],
        "x" * 10_000,
        {"type": "text"},
        float("nan"),
    ]
    for _ in range(count):
        if rng.random() < 0.5:
            data = bytearray(json.dumps(good).encode())
            for _ in range(rng.randint(1, 6)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            yield bytes(data)
        else:
            body = json.loads(json.dumps(good))
            holder = rng.choice(
                [
                    body,
                    body["messages"][0],
                    body["messages"][0]["content"][0],
                    body["messages"][0]["content"][0]["image_url"],
                ]
            )
            holder[rng.choice([*holder])] = rng.choice(odd)
            yield json.dumps(body).encode()


@pytest.mark.slow
def test_requests_with_broken_bytes_and_values(api):
    for content in json_mutants(60):
        check(api.post(PATH, content=content, headers={"content-type": "application/json"}))


def mutate(rng, data):
    """A file with some of it changed, lost, repeated or replaced by large numbers."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        place = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(200, len(data)))
        kind = rng.randrange(6)
        if kind == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place : place + 4] = struct.pack(">I", rng.choice([0, 1, 2**31 - 1, 2**32 - 1, rng.getrandbits(32)]))
        elif kind == 2:
            del data[place : place + rng.randint(1, 64)]
        elif kind == 3:
            data[place:place] = data[place : place + rng.randint(1, 200)]
        elif kind == 4:
            data[place : place + 16] = rng.randbytes(16)
        else:
            del data[max(place, 8) :]
        if not data:
            return b"\0"
    return bytes(data)


@pytest.mark.slow
def test_mutated_media(api):
    """Bytes of every accepted kind, changed; the server answers or says that they are bad, and lives."""
    rng = random.Random(7)
    images = [picture(33, 21, form=form) for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP")]
    videos = [film(6, 48, 32, form=form) for form in ("mp4", "matroska", "avi", "mpegts", "gif", "flv")]
    found = {}
    for number in range(MUTANTS):
        if number % 2:
            part = image_part(mutate(rng, rng.choice(images)))
        else:
            part = video_part(mutate(rng, rng.choice(videos)))
        reply = api.post(PATH, json={"model": "tiny", "messages": [user(part, text_part("?"))], "max_tokens": 1})
        check(reply)
        code = "ok" if reply.status_code == 200 else reply.json()["error"]["code"]
        found[code] = found.get(code, 0) + 1
    assert set(found) <= {"ok", "invalid_media", "media_too_large", "media_timeout"}
    assert found["ok"] > 5
    assert found["invalid_media"] > 10
    # Afterwards, a good one.
    reply = api.post(PATH, json={"model": "tiny", "messages": [user(image_part(images[0]), text_part("?"))]})
    assert reply.status_code == 200
