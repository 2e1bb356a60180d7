"""Chat completions over real sockets, by the tiny model: whole replies, streams, and options of an answer."""

import json
import time

import pytest

from tests.serve.helpers.chats import answer, ask, refused
from tests.serve.helpers.media import demo, image_part, picture, text_part, user


def events(reply):
    assert reply.headers["content-type"].startswith("text/event-stream")
    blocks = reply.text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_several_answers_differ_and_repeat(chat):
    fields = {**LONG, "n": 4}
    first = ask(chat, "Tell me", **fields).json()
    texts = [choice["message"]["content"] for choice in first["choices"]]
    assert [choice["index"] for choice in first["choices"]] == [0, 1, 2, 3]
    assert len(set(texts)) == 4
    assert [c["message"]["content"] for c in ask(chat, "Tell me", **fields).json()["choices"]] == texts
    assert first["usage"]["completion_tokens"] == 80
    assert answer(chat, "Tell me", **{**LONG, "seed": 13}) == texts[2]


@pytest.mark.slow
def test_stop_texts_end_the_answer(chat):
    whole = answer(chat, "Tell me", **LONG)
    stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
    for given in (stop, ["nowhere-to-be-found", stop]):
        body = ask(chat, "Tell me", **{**LONG, "stop": given}).json()["choices"][0]
        assert body["message"]["content"] == whole[: whole.index(stop)]
        assert body["finish_reason"] == "stop"


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_bias_and_penalties_change_the_answer(chat):
    plain = answer(chat, "Tell me", **LONG)
    token = ask(chat, "Tell me", logprobs=True, **LONG).json()["choices"][0]["logprobs"]["content"][0]["token"]
    number = chat.service.tokenizer.convert_tokens_to_ids(chat.service.tokenizer.tokenize(token))[0]
    assert not answer(chat, "Tell me", logit_bias={str(number): -100}, **LONG).startswith(token)
    for field in ("frequency_penalty", "presence_penalty"):
        assert answer(chat, "Tell me", **{**LONG, field: 2.0}) != plain
    assert answer(chat, "Tell me", **{**LONG, "min_p": 1.0}) == answer(chat, "Tell me", **{**LONG, "top_k": 1})


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_penalty_and_top_k_change_the_answer(chat):
    fields = {"min_tokens": 20, "max_tokens": 20}
    plain = answer(chat, "Tell me", **fields)
    assert answer(chat, "Tell me", repetition_penalty=5.0, **fields) != plain
    assert answer(chat, "Tell me", temperature=2.0, top_k=1, seed=1, **fields) == plain


@pytest.mark.slow
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
