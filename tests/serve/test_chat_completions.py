"""Chat completions over real sockets, by the tiny model."""

import base64
import concurrent.futures
import json
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.conftest import golden_dir
from tests.serve.api_fixtures import (
    data_url,
    demo,
    film,
    image_part,
    live_chat,
    picture,
    text_part,
    tiny,
    tiny_engine,
    user,
    video_part,
)
from videollama2.inference.request import Request
from videollama2.serve.settings import Security
from videollama2.serve.worker.budget import Budget, WaitingBudget
from videollama2.serve.worker.service import ChatLimits

MOVING = Path(__file__).parents[1] / "media" / "cases"
MEDIA = golden_dir() / "media"
PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def chat():
    with live_chat() as (server, service), httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
        client.service = service
        yield client


def ask(client, *parts, **fields):
    messages = fields.pop("messages", None) or [user(*parts)]
    return client.post(PATH, json={"model": "tiny", "messages": messages, "max_tokens": 24, **fields})


def answer(client, *parts, **fields):
    reply = ask(client, *parts, **fields)
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["message"]["content"]


def events(reply):
    assert reply.headers["content-type"].startswith("text/event-stream")
    blocks = reply.text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def refused(client, *parts, status=400, **fields):
    reply = ask(client, *parts, **fields)
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def at_home(question, media, **options):
    """The answer of ``videollama2 ask``: the same engine, over the file itself."""
    with tiny_engine(max_batch=1, background=False) as engine:
        return engine.submit_request(Request(question, media, max_new_tokens=24, **options)).result().text


# -------------------------------------------------------------------------------------------------------------- answers

VIDEOS = [
    "portrait_25fps_57f.mp4",
    "clip_24fps_240f.webm",
    "landscape_30fps_90f.mp4",
    "short_10fps_5f.mp4",
    "one_frame.mp4",
    "anim_20f.gif",
]
IMAGES = ["wide.png", "tall.jpg", "gray.png", "rgba.png", "anim_20f.gif"]


@pytest.mark.parametrize("name", VIDEOS)
def test_a_video_has_the_answer_it_has_at_home(chat, name):
    path = MEDIA / name
    part = video_part(path.read_bytes(), "image/gif" if name.endswith("gif") else "video/mp4")
    question = "How many shapes are there and what do they do?"
    assert answer(chat, part, text_part(question)) == at_home(question, [("video", path)])


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_has_the_answer_it_has_at_home(chat, name):
    path = MEDIA / name
    question = "Describe the picture."
    assert answer(chat, image_part(path.read_bytes()), text_part(question)) == at_home(question, [("image", path)])


def test_the_engine_gets_the_same_pixels(chat):
    """Not only the same answer: the visual tokens of the file itself are found in the cache."""
    cache = chat.service.engine.media.cache
    for kind, path in (("video", MEDIA / "landscape_30fps_90f.mp4"), ("image", MEDIA / "tall.jpg")):
        part = (video_part if kind == "video" else image_part)(path.read_bytes())
        answer(chat, part, text_part("what is it?"))
        hits = cache.hits
        own = Request("what is it?", [(kind, path)], max_new_tokens=1)
        chat.service.engine.submit_request(own).result()
        assert cache.hits == hits + 1


@pytest.mark.parametrize(
    "options",
    [
        {"num_frames": 4},
        {"start": 1.0},
        {"end": 0.5},
        {"num_frames": 3, "start": 0.5, "end": 1.5},
        {"num_frames": 5, "sampling": "time"},
    ],
)
def test_frames_and_clip(chat, options):
    path = MEDIA / "landscape_30fps_90f.mp4"
    expected = at_home("What moves?", [{"type": "video", "path": path, **options}])
    data = path.read_bytes()
    by_request = ask(chat, video_part(data), text_part("What moves?"), mm_processor_kwargs=options).json()
    by_part = ask(chat, video_part(data, **options), text_part("What moves?"), mm_processor_kwargs={"num_frames": 9})
    assert by_request["choices"][0]["message"]["content"] == expected
    if "num_frames" in options:
        assert by_part.json()["choices"][0]["message"]["content"] == expected


@pytest.mark.parametrize("mime", ["video/mp4", "own", "application/octet-stream"])
@pytest.mark.parametrize("name", ["anim.webp", "anim_apng.png", "anim.avif"])
def test_a_moving_picture_is_a_video(chat, name, mime):
    path = MOVING / name
    mime = f"image/{path.suffix[1:]}" if mime == "own" else mime
    part = video_part(path.read_bytes(), mime)
    assert answer(chat, part, text_part("What moves?")) == at_home("What moves?", [("video", path)])


def test_a_folder_of_frames(chat):
    frames = sorted((MEDIA / "frames_dir").iterdir(), key=lambda path: (len(path.name), path.name))
    url = "data:video/jpeg;base64," + ",".join(base64.b64encode(path.read_bytes()).decode() for path in frames)
    part = {"type": "video_url", "video_url": {"url": url}}
    assert answer(chat, part, text_part("What moves?")) == at_home("What moves?", [("video", MEDIA / "frames_dir")])


def test_several_media_and_turns(chat):
    video, image = demo("moving_shapes.mp4"), demo("shapes.png")
    first = [video_part(video.read_bytes()), image_part(image.read_bytes()), text_part("Which came first?")]
    turns = [
        {"role": "system", "content": "Answer in one word."},
        user(*first),
        {"role": "assistant", "content": "red"},
        user(image_part(image.read_bytes()), text_part("And here?")),
    ]
    reply = ask(chat, messages=turns).json()
    own = [
        turns[0],
        user({"type": "video", "path": video}, {"type": "image", "path": image}, first[-1]),
        turns[2],
        user({"type": "image", "path": image}, text_part("And here?")),
    ]
    assert reply["choices"][0]["message"]["content"] == at_home(own, [])


def test_text_alone_developers_and_parts(chat):
    expected = answer(chat, "Hello there")
    assert answer(chat, text_part("Hello there")) == expected
    system = answer(chat, messages=[{"role": "system", "content": "Be brief."}, user("Hello there")])
    developer = [{"role": "developer", "content": [text_part("Be brief.")]}, user("Hello there")]
    assert answer(chat, messages=developer) == system
    refusal = {"role": "assistant", "content": None, "refusal": "I cannot"}
    asked = [user("a"), refusal, user("b")]
    spoken = [user("a"), {"role": "assistant", "content": "I cannot"}, user("b")]
    assert answer(chat, messages=asked) == answer(chat, messages=spoken)


def test_a_whole_reply(chat):
    reply = ask(chat, image_part(demo("shapes.png").read_bytes()), text_part("What is it?"), max_tokens=3)
    body = reply.json()
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert body["model"] == "tiny"
    assert abs(body["created"] - time.time()) < 60
    usage = body["usage"]
    assert usage["completion_tokens"] <= 3
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert reply.headers["x-request-id"]


def test_tokens_that_were_known_are_counted(chat):
    question = text_part("Is the same prompt known the second time it comes along? " * 3)
    first = ask(chat, question).json()["usage"]
    second = ask(chat, question).json()["usage"]
    assert first["prompt_tokens_details"]["cached_tokens"] < first["prompt_tokens"]
    assert 0 < second["prompt_tokens_details"]["cached_tokens"] < second["prompt_tokens"]


LONG = {"temperature": 1.0, "seed": 11, "min_tokens": 20, "max_tokens": 20}


@pytest.mark.parametrize("fields", [{}, LONG, {**LONG, "n": 3}, {**LONG, "logprobs": True, "top_logprobs": 2}])
def test_a_stream_says_what_the_whole_reply_says(chat, fields):
    parts = [image_part(picture()), text_part("What is it?")]
    whole = ask(chat, *parts, **fields).json()
    chunks = events(ask(chat, *parts, stream=True, stream_options={"include_usage": True}, **fields))
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[-1]["choices"] == []
    details = "prompt_tokens_details"
    assert {**chunks[-1]["usage"], details: None} == {**whole["usage"], details: None}
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    for choice in whole["choices"]:
        own = [c for chunk in chunks[:-1] for c in chunk["choices"] if c["index"] == choice["index"]]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(c["delta"].get("content", "") for c in own) == choice["message"]["content"]
        assert [c["finish_reason"] for c in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        told = [item for c in own for item in (c["logprobs"] or {}).get("content", [])]
        expected = (choice["logprobs"] or {}).get("content", [])
        assert [item["token"] for item in told] == [item["token"] for item in expected]
        if expected:
            assert own[1]["logprobs"]["content"], "those of a piece of text come with it"


def test_without_being_asked_a_stream_tells_no_usage(chat):
    chunks = events(ask(chat, "Hello", stream=True))
    assert all("usage" not in chunk for chunk in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")


def test_several_answers_differ_and_repeat(chat):
    fields = {**LONG, "n": 4}
    first = ask(chat, "Tell me", **fields).json()
    texts = [choice["message"]["content"] for choice in first["choices"]]
    assert [choice["index"] for choice in first["choices"]] == [0, 1, 2, 3]
    assert len(set(texts)) == 4
    assert [c["message"]["content"] for c in ask(chat, "Tell me", **fields).json()["choices"]] == texts
    assert first["usage"]["completion_tokens"] == 80
    assert answer(chat, "Tell me", **{**LONG, "seed": 13}) == texts[2]


def test_stop_texts_end_the_answer(chat):
    whole = answer(chat, "Tell me", **LONG)
    stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
    for given in (stop, ["nowhere-to-be-found", stop]):
        body = ask(chat, "Tell me", **{**LONG, "stop": given}).json()["choices"][0]
        assert body["message"]["content"] == whole[: whole.index(stop)]
        assert body["finish_reason"] == "stop"


def test_lengths(chat):
    body = ask(chat, "Tell me", max_tokens=None, max_completion_tokens=5, min_tokens=5).json()
    assert (body["usage"]["completion_tokens"], body["choices"][0]["finish_reason"]) == (5, "length")
    # As many as fit.
    long = "word " * 930
    body = ask(chat, long, max_tokens=None, min_tokens=10**6).json()
    assert body["usage"]["completion_tokens"] < 100
    assert body["usage"]["total_tokens"] == 1024
    # More than fit: what is left.
    body = ask(chat, long, max_tokens=900, min_tokens=900).json()
    assert (body["usage"]["total_tokens"], body["choices"][0]["finish_reason"]) == (1024, "length")
    error = refused(chat, "word " * 1100, max_tokens=5)
    assert "maximum context length is 1024 tokens, but the prompt alone has 1111" in error["message"]
    assert error["param"] == "messages"


def test_fields_that_nobody_knows_are_ignored_and_named(chat, caplog):
    plain = answer(chat, "Tell me")
    with caplog.at_level("WARNING"):
        reply = ask(chat, "Tell me", temprature=1, messages=[{**user("Tell me"), "mood": "good"}])
    assert reply.json()["choices"][0]["message"]["content"] == plain
    assert reply.headers["x-ignored-fields"] == "temprature, messages.0.mood" and "temprature" in caplog.text
    assert "x-ignored-fields" not in ask(chat, "Tell me").headers
    assert ask(chat, "Tell me", temprature=1, stream=True).headers["x-ignored-fields"] == "temprature"


def test_addresses_as_texts_and_base64_in_lines(chat):
    data = demo("shapes.png").read_bytes()
    expected = answer(chat, image_part(data), text_part("What is it?"))
    url = data_url(data, "image/png")
    assert answer(chat, {"type": "image_url", "image_url": url}, text_part("What is it?")) == expected
    head, text = url.split(",")
    lines = head + "," + "".join(text[at : at + 76] + "\r\n" for at in range(0, len(text), 76))
    assert answer(chat, {"type": "image_url", "image_url": {"url": lines}}, text_part("What is it?")) == expected
    error = refused(chat, text_part("x"), {"type": "image_url", "image_url": "data:image/png;base64,AAAA"})
    assert error["param"] == "messages.0.content.1.image_url"


def test_a_bias_and_penalties_change_the_answer(chat):
    plain = answer(chat, "Tell me", **LONG)
    token = ask(chat, "Tell me", logprobs=True, **LONG).json()["choices"][0]["logprobs"]["content"][0]["token"]
    number = chat.service.tokenizer.convert_tokens_to_ids(chat.service.tokenizer.tokenize(token))[0]
    assert not answer(chat, "Tell me", logit_bias={str(number): -100}, **LONG).startswith(token)
    for field in ("frequency_penalty", "presence_penalty"):
        assert answer(chat, "Tell me", **{**LONG, field: 2.0}) != plain
    assert answer(chat, "Tell me", **{**LONG, "min_p": 1.0}) == answer(chat, "Tell me", **{**LONG, "top_k": 1})


def test_the_end_of_text_can_be_ignored(chat):
    whole = ask(chat, "Tell me", max_tokens=60, ignore_eos=True).json()
    assert whole["usage"]["completion_tokens"] == 60 and whole["choices"][0]["finish_reason"] == "length"
    assert "<|im_end|>" in answer(chat, "Tell me", max_tokens=60, ignore_eos=True, skip_special_tokens=False)


def test_an_answer_that_was_begun_goes_on(chat):
    turns = [user("Tell me"), {"role": "assistant", "content": "The square is"}]
    reply = ask(chat, messages=turns, continue_final_message=True, add_generation_prompt=False)
    assert reply.status_code == 200, reply.text
    tokens = chat.post("/tokenize", json={"messages": turns, "continue_final_message": True}).json()
    assert tokens["count"] == reply.json()["usage"]["prompt_tokens"] and tokens["max_model_len"] == 1024
    assert "last message is the assistant's" in refused(chat, messages=turns)["message"]


def test_usage_so_far(chat):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events(ask(chat, "Tell me", stream=True, stream_options=options, **LONG))
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 20 and chunks[0]["usage"]["prompt_tokens"] > 0


def test_the_id_of_a_request_is_part_of_the_replys(chat):
    assert ask(chat, "Tell me", request_id="mine-1").json()["id"] == "chatcmpl-mine-1"


TWO_FPS = {"video": {"fps": 2}}


def test_frames_by_options_of_all_kinds(chat):
    path = MEDIA / "landscape_30fps_90f.mp4"
    part, question = video_part(path.read_bytes()), text_part("What moves?")
    by_name = answer(chat, part, question, mm_processor_kwargs={"num_frames": 3})
    assert answer(chat, part, question, media_io_kwargs={"video": {"num_frames": 3}}) == by_name
    by_rate = ask(chat, part, question, mm_processor_kwargs={"fps": 1})
    assert by_rate.status_code == 200, by_rate.text
    assert (
        answer(chat, {**part, "mm_processor_kwargs": {"num_frames": 3}}, question, media_io_kwargs=TWO_FPS) == by_name
    )
    six = ask(chat, part, question, mm_processor_kwargs={"num_frames": 6}).json()
    twice = ask(chat, part, question, media_io_kwargs=TWO_FPS).json()
    assert twice["choices"] == six["choices"], "3 s at 2 frames per second"
    assert twice["usage"]["prompt_tokens"] == six["usage"]["prompt_tokens"]


def test_a_prompt_that_is_cut_and_a_place_in_the_queue(chat):
    body = {"model": "tiny", "prompt": "one two three four five", "max_tokens": 4}
    short = chat.post("/v1/completions", json={**body, "truncate_prompt_tokens": 2, "priority": -3}).json()
    assert short["usage"]["prompt_tokens"] == 2
    long = ask(chat, "word " * 1500, truncate_prompt_tokens=-1, max_tokens=4).json()
    assert long["usage"]["completion_tokens"] <= 4 and long["usage"]["prompt_tokens"] > 100
    error = refused(chat, image_part(picture()), text_part("x"), truncate_prompt_tokens=3)
    assert "would cut a medium" in error["message"]


def test_values_of_the_chat_template(chat):
    reply = ask(chat, "Tell me", chat_template_kwargs={"enable_thinking": False})
    assert reply.status_code == 200, "a template that does not read it is not disturbed"


def test_a_penalty_and_top_k_change_the_answer(chat):
    fields = {"min_tokens": 20, "max_tokens": 20}
    plain = answer(chat, "Tell me", **fields)
    assert answer(chat, "Tell me", repetition_penalty=5.0, **fields) != plain
    assert answer(chat, "Tell me", temperature=2.0, top_k=1, seed=1, **fields) == plain


def test_log_probabilities(chat):
    body = ask(chat, "Tell me", logprobs=True, top_logprobs=3, **LONG).json()["choices"][0]
    content = body["logprobs"]["content"]
    assert len(content) == 20
    assert all(len(item["top_logprobs"]) == 3 and item["logprob"] <= 0 for item in content)
    data = b"".join(bytes(item["bytes"]) for item in content)
    assert data.decode("utf-8", "replace") == body["message"]["content"]
    alone = ask(chat, "Tell me", logprobs=True, **LONG).json()["choices"][0]["logprobs"]["content"]
    assert [item["top_logprobs"] for item in alone] == [[]] * 20
    assert ask(chat, "Tell me").json()["choices"][0]["logprobs"] is None


def test_models(chat):
    (model,) = chat.get("/v1/models").json()["data"]
    assert (model["id"], model["object"], model["owned_by"]) == ("tiny", "model", "videollama2")


# --------------------------------------------------------------------------------------------------------------- errors


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


def test_the_text_may_stand_before_its_medium(chat):
    """Most clients send the text first; the model was trained on the tag first."""
    question = text_part("What color is the shape?")
    for medium in (image_part(picture()), video_part(film())):
        replies = [ask(chat, *parts).json() for parts in ((question, medium), (medium, question))]
        assert replies[0]["choices"] == replies[1]["choices"]
        assert replies[0]["usage"]["prompt_tokens"] == replies[1]["usage"]["prompt_tokens"]


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
    with live_chat() as (server, service), httpx.Client(base_url=server.url, timeout=60) as client:
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


# --------------------------------------------------------------------------------------------------------------- bounds


def test_a_full_queue_is_a_429():
    engine = tiny_engine(max_batch=1, max_queue=1)
    with live_chat(engine) as (server, service), httpx.Client(base_url=server.url, timeout=60) as client:
        body = {"model": "tiny", "messages": [user("Tell me")], "stream": True, "min_tokens": 900, "max_tokens": 900}
        with client.stream("POST", PATH, json=body) as running:
            lines = running.iter_lines()  # kept: a stream whose reader is gone is closed
            next(lines)
            waiting = engine.submit("wait", min_new_tokens=900, max_new_tokens=900)
            reply = ask(client, "x")
            assert reply.status_code == 429
            assert reply.json()["error"]["type"] == "rate_limit_error"
            assert int(reply.headers["retry-after"]) >= 1
            # n answers that do not all find room are none.
            waiting.cancel()
            while engine.load["waiting"]:
                time.sleep(0.005)
            assert ask(client, "x", n=3, temperature=1.0).status_code == 429
            wait_for(lambda: engine.load["waiting"] == 0)


def test_requests_that_are_being_prepared_are_bounded():
    with live_chat(limits=ChatLimits(max_requests=1)) as (server, service):
        service.preparing = 1
        with httpx.Client(base_url=server.url, timeout=60) as client:
            assert ask(client, "x").status_code == 429
            service.preparing = 0
            assert ask(client, "x").status_code == 200


def test_frames_of_running_answers_are_bounded_and_given_back():
    with (
        live_chat(limits=ChatLimits(max_frame_bytes=60_000)) as (server, service),
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        parts = [video_part(film()), text_part("what?")]  # 8 frames of 48 x 64 x 3
        body = {"model": "tiny", "messages": [user(*parts)], "stream": True, "min_tokens": 900, "max_tokens": 900}
        with client.stream("POST", PATH, json=body) as running:
            lines = running.iter_lines()  # kept: a stream whose reader is gone is closed
            next(lines)
            assert service.frames.used > 30_000
            reply = ask(client, *parts)
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "overloaded")
            assert ask(client, "text needs none").status_code == 200
        wait_for(lambda: service.frames.used == 0)
        assert ask(client, *parts).status_code == 200
        wait_for(lambda: service.frames.used == 0)


def test_raw_bytes_wait_their_turn():
    import asyncio

    async def main():
        budget, log = WaitingBudget(10), []

        async def hold(name, count, until):
            async with budget.hold(count):
                log.append(name)
                await until.wait()

        gates = [asyncio.Event() for _ in range(4)]
        tasks = [
            asyncio.ensure_future(hold(name, count, gate))
            for name, count, gate in zip("abcd", (6, 6, 2, 99), gates, strict=True)
        ]
        await asyncio.sleep(0)
        assert log == ["a"]  # c would fit, but comes after b
        tasks[1].cancel()
        await asyncio.wait([tasks[1]])
        await asyncio.sleep(0)
        assert log == ["a", "c"]
        for gate in gates:
            gate.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert log == ["a", "c", "d"]  # more than all counts as all
        assert budget.used == 0

    asyncio.run(main())


def test_a_budget_takes_one_that_is_too_large_alone():
    budget = Budget(10)
    assert budget.take(50)
    assert not budget.take(1)
    budget.give_back(50)
    assert budget.take(10)


# ---------------------------------------------------------------------------------------------------- clients who leave


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def idle(service):
    return sum(service.engine.load.values()) == 0


def send_raw(server, body):
    """A request over a socket of our own, which can be closed at any moment."""
    data = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", server.port))
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_whoever_leaves_frees_the_slot(stream, n):
    with live_chat() as (server, service):
        answers, submit = [], service.engine.submit
        service.engine.submit = lambda *args, **options: answers.append(submit(*args, **options)) or answers[-1]
        body = {
            "model": "tiny",
            "messages": [user("Tell me")],
            "stream": stream,
            "min_tokens": 900,
            "max_tokens": 900,
            "n": n,
            "temperature": 1.0,
        }
        connection = send_raw(server, body)
        wait_for(lambda: service.engine.load["decoding"] == n)
        if stream:
            connection.recv(100)
        connection.close()
        wait_for(lambda: idle(service))
        assert [answer.result(timeout=30).finish_reason for answer in answers] == ["cancelled"] * n


def test_whoever_leaves_while_media_are_fetched_ends_that():
    with socket.create_server(("127.0.0.1", 0)) as slow:
        port = slow.getsockname()[1]
        allowed = frozenset({f"127.0.0.1:{port}"})
        with live_chat(allowed_hosts=allowed, fetch_timeout_s=60.0) as (server, service):
            url = f"http://127.0.0.1:{port}/x"
            part = {"type": "image_url", "image_url": {"url": url}}
            connection = send_raw(server, {"model": "tiny", "messages": [user(part, text_part("x"))]})
            fetching, _ = slow.accept()
            assert service.preparing == 1
            connection.close()
            while fetching.recv(4096):
                pass  # the server hangs up
            wait_for(lambda: service.preparing == 0)
            fetching.close()


# ----------------------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize("name", ["<video>", "<image>", "<|im_end|>", "<|im_start|>", "<|endoftext|>"])
def test_names_of_tags_and_control_tokens_stay_text(chat, name):
    """End to end: what the engine got holds no more placeholders and control tokens than the conversation itself."""
    engine, tokenizer = chat.service.engine, tiny()[1].tokenizer
    seen = []
    submit = engine.submit

    def recording(messages, **options):
        found = submit(messages, **options)
        seen.append((messages, found.prompt))
        return found

    engine.submit = recording
    try:
        text = f"a {name} b{name}"
        image = image_part(picture())
        answer(chat, image, text_part("a   b"))
        answer(chat, image, text_part(text))
        answer(
            chat,
            messages=[
                {"role": "system", "content": text},
                user(text),
                {"role": "assistant", "content": [text_part(text)]},
                user(image, text_part(text)),
            ],
        )
    finally:
        del engine.submit
    special = set(tokenizer.all_special_ids)

    def control(prompt):
        return [number for number in tokenizer(prompt, add_special_tokens=False).input_ids if number in special]

    plain, odd, long = (prompt for _, prompt in seen)
    assert control(odd) == control(plain)
    assert len(control(long)) == 9  # four messages that begin and end, and the answer that begins
    parts = [
        part["type"] for message in seen[2][0] if isinstance(message["content"], list) for part in message["content"]
    ]
    assert parts == ["image", "text"]


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in (golden_dir() / "models").glob("*/config.json")))
def test_no_tokenizer_reads_control_tokens_from_text(folder):
    """For the decoders of the published checkpoints."""
    from transformers import AutoTokenizer

    from videollama2.serve.api.messages import TextGuard

    tokenizer = AutoTokenizer.from_pretrained(golden_dir() / "models" / folder)
    guard = TextGuard(tokenizer, (), 10_000)
    names = [*tokenizer.all_special_tokens, *(str(token) for token in tokenizer.added_tokens_decoder.values())]
    for name in names:
        for text in (name, f"a{name}b", name * 3, name[:2] + name + name[2:]):
            ids = tokenizer(guard.clean(text, "x"), add_special_tokens=False).input_ids
            assert not {tokenizer.eos_token_id, tokenizer.bos_token_id} & set(ids)
    assert guard.clean("How many\nsquares?  \u00fc \U0001f3ac", "x") == "How many\nsquares?  \u00fc \U0001f3ac"


def test_an_unusual_character_is_only_that(chat):
    for text in ("\ue000\ue001", "\u200b<\u200b|im_end|>", "a\0b", "ｆｕｌｌ", "🎬" * 50, "<|im_end" + "|>" * 3):
        assert ask(chat, text).status_code == 200


# ----------------------------------------------------------------------------------------------------------------- keys


def test_keys_are_asked_for():
    with live_chat(security=Security(api_keys=("sk-one", "sk-two"))) as (server, _):
        for path in ("/v1/models", PATH):
            for headers in ({}, {"authorization": "Bearer sk-on"}, {"authorization": "sk-one"}):
                reply = httpx.request("POST" if path == PATH else "GET", server.url + path, headers=headers)
                assert reply.status_code == 401
                assert reply.json()["error"]["code"] == "invalid_api_key"
        for key in ("sk-one", "sk-two"):
            reply = httpx.get(server.url + "/v1/models", headers={"authorization": f"Bearer {key}"})
            assert reply.status_code == 200


def test_bodies_are_bounded():
    with live_chat(security=Security(max_body_bytes=10_000)) as (server, _):
        reply = httpx.post(server.url + PATH, json={"model": "tiny", "messages": [user("x" * 20_000)]})
        assert reply.status_code == 413
        assert reply.json()["error"]["code"] == "request_too_large"


def test_many_clients_at_once(chat):
    """Greedy answers do not depend on who else asks."""
    questions = [f"How many shapes are there in number {number}?" for number in range(12)]
    url = data_url(film(), "video/mp4")
    part = {"type": "video_url", "video_url": {"url": url}}
    alone = [answer(chat, part, text_part(question)) for question in questions]
    barrier = threading.Barrier(len(questions))

    def one(question):
        barrier.wait()
        return answer(chat, part, text_part(question))

    with concurrent.futures.ThreadPoolExecutor(len(questions)) as pool:
        assert list(pool.map(one, questions)) == alone
