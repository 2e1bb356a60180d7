"""A model worker: the published ``\\0``-stream, status and metrics, leaving and draining."""

import base64
import re

import pytest

from tests.serve.helpers.media import demo
from tests.serve.helpers.servers import PATIENCE_S, AppThread, client_of, frames_of, http, wait_until
from videollama2.serve.settings import Security
from videollama2.serve.worker.app import WorkerService, make_worker_app

MODEL = "videollama2-tiny"
CLIP, PICTURE = demo("moving_shapes.mp4"), demo("shapes.png")
QUESTION = "Which object moves first, the white cross or the red circle?"


def generate(server, prompt, *media, status=200, **fields):
    body = {"model": MODEL, "prompt": prompt, "temperature": 0, "max_new_tokens": 24, **fields}
    body["images"] = [item if isinstance(item, str) else base64.b64encode(item.read_bytes()).decode() for item in media]
    reply = http.post(server.url + "/worker_generate_stream", json=body, timeout=60)
    assert reply.status_code == status, reply.text
    return frames_of(reply.content)


def direct(engine, question, *media):
    return engine.submit(question, media, max_new_tokens=24).result(PATIENCE_S)


# -------------------------------------------------------------------------------------------------------- the \0-stream


def test_frames_hold_the_whole_text_so_far(tiny_worker, tiny_engine):
    frames = generate(tiny_worker, QUESTION, CLIP)
    expected = direct(tiny_engine, QUESTION, ("video", str(CLIP)))
    texts = [frame["text"] for frame in frames]
    assert texts[-1] == QUESTION + expected.text, "published: the text begins with the prompt"
    assert all(later.startswith(earlier) for earlier, later in zip(texts, texts[1:], strict=False))
    assert {frame["error_code"] for frame in frames} == {0}
    assert frames[-1]["finish_reason"] == expected.finish_reason
    assert frames[-1]["usage"]["completion_tokens"] == expected.completion_tokens
    assert generate(tiny_worker, QUESTION, CLIP, echo=False)[-1]["text"] == expected.text


def test_marks_tell_where_media_stand(tiny_worker, tiny_engine):
    asked = f"Look: <image>\nand <video>\n{QUESTION}"
    content = [
        {"type": "text", "text": "Look: "},
        {"type": "image", "path": str(PICTURE)},
        {"type": "text", "text": "\nand "},
        {"type": "video", "path": str(CLIP)},
        {"type": "text", "text": "\n" + QUESTION},
    ]
    expected = direct(tiny_engine, [{"role": "user", "content": content}])
    frames = generate(tiny_worker, asked, PICTURE, CLIP, echo=False)
    assert frames[-1]["text"] == expected.text and frames[-1]["usage"]["prompt_tokens"] == expected.prompt_tokens


def test_one_mark_may_stand_anywhere(tiny_worker, tiny_engine):
    content = [{"type": "video", "path": str(CLIP)}, {"type": "text", "text": QUESTION}]
    expected = direct(tiny_engine, [{"role": "user", "content": content}])
    for asked in (QUESTION, f"<video>\n{QUESTION}", f"{QUESTION}\n<video>", f"{QUESTION} <video>"):
        last = generate(tiny_worker, asked, CLIP, echo=False)[-1]
        assert (last["text"], last["usage"]["prompt_tokens"]) == (expected.text, expected.prompt_tokens), asked


def test_a_mark_without_media_is_text(tiny_worker):
    short, long = (
        generate(tiny_worker, text, echo=False)[-1]["usage"]["prompt_tokens"] for text in ("What?", "What <video>?")
    )
    assert long - short < 12, "a typed tag becomes no visual tokens"


@pytest.mark.parametrize(
    "images",
    [
        ["/etc/passwd"],
        ["file:///etc/passwd"],
        ["http://127.0.0.1:1/x.png"],
        ["../../x"],
        ["%%%"],
    ],
)
def test_images_are_never_paths_or_addresses(tiny_worker, images):
    (only,) = generate(tiny_worker, "What?", *images, status=400)
    assert only["error_code"] == 40001 and "passwd" not in only["text"] and "base64" in only["text"]


def test_bytes_that_are_no_media_are_refused(tiny_worker):
    (only,) = generate(tiny_worker, "What?", base64.b64encode(b"nothing at all" * 9).decode(), status=400)
    assert only["error_code"] == 40001 and only["text"]


def test_the_number_of_marks_must_fit(tiny_worker):
    (only,) = generate(tiny_worker, "<image> <image>", PICTURE, status=400)
    assert "1 media and 2 places" in only["text"]


def test_an_unknown_model_is_refused(tiny_worker):
    assert generate(tiny_worker, "What?", model="other", status=404)[0]["error_code"] == 40301


def test_fewer_tokens_where_no_more_fit(tiny_worker, tiny_engine):
    """Published: max_new_tokens is cut to what the context leaves."""
    frames = generate(tiny_worker, QUESTION, CLIP, max_new_tokens=10 * tiny_engine.max_length, echo=False)
    assert frames[-1]["finish_reason"] in ("stop", "length") and frames[-1]["text"]


def test_stop_texts(tiny_worker):
    whole = generate(tiny_worker, QUESTION, CLIP, echo=False)[-1]["text"]
    word = whole.split()[-1]
    found = generate(tiny_worker, QUESTION, CLIP, echo=False, stop=word)[-1]["text"]
    assert found == whole[: whole.index(word)]
    assert generate(tiny_worker, QUESTION, CLIP, echo=False, stop="")[-1]["text"] == whole


def test_frames_can_be_sent_less_often(tiny_service):
    with AppThread(make_worker_app(tiny_service, Security(), stream_interval=1000)) as server:
        frames = generate(server, QUESTION, CLIP, echo=False)
        assert len(frames) == 2 and frames[0]["finish_reason"] is None


def test_the_openai_route_gives_the_same_answer(tiny_worker, tiny_engine):
    url = "data:video/mp4;base64," + base64.b64encode(CLIP.read_bytes()).decode()
    content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 24}
    reply = http.post(tiny_worker.url + "/v1/chat/completions", json=body, timeout=60).json()
    expected = direct(tiny_engine, QUESTION, ("video", str(CLIP)))
    assert reply["choices"][0]["message"]["content"] == expected.text


# --------------------------------------------------------------------------------------------------------------- status


def test_status(tiny_worker, tiny_service):
    assert http.post(tiny_worker.url + "/worker_get_status").json() == {
        "model_names": [MODEL],
        "speed": tiny_service.speed,
        "queue_length": 0,
        "num_frames": 8,
        "kinds": ["image", "video"],
        "max_model_len": tiny_service.engine.max_length,
    }
    assert http.get(tiny_worker.url + "/v1/models").json()["data"][0]["id"] == MODEL


def metrics(server):
    text = http.get(server.url + "/metrics").text
    return {name: float(value) for name, value in re.findall(r"^(videollama2:\S+) (\S+)$", text, re.M)}


def test_metrics(tiny_service, tiny_engine):
    service = WorkerService(tiny_engine, MODEL, tiny_service.policy, tiny_service.sandbox)
    label = f'{{model_name="{MODEL}"}}'
    with AppThread(make_worker_app(service, Security())) as server:
        frames = generate(server, QUESTION, CLIP)
        generate(server, "What?", model="other", status=404)
        wait_until(lambda: metrics(server)[f"videollama2:generation_tokens_total{label}"])
        reply = http.get(server.url + "/metrics")
        found = metrics(server)
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    usage = frames[-1]["usage"]
    assert found[f"videollama2:prompt_tokens_total{label}"] == usage["prompt_tokens"]
    assert found[f"videollama2:generation_tokens_total{label}"] == usage["completion_tokens"]
    assert found[f"videollama2:num_requests_running{label}"] == found[f"videollama2:num_requests_waiting{label}"] == 0
    for name in (
        "time_to_first_token_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
        "media_decode_seconds",
        "request_prompt_tokens",
        "request_generation_tokens",
    ):
        assert found[f"videollama2:{name}_count{label}"] == 1, name
    assert found[f"videollama2:inter_token_latency_seconds_count{label}"] >= 1
    assert found[f'videollama2:rejected_total{{model_name="{MODEL}",reason="model_not_found"}}'] == 1
    ended = f'videollama2:request_success_total{{finished_reason="{frames[-1]["finish_reason"]}",model_name="{MODEL}"}}'
    assert found[ended] == 1


@pytest.mark.slow
def test_every_route_needs_a_key(tiny_service):
    headers = {"authorization": "Bearer key"}
    with AppThread(make_worker_app(tiny_service, Security(api_keys=("key",)))) as server:
        routes = http.get(server.url + "/openapi.json", headers=headers).json()["paths"]
        assert {"/v1/chat/completions", "/worker_generate_stream", "/metrics"} <= set(routes)
        for path, methods in routes.items():
            for method in methods:
                status = http.request(method, server.url + path, json={}).status_code
                assert (status == 200) if path in ("/health", "/ready") else (status == 401), path
                assert http.request(method, server.url + path, json={}, headers=headers).status_code != 401, path


# ------------------------------------------------------------------------------------------------- leaving and draining


@pytest.fixture
def endless(tiny_engine):
    """Answers that end only where they must."""
    kept, tiny_engine._end_ids = tiny_engine._end_ids, frozenset()
    yield
    wait_until(lambda: not any(tiny_engine.load.values()))
    tiny_engine._end_ids = kept


def aborted(server):
    """Answers that ended because nobody waited for them."""
    return sum(value for name, value in metrics(server).items() if "request_success" in name and '"abort"' in name)


@pytest.mark.usefixtures("endless")
@pytest.mark.parametrize("path", ["/worker_generate_stream", "/v1/chat/completions"])
def test_a_client_that_leaves_frees_its_slot(tiny_worker, tiny_engine, path):
    body = {"model": MODEL, "prompt": "What?", "temperature": 0, "max_new_tokens": 900, "echo": False}
    if path.startswith("/v1"):
        messages = [{"role": "user", "content": "What?"}]
        body = {"model": MODEL, "messages": messages, "stream": True, "max_tokens": 900}
    before = aborted(tiny_worker)
    with http.stream("POST", tiny_worker.url + path, json=body, timeout=PATIENCE_S) as stream:
        seen = b""
        for chunk in stream.iter_raw():  # it may begin before its first token
            seen += chunk
            if re.search(rb'"(text|content)": ?"[^"]', seen):
                break
        else:
            pytest.fail(f"it ended with {seen[-1000:]!r}")
    wait_until(lambda: aborted(tiny_worker) == before + 1, what="the answer ends")
    wait_until(lambda: not tiny_engine.load["decoding"], what="its slot is free")


@pytest.mark.slow
@pytest.mark.usefixtures("endless")
def test_draining_lets_running_answers_end(tiny_service, tiny_engine):
    service = WorkerService(tiny_engine, MODEL, tiny_service.policy, tiny_service.sandbox)

    async def drain():
        service.closing = True

    server = AppThread(make_worker_app(service, Security()), drain=drain)
    body = {"model": MODEL, "prompt": "What?", "temperature": 0, "max_new_tokens": 60, "echo": False}
    with client_of(server) as client:
        with client.stream("POST", "/worker_generate_stream", json=body) as stream:
            chunks = stream.iter_raw()
            content = next(chunks)
            server.drain()
            wait_until(lambda: http.get(server.url + "/ready").status_code == 503)
            for path in ("/worker_generate_stream", "/v1/chat/completions", "/worker_get_status"):
                refused = http.post(server.url + path, json=body)
                assert refused.status_code == 503 and refused.headers["retry-after"]
            content += b"".join(chunks)
        assert frames_of(content)[-1]["usage"]["completion_tokens"] == 60
        server.join()


def test_a_full_queue_is_told_with_when_to_come_back(tiny_service, tiny_engine, monkeypatch):
    monkeypatch.setattr(tiny_engine, "max_queue", 0)
    with AppThread(make_worker_app(tiny_service, Security())) as server:
        body = {"model": MODEL, "prompt": "What?"}
        reply = http.post(server.url + "/worker_generate_stream", json=body)
        assert reply.status_code == 429 and reply.headers["retry-after"]
        assert frames_of(reply.content)[0]["error_code"] == 42903
