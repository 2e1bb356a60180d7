"""Which pages may call a web application, and by which names it may be called."""

import pytest
from fastapi import Request

from tests.serve.helpers.servers import AppThread, http
from tests.serve.helpers.web_apps import make
from videollama2.serve.settings import Security
from videollama2.serve.web.app import EXPOSED_HEADERS


def readable(security):
    """The application, with something to read."""
    app = make(security)

    @app.get("/read")
    async def read() -> str:
        return "read"

    return app


@pytest.fixture(scope="module")
def open_server():
    """One that wants no key, and that pages of one origin may call."""
    with AppThread(readable(Security(cors_origins=("https://listed.example",)))) as found:
        yield found


def test_no_cors_unless_asked_for(web_client):
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    for reply in (
        web_client.options("/echo", headers=headers),
        web_client.post("/echo", json={"text": "x"}, headers=headers),
    ):
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
def test_pages_whose_name_was_bent_to_this_machine_may_not_call(open_server, origin, status):
    """DNS rebinding: the page's origin is this server's, so neither CORS nor the type of the body stops it."""
    headers = {"host": "rebound.example:8000", **({"origin": origin} if origin else {})}
    assert http.post(open_server.url + "/echo", json={"text": "x"}, headers=headers).status_code == status


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
def test_pages_may_not_read_by_a_name_that_was_bent_either(open_server, host, status):
    """Browsers name no origin where they only read."""
    assert http.get(open_server.url + "/read", headers={"host": host}).status_code == status
    assert http.get(open_server.url + "/health", headers={"host": host}).status_code == 200
    assert http.post(open_server.url + "/echo", json={"text": "x"}, headers={"host": host}).status_code == 200


def test_who_has_a_key_may_read_by_any_name():
    for security in (Security(api_keys=("alpha",)), Security(worker_token="alpha")):
        with AppThread(readable(security)) as server:
            headers = {"host": "a.example", "authorization": "Bearer alpha"}
            assert http.get(server.url + "/read", headers=headers).status_code == 200


def test_who_has_a_key_may_call_from_any_page(web_client):
    assert web_client.post("/echo", json={"text": "x"}, headers={"origin": "http://a.example"}).status_code == 200


def test_a_caller_is_who_connects():
    app = make(Security())

    @app.post("/who")
    async def who(request: Request):
        return {"host": request.client.host, "scheme": request.url.scheme}

    with AppThread(app) as server:
        headers = {"x-forwarded-for": "10.1.2.3", "x-forwarded-proto": "https"}
        found = http.post(server.url + "/who", json={}, headers=headers).json()
        assert found == {"host": "127.0.0.1", "scheme": "http"}


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
