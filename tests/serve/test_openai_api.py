"""The API in front of a controller: validation, failing over, and the same answers and errors as a worker's own."""

import asyncio
import json

import pytest

from tests.helpers.ports import free_port
from tests.serve.helpers.controllers import ClockAhead, ControllerThread, register
from tests.serve.helpers.media import demo, image_part, picture, text_part, user, video_part
from tests.serve.helpers.processes import Process
from tests.serve.helpers.servers import (
    PATIENCE_S,
    AppThread,
    StrangeWorker,
    begin,
    client_of,
    http,
    wait_until,
)
from tests.serve.helpers.servers import reply as send
from videollama2.serve.cluster.client import ControllerClient
from videollama2.serve.cluster.front import ApiFront, make_front_app
from videollama2.serve.openai_api import build_parser
from videollama2.serve.settings import Security

PATH = "/v1/chat/completions"
MODEL, STRANGE = "videollama2-tiny", "strange"
LONG = {"temperature": 1.0, "seed": 4, "max_tokens": 15, "min_tokens": 15}


def unregister(controller, url):
    http.post(controller.url + "/unregister_worker", json={"worker_name": url})


@pytest.fixture(scope="module")
def controller(tiny_worker):
    clock = ClockAhead()
    with ControllerThread(clock=clock) as server:
        clock.ahead = server.registry.expiry_s  # one that has just started waits for models it does not know
        register(server, tiny_worker, MODEL)
        yield server


@pytest.fixture(scope="module")
def front(controller):
    with AppThread(make_front_app(ApiFront(ControllerClient(controller.url)), Security())) as server:
        yield server


@pytest.fixture(scope="module")
def api(front):
    with client_of(front) as client:
        yield client


@pytest.fixture
def strange(controller):
    """Workers of another model that behave as told."""
    workers = []

    def add(behave):
        worker = StrangeWorker(behave)
        workers.append(worker)
        register(controller, worker.url, STRANGE)
        return worker

    yield add
    for worker in workers:
        unregister(controller, worker.url)
        worker.close()


def ask(api, *parts, **fields):
    return api.post(PATH, json={"model": MODEL, "messages": [user(*parts)], "max_tokens": 10, **fields})


def content(reply):
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["message"]["content"]


def error(reply, status):
    assert reply.status_code == status, reply.text
    found = reply.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


def events(text):
    return [block.removeprefix("data: ") for block in text.split("\n\n") if block]


# -------------------------------------------------------------------------------------------------------------- answers


@pytest.mark.slow
def test_answers_are_the_workers(api, tiny_worker):
    parts = [video_part(demo("moving_shapes.mp4").read_bytes()), text_part("How many shapes are there?")]
    with client_of(tiny_worker) as worker:
        assert content(ask(api, *parts)) == content(ask(worker, *parts))


@pytest.mark.slow
def test_streams_are_the_workers(api, tiny_worker):
    parts = [image_part(picture()), text_part("What is it?")]
    options = {**LONG, "n": 2, "stream": True, "stream_options": {"include_usage": True}}
    with client_of(tiny_worker) as worker:
        told = [events(ask(server, *parts, **options).text) for server in (worker, api)]
    for lines in told:
        assert lines[-1] == "[DONE]"
        assert json.loads(lines[-2])["usage"]["completion_tokens"] == 30
    texts = []
    for lines in told:
        choices = [choice for line in lines[:-1] for choice in json.loads(line)["choices"]]
        texts.append(["".join(c["delta"].get("content", "") for c in choices if c["index"] == n) for n in (0, 1)])
    assert texts[0] == texts[1]


def test_streams_come_piece_by_piece(api):
    body = {"model": MODEL, "messages": [user("Tell me")], "stream": True, **LONG}
    with api.stream("POST", PATH, json=body) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        chunks = list(reply.iter_raw())
    assert len(chunks) > 3


def test_models(api):
    assert [model["id"] for model in api.get("/v1/models").json()["data"]] == [MODEL]
    assert api.get(f"/v1/models/{MODEL}").json()["id"] == MODEL
    assert error(api.get("/v1/models/none"), 404)["code"] == "model_not_found"


def test_request_ids_go_along(api):
    reply = api.get("/v1/models", headers={"x-request-id": "trace-1"})
    assert reply.headers["x-request-id"] == "trace-1"


def test_leaving_frees_the_workers_slot(api, tiny_service):
    body = {"model": MODEL, "messages": [user("Tell me")], "stream": True, "max_tokens": 900, "min_tokens": 900}
    with api.stream("POST", PATH, json=body) as reply:
        lines = reply.iter_lines()
        next(lines)
        assert tiny_service.engine.load["decoding"] == 1
    wait_until(lambda: not sum(tiny_service.engine.load.values()), what="the slot is free")


# --------------------------------------------------------------------------------------------------------------- errors


def test_bad_requests_go_no_further(api, strange):
    worker = strange(lambda path, body, writer: begin(writer))
    assert error(ask(api, "x", model=STRANGE, tools=[{}]), 400)["param"] == "tools.0.type"
    assert error(ask(api, "x", model=STRANGE, temperature=9), 400)["param"] == "temperature"
    assert error(api.post(PATH, content=b"{", headers={"content-type": "application/json"}), 400)
    assert PATH not in worker.asked


@pytest.mark.slow
def test_every_route_of_a_worker_is_the_fronts(api, tiny_worker, controller):
    assert http.post(controller.url + "/refresh_all_workers", json={}).status_code == 200
    asked = {
        "/v1/completions": {"prompt": "How many", "max_tokens": 5},
        "/v1/responses": {"input": "How many?", "max_output_tokens": 5},
        "/tokenize": {"prompt": "How many"},
        PATH: {"messages": [user("How many?")], "max_tokens": 5, "of_next_year": 1},
    }
    with client_of(tiny_worker) as worker:
        for path, body in asked.items():
            told = [server.post(path, json={"model": MODEL, **body}) for server in (api, worker)]
            assert [reply.status_code for reply in told] == [200, 200], path
            assert told[0].headers.get("x-ignored-fields") == told[1].headers.get("x-ignored-fields")
            front, own = (reply.json() for reply in told)
            assert front.keys() == own.keys() and front.get("tokens") == own.get("tokens")
        assert api.get("/version").json() == worker.get("/version").json()
        (front,), (own,) = (server.get("/v1/models").json()["data"] for server in (api, worker))
        assert front["max_model_len"] == own["max_model_len"] > 0
    assert api.post("/tokenize", json={"prompt": "How many"}).json()["count"] > 0, "there is one model only"


def test_errors_of_the_worker_are_passed_on(api):
    assert error(ask(api, "x", model="none"), 404)["code"] == "model_not_found"
    assert error(ask(api, "word " * 5000), 400)["code"] == "context_length_exceeded"
    found = error(ask(api, text_part("x"), image_part(b"rubbish"), stream=True), 400)
    assert (found["code"], found["param"]) == ("invalid_media", "messages.0.content.1.image_url.url")


@pytest.mark.slow
def test_without_a_controller():
    front = ApiFront(ControllerClient(f"http://127.0.0.1:{free_port()}"))
    with AppThread(make_front_app(front, Security())) as server, client_of(server) as client:
        reply = ask(client, "x")
        assert error(reply, 503)["code"] == "unreachable"
        assert int(reply.headers["retry-after"]) >= 1
        assert error(client.get("/v1/models"), 503)
        assert client.get("/health").status_code == 200
        assert client.get("/ready").status_code == 503


def test_it_is_ready_with_a_controller(api):
    wait_until(lambda: api.get("/ready").status_code == 200, what="ready")


def test_a_full_worker_says_when_to_come_again(api, strange):
    async def full(path, body, writer):
        told = {"message": "full", "type": "rate_limit_error", "param": None, "code": "queue_full"}
        await send(writer, {"error": told}, 429, "retry-after: 7\r\n")

    strange(full)
    reply = ask(api, "x", model=STRANGE)
    assert error(reply, 429)["code"] == "queue_full"
    assert reply.headers["retry-after"] == "7"


def whole_reply(text):
    async def behave(path, body, writer):
        await send(writer, {"choices": [{"message": {"content": text}}]})

    return behave


def test_a_worker_that_dies_before_the_first_token_is_replaced(api, strange):
    async def dies(path, body, writer):
        writer.transport.abort()
        await asyncio.sleep(0)

    first, second = strange(dies), strange(dies)
    good = strange(whole_reply("at last"))
    assert content(ask(api, "x", model=STRANGE)) == "at last"
    assert good.asked.count(PATH) == 1
    assert first.asked.count(PATH) + second.asked.count(PATH) <= 2


def test_a_worker_that_dies_in_a_stream_is_told_as_an_event(api, strange):
    """Never half an event, no ``[DONE]``, and one clear error."""

    async def breaks_off(path, body, writer):
        await begin(writer, b'data: {"choices": [{"index": 0, "delta": {"content": "so far"}}]}\n\ndata: {"choi')
        await writer.drain()
        writer.transport.abort()

    strange(breaks_off)
    reply = ask(api, "x", model=STRANGE, stream=True)
    assert reply.status_code == 200
    first, last = events(reply.text)
    assert json.loads(first)["choices"][0]["delta"]["content"] == "so far"
    assert json.loads(last)["error"]["code"] == "worker_failed"


def test_a_model_whose_worker_is_gone_is_a_503_at_once(api, controller):
    url = f"http://127.0.0.1:{free_port()}"
    register(controller, url, "gone")
    reply = ask(api, "x", model="gone")
    assert error(reply, 503)
    assert "retry-after" in reply.headers
    unregister(controller, url)


# ------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.slow
def test_keys(controller):
    front = ApiFront(ControllerClient(controller.url))
    app = make_front_app(front, Security(api_keys=("sk-front",)))
    with AppThread(app) as server, client_of(server) as client:
        assert error(ask(client, "x"), 401)["code"] == "invalid_api_key"
        assert error(client.get("/v1/models"), 401)
        headers = {"authorization": "Bearer sk-front"}
        assert client.get("/v1/models", headers=headers).status_code == 200


def test_the_description_names_both_routes(api):
    paths = api.get("/openapi.json").json()["paths"]
    assert {"/v1/models", PATH, "/health", "/ready"} <= set(paths)
    assert set(paths[PATH]["post"]["responses"]) >= {"200", "400", "401", "404", "413", "429", "500", "503"}


def test_flags():
    args = build_parser().parse_args([])
    assert (args.host, args.port, args.controller) == ("127.0.0.1", 8000, "http://localhost:10000")


@pytest.mark.slow
def test_as_a_process(controller, tmp_path):
    """As its documentation says, with a key in the environment and a SIGTERM at the end."""
    port = free_port()
    arguments = ["-m", "videollama2.serve.openai_api", "--controller", controller.url, "--port", str(port)]
    process = Process(
        arguments, f"http://127.0.0.1:{port}", tmp_path / "api.log", {"VIDEOLLAMA2_API_KEY": "sk-process"}
    )
    try:
        process.ready()
        headers = {"authorization": "Bearer sk-process"}
        body = {"model": MODEL, "messages": [user("Hello")], "max_tokens": 3}
        assert http.post(process.url + PATH, json=body).status_code == 401
        reply = http.post(process.url + PATH, json=body, headers=headers, timeout=60)
        assert reply.status_code == 200, reply.text
        process.process.terminate()
        assert process.process.wait(PATIENCE_S) == 0
        assert "Hello" not in process.tail()
        assert "sk-process" not in process.tail()
    finally:
        process.close()
