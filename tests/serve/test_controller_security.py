"""What a controller refuses: requests without keys, forged registrations, and callers from elsewhere."""

import pytest

from tests.serve.helpers.controllers import ControllerThread, answering_frames
from tests.serve.helpers.servers import StrangeWorker, client_of, http
from videollama2.serve.cluster.controller_app import WORKER_PATHS
from videollama2.serve.settings import Security


@pytest.mark.slow
def test_every_route_needs_a_key_and_workers_the_token():
    security = Security(api_keys=("key",), worker_token="token")
    with ControllerThread(security) as server, client_of(server) as client:
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
def test_registrations_through_a_proxy_need_the_token(controller, name):
    body = {"worker_name": "http://127.0.0.1:1", "worker_status": {"model_names": ["m"]}}
    for value in ("127.0.0.1", "10.1.2.3"):
        reply = http.post(controller.url + "/register_worker", json=body, headers={name: value})
        assert reply.status_code == 403 and not controller.registry.workers


def test_a_caller_from_elsewhere_is_refused():
    security = Security(worker_token="token", allowed_workers=("10.0.0.0/8",))
    with ControllerThread(security) as server:
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
    with ControllerThread(security) as server, StrangeWorker(answering_frames("x")) as worker:
        body = {"worker_name": worker.url, "worker_status": {"model_names": ["m"]}}
        headers = {"authorization": "Bearer token"}
        assert http.post(server.url + "/register_worker", json=body, headers=headers).status_code == 200
        headers = {"authorization": "Bearer key", "x-request-id": "seen-1"}
        http.post(server.url + "/worker_generate_stream", json={"model": "m", "prompt": "x"}, headers=headers)
        (head,) = worker.heads
        assert "authorization: bearer token" in head and "x-request-id: seen-1" in head
