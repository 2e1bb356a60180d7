"""The bodies that a web application takes: how large, how soon, and of what kind."""

import socket
import time
from contextlib import suppress

import pytest

from tests.serve.helpers.servers import PATIENCE_S, AppThread, http, wait_until
from tests.serve.helpers.web_apps import error_of, make
from videollama2.serve.settings import Security
from videollama2.serve.web.app import BODY_TIMEOUT_S
from videollama2.serve.web.server import HEADER_TIMEOUT_S

HASTE_S = 0.15
"""After which a server gives up. What is sent whole could be late for it on a busy machine."""


@pytest.fixture(scope="module")
def hasty():
    """One that waits no longer than that for the head of a request."""
    with AppThread(make(), header_timeout_s=HASTE_S) as found:
        yield found


@pytest.fixture(scope="module")
def roomy():
    """One that takes bodies of the usual size."""
    with AppThread(make(Security())) as found:
        yield found


def raw(server, head, *pieces, key="alpha"):
    """Bytes to a socket, one piece after the other; everything that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as connection:
        connection.sendall(head.format(key=f"Authorization: Bearer {key}").replace("\n", "\r\n").encode())
        for piece in pieces:
            connection.sendall(piece)
        found = b""
        while data := connection.recv(65536):
            found += data
    return found


def test_a_large_body_is_refused_by_its_length(web_client):
    assert error_of(web_client.post("/echo", json={"text": "x" * 200_000}), 413)["code"] == "request_too_large"


def test_a_large_body_in_chunks_is_refused(web_client):
    def chunks():
        yield b'{"text": "'
        for _ in range(100):
            yield b"x" * 4096
        yield b'"}'

    reply = web_client.post("/echo", content=chunks(), headers={"content-type": "application/json"})
    assert error_of(reply, 413)["code"] == "request_too_large"
    assert reply.headers["connection"] == "close"


def test_an_endless_body_is_cut(web_server):
    start = time.monotonic()
    head = "POST /echo HTTP/1.1\nHost: x\n{key}\nContent-Type: application/json\nTransfer-Encoding: chunked\n\n"
    with pytest.raises((ConnectionError, AssertionError)):
        found = raw(web_server, head, *[b"10000\r\n" + b"x" * 65536 + b"\r\n"] * 2000)
        assert b" 413 " not in found
    assert time.monotonic() - start < BODY_TIMEOUT_S


def test_a_body_up_to_the_limit_is_taken(web_client):
    text = "x" * (100_000 - len('{"text":""}'))
    assert web_client.post("/echo", content=f'{{"text":"{text}"}}', headers={"content-type": "application/json"}).json()


@pytest.mark.parametrize("length", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
def test_an_unfinished_body_is_given_up(length):
    """Slow loris: a few bytes, then nothing."""
    start = time.monotonic()
    head = f"POST /echo HTTP/1.1\nHost: x\n{{key}}\nContent-Type: application/json\n{length}\n\n"
    with AppThread(make(body_timeout_s=HASTE_S)) as server:
        found = raw(server, head, b"" if "chunked" in length else b'{"te')
        assert found.startswith(b"HTTP/1.1 408 ") and b"request_timeout" in found
        assert time.monotonic() - start < BODY_TIMEOUT_S
        wait_until(lambda: server.app.state.gate.active == 0)


@pytest.mark.parametrize("head", ["", "POST /echo HT", "POST /echo HTTP/1.1\nHost: x\nX-A: "])
def test_an_unfinished_head_is_given_up(hasty, head):
    start = time.monotonic()
    with suppress(ConnectionError):  # given up before this thread had sent anything
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


def test_a_second_head_that_stays_away_is_given_up(monkeypatch):
    with (
        AppThread(make()) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=HEADER_TIMEOUT_S) as connection,
    ):
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        found = b""
        while not found.endswith(b"}"):  # head and body may come apart
            found += connection.recv(65536)
            assert found.startswith(b"HTTP/1.1 200")
        monkeypatch.setattr(server.server.config.http_protocol_class, "header_timeout_s", HASTE_S)
        connection.sendall(b"GET /hea")
        assert connection.recv(1) == b""


@pytest.mark.parametrize("piece", [b"[],", b"{},", b"0,", b"[["])
def test_a_body_of_very_many_values_is_refused_before_it_is_read(roomy, piece):
    content = b'{"text": "x", "more": [' + piece * (1 << 18) + b"0]}"
    reply = http.post(roomy.url + "/echo", content=content, headers={"content-type": "application/json"})
    assert error_of(reply, 413)["message"] == "the body holds too many values"
    assert http.post(roomy.url + "/echo", json={"text": "[" * 1000 + "," * 1000}).status_code == 200


def test_a_body_that_is_packed_is_not_unpacked(web_client):
    import gzip

    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    reply = web_client.post("/echo", content=gzip.compress(b'{"text": "' + b"x" * 10**6 + b'"}'), headers=headers)
    assert error_of(reply, 415)["code"] == "unsupported_media_type"


def test_bodies_of_all_requests_together_are_bounded(monkeypatch):
    monkeypatch.setattr("videollama2.serve.web.guard.BODIES_HELD", 2)
    head = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 90000\r\n\r\n"
    with AppThread(make(Security(max_body_bytes=100_000), body_timeout_s=PATIENCE_S)) as server:
        held = []
        for _ in range(2):
            held.append(socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S))
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
def test_a_body_must_be_json(web_client, kind):
    headers = {} if kind is None else {"content-type": kind}
    assert error_of(web_client.post("/echo", content=b'{"text": "x"}', headers=headers), 415)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 20_000, b'{"text": "\xc3"}', b"9" * 5000])
def test_what_is_not_json_is_refused(web_client, content):
    assert error_of(web_client.post("/echo", content=content, headers={"content-type": "application/json"}), 400)


def test_validation_errors_name_the_field(web_client):
    error = error_of(web_client.post("/echo", json={"text": "x", "number": "many"}), 400)
    assert error["param"] == "number" and error["type"] == "invalid_request_error"
    assert error_of(web_client.post("/echo", json={}), 400)["code"] == "missing_required_parameter"


def test_half_a_surrogate_pair_is_no_fault(web_client):
    reply = web_client.post("/echo", content=b'{"number": "\\ud800"}', headers={"content-type": "application/json"})
    assert error_of(reply, 400)
