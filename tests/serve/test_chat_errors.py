"""Chat completions that are refused or fail: status, code and place of every error, and keys."""

import json

import pytest

from tests.serve.helpers.chats import PATH, answer, ask, live_chat, refused
from tests.serve.helpers.media import film, image_part, picture, text_part, user, video_part
from tests.serve.helpers.servers import client_of, http
from videollama2.serve.settings import Security

# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.slow
def test_errors_have_their_status_place_and_code(chat):
    picture_part = image_part(picture())
    assert refused(chat, "x", model="other", status=404)["code"] == "model_not_found"
    assert refused(chat, "x", tools=[{"type": "function"}])["param"] == "tools.0.function"
    assert refused(chat, "x", use_beam_search=True)["code"] == "unsupported_parameter"
    assert refused(chat, "word " * 1500)["code"] == "context_length_exceeded"
    assert refused(chat, *[picture_part] * 5, text_part("x"))["code"] == "too_many_media"
    error = refused(chat, text_part("x"), image_part(b"rubbish"))
    assert (error["code"], error["param"]) == ("invalid_media", "messages.0.content.1.image_url.url")
    error = refused(chat, image_part(bytes(17 << 20)), text_part("x"), status=413)
    assert error["code"] == "media_too_large"
    error = refused(chat, {"type": "image_url", "image_url": {"url": "http://a.example/"}}, text_part("x"))
    assert error["code"] == "media_not_allowed"
    assert "no text" in refused(chat, "  ")["message"]
    assert "nothing to answer" in refused(chat, messages=[user("a"), {"role": "assistant", "content": "b"}])["message"]
    assert "start 9 s is after" in refused(chat, video_part(film(), start=9), text_part("x"))["message"]
    assert refused(chat, video_part(film(), num_frames=100), text_part("x"))["code"] == "invalid_media"


def test_turns_that_say_little_are_accepted(chat):
    medium, question = image_part(picture()), text_part("What color is the shape?")
    asked = answer(chat, medium, question)
    assert answer(chat, messages=[user(medium), user(question)]) == asked, "a question in the next message"
    assert answer(chat, messages=[{"role": "system", "content": " "}, user(medium, question)]) == asked
    assert answer(chat, medium), "a medium without words"
    assert answer(chat, messages=[user("a"), {"role": "assistant"}, user(medium, question)])
    assert answer(chat, messages=[user("a"), {"role": "assistant", "content": ""}, user(medium, question)])


@pytest.mark.parametrize("stream", [False, True])
def test_what_fails_before_the_first_token_has_its_own_status(chat, stream):
    assert refused(chat, "word " * 1100, stream=stream, max_tokens=900)["code"] == "context_length_exceeded"
    assert refused(chat, image_part(b"x"), text_part("x"), stream=stream)["code"] == "invalid_media"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"5",
        b'"x"',
        b"\xff\xfe",
        b'{"model": "tiny"}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"model": "tiny", "temperature": NaN, "messages": [{"role": "user", "content": "x"}]}',
    ],
)
def test_bodies_that_are_none(chat, body):
    reply = chat.post(PATH, content=body, headers={"content-type": "application/json"})
    assert 400 <= reply.status_code < 500, reply.text
    assert reply.json()["error"]["message"]
    assert "Traceback" not in reply.text


def test_a_fault_in_the_middle_of_a_stream_is_told(chat):
    """An engine that closes under a running answer: the client hears of it as an event, and of no end."""
    with live_chat() as (server, service), client_of(server) as client:
        body = {"model": "tiny", "messages": [user("Tell me")], "stream": True, "min_tokens": 900, "max_tokens": 900}
        with client.stream("POST", PATH, json=body) as reply:
            lines = reply.iter_lines()
            assert reply.status_code == 200
            next(lines)
            service.engine.close()
            rest = "\n".join(lines)
        assert json.loads(rest.strip().split("\n")[-1].removeprefix("data: "))["error"]["code"] == "shutting_down"
        assert "[DONE]" not in rest
        reply = ask(client, "again")
        assert reply.status_code == 503
        assert int(reply.headers["retry-after"]) >= 1


def test_a_server_that_drains_takes_no_more(chat):
    chat.service.closing = True
    try:
        reply = ask(chat, "x")
    finally:
        chat.service.closing = False
    assert reply.status_code == 503
    assert reply.json()["error"]["code"] == "shutting_down"
    assert reply.headers["retry-after"] == "2"


# ----------------------------------------------------------------------------------------------------------------- keys


def test_keys_are_asked_for():
    with live_chat(security=Security(api_keys=("sk-one", "sk-two"))) as (server, _):
        for path in ("/v1/models", PATH):
            for headers in ({}, {"authorization": "Bearer sk-on"}, {"authorization": "sk-one"}):
                reply = http.request("POST" if path == PATH else "GET", server.url + path, headers=headers)
                assert reply.status_code == 401
                assert reply.json()["error"]["code"] == "invalid_api_key"
        for key in ("sk-one", "sk-two"):
            reply = http.get(server.url + "/v1/models", headers={"authorization": f"Bearer {key}"})
            assert reply.status_code == 200


def test_bodies_are_bounded():
    with live_chat(security=Security(max_body_bytes=10_000)) as (server, _):
        reply = http.post(server.url + PATH, json={"model": "tiny", "messages": [user("x" * 20_000)]})
        assert reply.status_code == 413
        assert reply.json()["error"]["code"] == "request_too_large"
