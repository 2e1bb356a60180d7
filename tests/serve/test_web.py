"""The frame of every web application: keys, bodies, errors, request ids, draining."""

import asyncio
import json
import logging
import socket
import threading
import time

import httpx
import pytest
from fastapi import Request
from pydantic import BaseModel
from starlette.responses import StreamingResponse

from tests.serve.servers import AppThread, http, wait_until
from videollama2.errors import ConfigError
from videollama2.serve.settings import Security
from videollama2.serve.web.app import BODY_TIMEOUT_S, EXPOSED_HEADERS, make_app
from videollama2.serve.web.errors import ApiError, no_worker
from videollama2.serve.web.server import HEADER_TIMEOUT_S, bind

KEYS = Security(api_keys=("alpha", "beta"), worker_token="secret", max_body_bytes=100_000)


class Text(BaseModel):
    text: str
    number: int = 0


def make(security=KEYS, **options):
    app = make_app("test", security, worker_paths=("/part",), **options)
    app.state.go_on = threading.Event()

    @app.post("/echo")
    async def echo(body: Text):
        return {"text": body.text}

    @app.post("/part")
    async def part():
        return {}

    @app.post("/fault")
    async def fault():
        raise RuntimeError("the secret of /etc/passwd")

    @app.post("/refused")
    async def refused():
        raise no_worker("m", 7.4)

    @app.post("/stream")
    async def stream(request: Request):
        async def chunks():
            yield b"first"
            await asyncio.to_thread(app.state.go_on.wait, 10)
            yield b"last"

        return StreamingResponse(chunks())

    @app.post("/cut")
    async def cut():
        async def chunks():
            yield b"first"
            raise RuntimeError("broken")

        return StreamingResponse(chunks())

    return app


@pytest.fixture(scope="module")
def server():
    with AppThread(make()) as found:
        yield found


@pytest.fixture(scope="module")
def hasty():
    """One that gives up soon; what is sent whole could be late for it on a busy machine."""
    with AppThread(make(body_timeout_s=0.4), header_timeout_s=0.4) as found:
        yield found


@pytest.fixture(scope="module")
def client(server):
    headers = {"authorization": "Bearer alpha"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=10, trust_env=False, verify=False) as found:
        yield found


def error_of(reply, status):
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def raw(server, head, *pieces, key="alpha"):
    """Bytes to a socket, one piece after the other; everything that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head.format(key=f"Authorization: Bearer {key}").replace("\n", "\r\n").encode())
        for piece in pieces:
            connection.sendall(piece)
        found = b""
        while data := connection.recv(65536):
            found += data
    return found


# --------------------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", "Basic alpha", "alpha", "Bearer alph\u00e4"])
def test_without_a_key_nothing_is_answered(server, header):
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    for method, path in [
        ("POST", "/echo"),
        ("GET", "/openapi.json"),
        ("GET", "/docs"),
        ("GET", "/nothing"),
        ("OPTIONS", "/echo"),
        ("GET", "/health/x"),
        ("POST", "//health"),
    ]:
        reply = http.request(method, server.url + path, headers=headers)
        assert error_of(reply, 401)["code"] == "invalid_api_key", (method, path)


@pytest.mark.parametrize("key", ["alpha", "beta", "secret"])
def test_each_key_and_the_token_are_good(server, key):
    headers = {"authorization": f"bearer {key}"}
    reply = http.post(server.url + "/echo", json={"text": "x"}, headers=headers)
    assert reply.json() == {"text": "x"}


def test_health_needs_no_key(server):
    assert http.get(server.url + "/health").json() == {"status": "ok"}
    assert http.get(server.url + "/ready").json() == {"status": "ready"}


def test_paths_of_workers_need_the_token(server):
    for key, status in (("alpha", 401), ("secret", 200)):
        headers = {"authorization": f"Bearer {key}"}
        assert http.post(server.url + "/part", headers=headers).status_code == status


# ------------------------------------------------------------------------------------------------------------- bodies


def test_a_large_body_is_refused_by_its_length(client):
    assert error_of(client.post("/echo", json={"text": "x" * 200_000}), 413)["code"] == "request_too_large"


def test_a_large_body_in_chunks_is_refused(client):
    def chunks():
        yield b'{"text": "'
        for _ in range(100):
            yield b"x" * 4096
        yield b'"}'

    reply = client.post("/echo", content=chunks(), headers={"content-type": "application/json"})
    assert error_of(reply, 413)["code"] == "request_too_large"
    assert reply.headers["connection"] == "close"


def test_an_endless_body_is_cut(server):
    start = time.monotonic()
    head = "POST /echo HTTP/1.1\nHost: x\n{key}\nContent-Type: application/json\nTransfer-Encoding: chunked\n\n"
    with pytest.raises((ConnectionError, AssertionError)):
        found = raw(server, head, *[b"10000\r\n" + b"x" * 65536 + b"\r\n"] * 2000)
        assert b" 413 " not in found
    assert time.monotonic() - start < BODY_TIMEOUT_S


def test_a_body_up_to_the_limit_is_taken(client):
    text = "x" * (100_000 - len('{"text":""}'))
    assert client.post("/echo", content=f'{{"text":"{text}"}}', headers={"content-type": "application/json"}).json()


@pytest.mark.parametrize("length", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
def test_an_unfinished_body_is_given_up(hasty, length):
    """Slow loris: a few bytes, then nothing."""
    start = time.monotonic()
    head = f"POST /echo HTTP/1.1\nHost: x\n{{key}}\nContent-Type: application/json\n{length}\n\n"
    found = raw(hasty, head, b"" if "chunked" in length else b'{"te')
    assert found.startswith(b"HTTP/1.1 408 ") and b"request_timeout" in found
    assert time.monotonic() - start < BODY_TIMEOUT_S
    wait_until(lambda: hasty.app.state.gate.active == 0)


@pytest.mark.parametrize("head", ["", "POST /echo HT", "POST /echo HTTP/1.1\nHost: x\nX-A: "])
def test_an_unfinished_head_is_given_up(hasty, head):
    start = time.monotonic()
    assert raw(hasty, head) == b""
    assert time.monotonic() - start < HEADER_TIMEOUT_S


def test_a_head_that_trickles_in_is_given_up(hasty):
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=HEADER_TIMEOUT_S) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        deadline = time.monotonic() + HEADER_TIMEOUT_S
        with pytest.raises((ConnectionError, TimeoutError)):
            while True:
                assert time.monotonic() < deadline
                connection.settimeout(0.05)
                connection.sendall(b"X-A: b\r\n")
                try:
                    if connection.recv(1) == b"":
                        raise ConnectionError
                except TimeoutError:
                    continue


def test_a_second_head_that_stays_away_is_given_up(hasty):
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=HEADER_TIMEOUT_S) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        found = b""
        while not found.endswith(b"}"):  # head and body may come apart
            found += connection.recv(65536)
            assert found.startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /hea")
        assert connection.recv(1) == b""


@pytest.mark.parametrize("piece", [b"[],", b"{},", b"0,", b"[["])
def test_a_body_of_very_many_values_is_refused_before_it_is_read(piece):
    with AppThread(make(Security())) as server:
        content = b'{"text": "x", "more": [' + piece * (1 << 18) + b"0]}"
        reply = http.post(server.url + "/echo", content=content, headers={"content-type": "application/json"})
        assert error_of(reply, 413)["message"] == "the body holds too many values"
        assert http.post(server.url + "/echo", json={"text": "[" * 1000 + "," * 1000}).status_code == 200


def test_a_body_that_is_packed_is_not_unpacked(client):
    import gzip

    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    reply = client.post("/echo", content=gzip.compress(b'{"text": "' + b"x" * 10**6 + b'"}'), headers=headers)
    assert error_of(reply, 415)["code"] == "unsupported_media_type"


def test_bodies_of_all_requests_together_are_bounded(monkeypatch):
    monkeypatch.setattr("videollama2.serve.web.guard.BODIES_HELD", 2)
    head = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 90000\r\n\r\n"
    with AppThread(make(Security(max_body_bytes=100_000), body_timeout_s=5)) as server:
        held = []
        for _ in range(2):
            held.append(socket.create_connection(("127.0.0.1", server.port), timeout=5))
            held[-1].sendall(head.encode() + b"x" * 89_999)

        def is_full():
            reply = http.post(server.url + "/echo", json={"text": "x" * 50_000})
            return reply.status_code == 503 and reply

        reply = wait_until(is_full)
        assert error_of(reply, 503)["code"] == "overloaded" and reply.headers["retry-after"] == "2"
        for connection in held:
            connection.close()
        wait_until(lambda: not is_full())


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", None]
)
def test_a_body_must_be_json(client, kind):
    headers = {} if kind is None else {"content-type": kind}
    assert error_of(client.post("/echo", content=b'{"text": "x"}', headers=headers), 415)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 20_000, b'{"text": "\xc3"}', b"9" * 5000])
def test_what_is_not_json_is_refused(client, content):
    assert error_of(client.post("/echo", content=content, headers={"content-type": "application/json"}), 400)


def test_validation_errors_name_the_field(client):
    error = error_of(client.post("/echo", json={"text": "x", "number": "many"}), 400)
    assert error["param"] == "number" and error["type"] == "invalid_request_error"
    assert error_of(client.post("/echo", json={}), 400)["code"] == "missing_required_parameter"


def test_half_a_surrogate_pair_is_no_fault(client):
    reply = client.post("/echo", content=b'{"number": "\\ud800"}', headers={"content-type": "application/json"})
    assert error_of(reply, 400)


# ------------------------------------------------------------------------------------------------------------- errors


def test_a_fault_is_told_in_general_terms_and_logged_with_its_id(client, caplog):
    with caplog.at_level(logging.ERROR):
        reply = client.post("/fault", headers={"x-request-id": "my-1"})
    assert "secret" not in reply.text and error_of(reply, 500)["type"] == "server_error"
    assert reply.headers["x-request-id"] == "my-1"
    assert "the secret of /etc/passwd" in caplog.text


def test_an_error_says_when_to_come_back(client):
    reply = client.post("/refused")
    assert error_of(reply, 503)["code"] == "no_worker" and reply.headers["retry-after"] == "7"


def test_a_stream_that_breaks_is_cut(client):
    with pytest.raises(httpx.RemoteProtocolError), client.stream("POST", "/cut") as reply:
        assert reply.read()


def test_missing_paths_and_methods(client):
    assert error_of(client.get("/nothing"), 404)
    reply = client.get("/echo")
    assert error_of(reply, 405) and reply.headers["allow"] == "POST"


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "a\tb", "<script>", "\u00e4"])
def test_a_strange_request_id_is_replaced(client, given):
    reply = client.post("/echo", json={"text": "x"}, headers={"x-request-id": given.encode("latin-1")})
    assert len(reply.headers["x-request-id"]) == 32


def test_no_cors_unless_asked_for(client):
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    for reply in (client.options("/echo", headers=headers), client.post("/echo", json={"text": "x"}, headers=headers)):
        assert not [name for name in reply.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        ("http://localhost:7860", 200),
        ("http://127.0.0.1", 200),
        ("http://[::1]:8000", 200),
        ("https://listed.example", 200),
        ("http://rebound.example:8000", 403),
        ("null", 403),
        ("http://[", 403),
        ("http://127.0.0.1.rebound.example", 403),
        ("http://localhost.rebound.example", 403),
    ],
)
def test_pages_whose_name_was_bent_to_this_machine_may_not_call(origin, status):
    """DNS rebinding: the page's origin is this server's, so neither CORS nor the type of the body stops it."""
    with AppThread(make(Security(cors_origins=("https://listed.example",)))) as server:
        headers = {"host": "rebound.example:8000", **({"origin": origin} if origin else {})}
        assert http.post(server.url + "/echo", json={"text": "x"}, headers=headers).status_code == status


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("localhost:8000", 200),
        ("api:8000", 200),
        ("gpu1.local", 200),
        ("api.ns.svc.cluster.local:8000", 200),
        ("listed.example", 200),
        ("rebound.example:8000", 403),
        ("localhost.rebound.example", 403),
        ("127.0.0.1.rebound.example.", 403),
    ],
)
def test_pages_may_not_read_by_a_name_that_was_bent_either(host, status):
    """Browsers name no origin where they only read."""
    security = Security(cors_origins=("https://listed.example",))
    app = make(security)

    @app.get("/read")
    async def read() -> str:
        return "read"

    with AppThread(app) as server:
        assert http.get(server.url + "/read", headers={"host": host}).status_code == status
        assert http.get(server.url + "/health", headers={"host": host}).status_code == 200
        assert http.post(server.url + "/echo", json={"text": "x"}, headers={"host": host}).status_code == 200


def test_who_has_a_key_may_read_by_any_name():
    for security in (Security(api_keys=("alpha",)), Security(worker_token="alpha")):
        app = make(security)

        @app.get("/read")
        async def read() -> str:
            return "read"

        with AppThread(app) as server:
            headers = {"host": "a.example", "authorization": "Bearer alpha"}
            assert http.get(server.url + "/read", headers=headers).status_code == 200


def test_who_has_a_key_may_call_from_any_page(client):
    assert client.post("/echo", json={"text": "x"}, headers={"origin": "http://a.example"}).status_code == 200


def test_a_caller_is_who_connects():
    app = make(Security())

    @app.post("/who")
    async def who(request: Request):
        return {"host": request.client.host, "scheme": request.url.scheme}

    with AppThread(app) as server:
        headers = {"x-forwarded-for": "10.1.2.3", "x-forwarded-proto": "https"}
        found = http.post(server.url + "/who", json={}, headers=headers).json()
        assert found == {"host": "127.0.0.1", "scheme": "http"}


def test_a_missing_key_is_told_how_to_show_one(server):
    assert http.post(server.url + "/echo", json={}).headers["www-authenticate"] == "Bearer"


def test_scripts_of_listed_origins_read_our_headers_and_send_theirs():
    """The openai package sends headers of its own, also from a browser, which asks before whether it may."""
    with AppThread(make(Security(cors_origins=("https://good.example",)))) as server:
        origin = {"origin": "https://good.example"}
        wanted = "authorization,content-type,x-stainless-lang,x-stainless-retry-count"
        asking = {**origin, "access-control-request-method": "POST", "access-control-request-headers": wanted}
        allowed = http.request("OPTIONS", server.url + "/echo", headers=asking)
        assert allowed.status_code == 200 and allowed.headers["access-control-allow-headers"] == wanted
        reply = http.post(server.url + "/echo", json={"text": "x"}, headers=origin)
        assert reply.headers["access-control-expose-headers"].split(", ") == list(EXPOSED_HEADERS)


def test_cors_for_listed_origins():
    security = Security(api_keys=("alpha",), cors_origins=("https://good.example",))
    with AppThread(make(security)) as server:
        for origin, allowed in (("https://good.example", "https://good.example"), ("https://evil.example", None)):
            headers = {"origin": origin, "access-control-request-method": "POST"}
            asked = http.request("OPTIONS", server.url + "/echo", headers=headers)
            assert asked.headers.get("access-control-allow-origin") == allowed
            reply = http.post(server.url + "/echo", json={"text": "x"}, headers={"origin": origin})
            assert reply.status_code == 401 and reply.headers.get("access-control-allow-origin") == allowed


# ----------------------------------------------------------------------------------------------------------- draining


def test_draining_ends_what_runs_and_refuses_what_comes():
    called = threading.Event()

    async def drain():
        called.set()

    app = make(Security())
    server = AppThread(app, drain=drain)
    with httpx.Client(base_url=server.url, timeout=10, trust_env=False, verify=False) as client:
        with client.stream("POST", "/stream") as reply:
            chunks = reply.iter_raw()
            assert next(chunks) == b"first"
            server.drain()
            assert called.wait(5)
            refused = http.post(server.url + "/echo", json={"text": "x"})
            assert error_of(refused, 503)["code"] == "shutting_down" and refused.headers["retry-after"]
            assert http.get(server.url + "/ready").status_code == 503
            assert http.get(server.url + "/health").status_code == 200
            app.state.go_on.set()
            assert b"".join(chunks) == b"last"
        server.join()


def test_draining_waits_no_longer_than_it_may():
    app = make(Security())
    server = AppThread(app, drain_timeout_s=0.2)
    server.server.config.timeout_graceful_shutdown = 1
    with httpx.Client(base_url=server.url, timeout=10, trust_env=False, verify=False) as client:
        with pytest.raises(httpx.HTTPError), client.stream("POST", "/stream") as reply:
            for _ in reply.iter_raw():
                server.drain()
        app.state.go_on.set()
        server.join()


def test_readiness():
    reasons = ["loading"]
    app = make(Security(), ready=lambda: reasons[0] if reasons else None)
    with AppThread(app) as server:
        reply = http.get(server.url + "/ready")
        assert reply.status_code == 503 and reply.json() == {"status": "loading"}
        reasons.clear()
        assert http.get(server.url + "/ready").status_code == 200


def test_a_port_that_is_taken_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="cannot listen on"):
        bind("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(ConfigError, match="cannot listen on"):
        bind("no.such.host.invalid", 1)


def test_error_bodies_of_others_are_read_with_care():
    for body in (None, [], {"error": "x"}, {"error": {"message": 5}}, {"error": {"message": ""}}):
        assert ApiError.of_body(503, body).message == "the request failed with status 503"
    found = ApiError.of_body(404, json.loads(json.dumps(no_worker("m").body())))
    assert (found.status, found.code) == (404, "no_worker")
