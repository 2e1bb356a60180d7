"""The frame of every web application: keys, errors, request ids, draining."""

import json
import logging
import socket
import threading

import httpx
import pytest

from tests.serve.helpers.servers import PATIENCE_S, AppThread, client_of, http
from tests.serve.helpers.web_apps import error_of, make
from videollama2.errors import ConfigError
from videollama2.serve.settings import Security
from videollama2.serve.web.errors import ApiError, no_worker
from videollama2.serve.web.server import bind

# --------------------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", "Basic alpha", "alpha", "Bearer alph\u00e4"])
def test_without_a_key_nothing_is_answered(web_server, header):
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
        reply = http.request(method, web_server.url + path, headers=headers)
        assert error_of(reply, 401)["code"] == "invalid_api_key", (method, path)


@pytest.mark.parametrize("key", ["alpha", "beta", "secret"])
def test_each_key_and_the_token_are_good(web_server, key):
    headers = {"authorization": f"bearer {key}"}
    reply = http.post(web_server.url + "/echo", json={"text": "x"}, headers=headers)
    assert reply.json() == {"text": "x"}


def test_health_needs_no_key(web_server):
    assert http.get(web_server.url + "/health").json() == {"status": "ok"}
    assert http.get(web_server.url + "/ready").json() == {"status": "ready"}


def test_paths_of_workers_need_the_token(web_server):
    for key, status in (("alpha", 401), ("secret", 200)):
        headers = {"authorization": f"Bearer {key}"}
        assert http.post(web_server.url + "/part", headers=headers).status_code == status


def test_a_missing_key_is_told_how_to_show_one(web_server):
    assert http.post(web_server.url + "/echo", json={}).headers["www-authenticate"] == "Bearer"


# ------------------------------------------------------------------------------------------------------------- errors


def test_a_fault_is_told_in_general_terms_and_logged_with_its_id(web_client, caplog):
    with caplog.at_level(logging.ERROR):
        reply = web_client.post("/fault", headers={"x-request-id": "my-1"})
    assert "secret" not in reply.text and error_of(reply, 500)["type"] == "server_error"
    assert reply.headers["x-request-id"] == "my-1"
    assert "the secret of /etc/passwd" in caplog.text


def test_an_error_says_when_to_come_back(web_client):
    reply = web_client.post("/refused")
    assert error_of(reply, 503)["code"] == "no_worker" and reply.headers["retry-after"] == "7"


def test_a_stream_that_breaks_is_cut(web_client):
    with pytest.raises(httpx.RemoteProtocolError), web_client.stream("POST", "/cut") as reply:
        assert reply.read()


def test_missing_paths_and_methods(web_client):
    assert error_of(web_client.get("/nothing"), 404)
    reply = web_client.get("/echo")
    assert error_of(reply, 405) and reply.headers["allow"] == "POST"


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "a\tb", "<script>", "\u00e4"])
def test_a_strange_request_id_is_replaced(web_client, given):
    reply = web_client.post("/echo", json={"text": "x"}, headers={"x-request-id": given.encode("latin-1")})
    assert len(reply.headers["x-request-id"]) == 32


# ----------------------------------------------------------------------------------------------------------- draining


def test_draining_ends_what_runs_and_refuses_what_comes():
    called = threading.Event()

    async def drain():
        called.set()

    app = make(Security())
    server = AppThread(app, drain=drain)
    with client_of(server) as client:
        with client.stream("POST", "/stream") as reply:
            chunks = reply.iter_raw()
            assert next(chunks) == b"first"
            server.drain()
            assert called.wait(PATIENCE_S)
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
    server.server.config.timeout_graceful_shutdown = 0.1
    with client_of(server) as client:
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
