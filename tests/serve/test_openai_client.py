"""The ``openai`` Python client works against the API unchanged."""

import asyncio

import pytest

openai = pytest.importorskip("openai")

from openai.types.chat import ChatCompletion, ChatCompletionChunk  # noqa: E402

from tests.serve.helpers.chats import KEY, openai_client  # noqa: E402
from tests.serve.helpers.media import data_url, demo, text_part, user, video_part  # noqa: E402
from tests.serve.helpers.servers import wait_until  # noqa: E402

LONG = {"temperature": 1.0, "seed": 4, "max_tokens": 15, "extra_body": {"min_tokens": 15}}


def whole(reply):
    """The reply, checked against the client's own types to the last field."""
    assert isinstance(reply, ChatCompletion)
    ChatCompletion.model_validate(reply.model_dump(), strict=True)
    assert not reply.model_extra
    return reply


def test_a_question_about_a_video(keyed_client):
    data = demo("moving_shapes.mp4").read_bytes()
    reply = whole(
        keyed_client.chat.completions.create(
            model="tiny",
            messages=[user(video_part(data), text_part("How many shapes are there?"))],
            max_completion_tokens=10,
            temperature=0,
            extra_body={"mm_processor_kwargs": {"num_frames": 8}},
        )
    )
    (choice,) = reply.choices
    assert choice.message.role == "assistant"
    assert choice.message.content.strip()
    assert choice.finish_reason in ("stop", "length")
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.prompt_tokens_details.cached_tokens >= 0


def test_a_question_about_an_image(keyed_client):
    part = {"type": "image_url", "image_url": {"url": data_url(demo("shapes.png").read_bytes(), "image/png")}}
    part["image_url"]["detail"] = "high"
    reply = keyed_client.chat.completions.create(
        model="tiny", messages=[user(part, text_part("What is red?"))], max_tokens=5
    )
    assert whole(reply).choices[0].message.content


def test_everything_at_once(keyed_client):
    reply = whole(
        keyed_client.chat.completions.create(
            model="tiny",
            messages=[{"role": "developer", "content": "be brief"}, user("Tell me")],
            n=2,
            logprobs=True,
            top_logprobs=2,
            stop=["\n\n\n"],
            top_p=0.9,
            presence_penalty=0,
            frequency_penalty=0,
            user="somebody",
            metadata={"a": "b"},
            store=False,
            service_tier="auto",
            parallel_tool_calls=False,
            response_format={"type": "text"},
            modalities=["text"],
            logit_bias={},
            prompt_cache_key="k",
            safety_identifier="s",
            verbosity="medium",
            reasoning_effort="none",
            **LONG,
        )
    )
    assert len(reply.choices) == 2
    (first, *_) = reply.choices[0].logprobs.content
    assert len(first.top_logprobs) == 2


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"n": 2}, {"logprobs": True, "top_logprobs": 1}])
def test_streams(keyed_client, options):
    body = {"model": "tiny", "messages": [user("Tell me")], **LONG, **options}
    expected = keyed_client.chat.completions.create(**body)
    texts, reasons, usages = {}, {}, []
    with keyed_client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True}) as stream:
        for chunk in stream:
            ChatCompletionChunk.model_validate(chunk.model_dump(), strict=True)
            usages.append(chunk.usage)
            for choice in chunk.choices:
                texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
                reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
    assert [texts[choice.index] for choice in expected.choices] == [c.message.content for c in expected.choices]
    assert [reasons[choice.index] for choice in expected.choices] == [c.finish_reason for c in expected.choices]
    assert usages[-1].completion_tokens == expected.usage.completion_tokens
    assert usages[:-1] == [None] * (len(usages) - 1)


def test_the_clients_own_accumulator(keyed_client):
    """``stream()`` joins chunks by itself, log-probabilities included."""
    body = {"model": "tiny", "messages": [user("Tell me")], "logprobs": True, **LONG}
    text = keyed_client.chat.completions.create(**body).choices[0].message.content
    body["stop"] = text[-4:]  # it takes an answer that was cut for a failed one
    expected = keyed_client.chat.completions.create(**body)
    with keyed_client.chat.completions.stream(**body) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == expected.choices[0].message.content
    told = [token.token for token in final.choices[0].logprobs.content]
    assert told == [token.token for token in expected.choices[0].logprobs.content]


def test_leaving_a_stream(keyed_client, keyed_chat):
    stream = keyed_client.chat.completions.create(
        model="tiny", messages=[user("Tell me")], stream=True, max_tokens=900, extra_body={"min_tokens": 900}
    )
    next(iter(stream))
    stream.close()
    keyed_client.chat.completions.create(model="tiny", messages=[user("x")], max_tokens=1)
    wait_until(lambda: not sum(keyed_chat.service.engine.load.values()), what="the answer that nobody reads ends")


def test_models(keyed_client):
    assert [model.id for model in keyed_client.models.list()] == ["tiny"]
    assert keyed_client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        keyed_client.models.retrieve("some/other")


@pytest.mark.parametrize(
    ("fields", "kind", "status", "code"),
    [
        ({"model": "gpt-6"}, openai.NotFoundError, 404, "model_not_found"),
        ({"functions": [{"name": "f"}]}, openai.BadRequestError, 400, "unsupported_parameter"),
        ({"modalities": ["audio"]}, openai.BadRequestError, 400, "unsupported_parameter"),
        ({"messages": [user("word " * 1500)]}, openai.BadRequestError, 400, "context_length_exceeded"),
        ({"messages": [user("word " * 1500)], "stream": True}, openai.BadRequestError, 400, "context_length_exceeded"),
        ({"extra_body": {"use_beam_search": True}}, openai.BadRequestError, 400, "unsupported_parameter"),
    ],
)
def test_errors_are_the_clients_own(keyed_client, fields, kind, status, code):
    with pytest.raises(kind) as caught:
        keyed_client.chat.completions.create(**{"model": "tiny", "messages": [user("x")], **fields})
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id


def test_a_long_response_input_is_cut_where_that_is_asked_for(keyed_client):
    long = {"model": "tiny", "input": "word " * 1500, "max_output_tokens": 4}
    with pytest.raises(openai.BadRequestError):
        keyed_client.responses.create(**long)
    reply = keyed_client.responses.create(**long, truncation="auto")
    assert reply.truncation == "auto" and 900 < reply.usage.input_tokens <= 1024 - reply.usage.output_tokens


def test_a_result_of_a_function_may_come_in_parts(keyed_client):
    call = {"type": "function_call", "call_id": "1", "name": "count", "arguments": "{}"}
    replies = [
        keyed_client.responses.create(
            model="tiny",
            input=[user("How many?"), call, {"type": "function_call_output", "call_id": "1", "output": output}],
            max_output_tokens=8,
        )
        for output in ("four", [{"type": "input_text", "text": "four"}])
    ]
    assert len({(reply.output_text, reply.usage.input_tokens) for reply in replies}) == 1


def test_embeddings_are_not_offered(keyed_client):
    with pytest.raises(openai.NotFoundError) as caught:
        keyed_client.embeddings.create(model="tiny", input="a")
    assert caught.value.type == "invalid_request_error"
    assert "nothing at this path" in caught.value.body["message"]


def test_a_wrong_key(keyed_chat):
    with openai_client(keyed_chat, "sk-wrong") as stranger:
        with pytest.raises(openai.AuthenticationError):
            stranger.models.list()
        with pytest.raises(openai.AuthenticationError):
            stranger.chat.completions.create(model="tiny", messages=[user("x")])


def test_the_asynchronous_client(keyed_chat):
    async def main():
        async with openai.AsyncOpenAI(base_url=keyed_chat.url + "/v1", api_key=KEY, max_retries=0, timeout=60) as found:
            replies = await asyncio.gather(
                *(
                    found.chat.completions.create(model="tiny", messages=[user(f"number {n}")], max_tokens=8)
                    for n in range(8)
                )
            )
            stream = await found.chat.completions.create(
                model="tiny", messages=[user("number 3")], max_tokens=8, stream=True
            )
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            return replies, text

    replies, text = asyncio.run(main())
    assert replies[3].choices[0].message.content == text
