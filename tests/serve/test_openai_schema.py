"""The request's schema: all of OpenAI's fields, and nothing that changes an answer in silence."""

import json
from typing import get_args, get_type_hints

import pytest
from pydantic import TypeAdapter, ValidationError

from videollama2.inference.sampling import SamplingOptions
from videollama2.serve.api.request import ChatRequest

completion_create_params = pytest.importorskip("openai.types.chat.completion_create_params")

BASE = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def request(**fields):
    return ChatRequest.model_validate({**BASE, **fields})


def faults(**fields):
    with pytest.raises(ValidationError) as caught:
        request(**fields)
    return caught.value.errors()


def test_every_field_of_the_official_request_is_known():
    official = set()
    for name in ("CompletionCreateParamsNonStreaming", "CompletionCreateParamsStreaming"):
        official |= set(get_type_hints(getattr(completion_create_params, name)))
    assert official - set(ChatRequest.model_fields) == set()


def test_extensions_are_the_only_fields_besides():
    official = set(get_type_hints(completion_create_params.CompletionCreateParamsBase)) | {"stream"}
    ours = {"top_k", "repetition_penalty", "min_tokens", "mm_processor_kwargs"}
    assert set(ChatRequest.model_fields) - official == ours


def test_the_official_schema_takes_our_example():
    """What our documentation shows is a request of OpenAI's own types, but for the video."""
    adapter = TypeAdapter(completion_create_params.CompletionCreateParamsNonStreaming)
    body = {
        **BASE,
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "be brief"}]},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
                    {"type": "text", "text": "what is it?"},
                ],
            },
            {"role": "assistant", "content": "a cat"},
            {"role": "user", "content": "are you sure?"},
        ],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_completion_tokens": 5,
        "stop": ["\n"],
        "seed": 1,
        "logprobs": True,
        "top_logprobs": 3,
        "n": 2,
        "user": "u",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
    }
    adapter.validate_python(body)
    assert ChatRequest.model_validate(json.loads(json.dumps(body))).n == 2


HARMLESS = {
    "metadata": {"a": "b"},
    "parallel_tool_calls": True,
    "prediction": {"type": "content", "content": "x"},
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "prompt_cache_options": {"mode": "implicit"},
    "safety_identifier": "s",
    "service_tier": "flex",
    "store": True,
    "user": "u",
    "tools": [],
    "functions": [],
    "logit_bias": {},
    "tool_choice": "none",
    "function_call": "none",
    "frequency_penalty": 0,
    "presence_penalty": 0.0,
    "modalities": ["text"],
    "reasoning_effort": "none",
    "response_format": {"type": "text"},
    "verbosity": "medium",
    "moderation": None,
    "audio": None,
    "web_search_options": None,
    "n": None,
    "stop": None,
    "top_logprobs": None,
    "stream": None,
}


@pytest.mark.parametrize("field", HARMLESS)
def test_what_changes_no_answer_is_accepted(field):
    plain = request()
    assert request(**{field: HARMLESS[field]}).sampling() == plain.sampling()


CHANGING = {
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "functions": [{"name": "f"}],
    "tool_choice": "required",
    "function_call": {"name": "f"},
    "audio": {"voice": "alloy", "format": "mp3"},
    "modalities": ["text", "audio"],
    "response_format": {"type": "json_object"},
    "reasoning_effort": "high",
    "verbosity": "low",
    "web_search_options": {},
    "logit_bias": {"5": 10},
    "frequency_penalty": 0.5,
    "presence_penalty": -1,
    "moderation": {"model": "m"},
}


@pytest.mark.parametrize("field", CHANGING)
def test_what_would_change_it_and_cannot_is_refused_by_name(field):
    (fault,) = faults(**{field: CHANGING[field]})
    assert fault["loc"] == (field,)
    assert fault["type"] == "unsupported_parameter"
    assert "not supported" in fault["msg"]


@pytest.mark.parametrize(
    "fields",
    [
        {"temprature": 1},
        {"media_io_kwargs": {}},
        {"prompt_embeds": "x"},
        {"temperature": "0.5"},
        {"temperature": 2.1},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": True},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -2},
        {"top_k": 1.5},
        {"repetition_penalty": 0},
        {"repetition_penalty": float("inf")},
        {"n": 0},
        {"n": 17},
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"max_completion_tokens": -1},
        {"min_tokens": -1},
        {"stop": ["a"] * 5},
        {"stop": ""},
        {"stop": ["a", ""]},
        {"stop": "x" * 1025},
        {"stop": 5},
        {"seed": 2**63},
        {"seed": "1"},
        {"logprobs": 5},
        {"top_logprobs": 2},
        {"logprobs": True, "top_logprobs": 21},
        {"stream": 1},
        {"stream": "true"},
        {"stream_options": {"include_usage": True}},
        {"stream": True, "stream_options": {"x": 1}},
        {"max_tokens": 5, "max_completion_tokens": 6},
        {"max_tokens": 5, "min_tokens": 6},
        {"messages": []},
        {"messages": {}},
        {"messages": ["hi"]},
        {"model": 5},
        {"model": None},
        {"metadata": {"a": 1}},
        {"mm_processor_kwargs": {"num_frames": 0}},
        {"mm_processor_kwargs": {"fps": 1}},
        {"mm_processor_kwargs": {"start": -1}},
        {"mm_processor_kwargs": {"end": float("inf")}},
        {"mm_processor_kwargs": {"num_frames": 1025}},
    ],
)
def test_bad_values_are_refused(fields):
    assert faults(**fields)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "content": "x", "tool_call_id": "1"},
        {"role": "function", "content": "x", "name": "f"},
        {"role": "root", "content": "x"},
        {"content": "x"},
        {"role": "user"},
        {"role": "user", "content": None},
        {"role": "user", "content": 5},
        {"role": "user", "content": []},
        {"role": "user", "content": ["x"]},
        {"role": "user", "content": {"type": "text", "text": "x"}},
        {"role": "user", "content": "x", "extra": 1},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "assistant", "audio": {"id": "1"}},
        {"role": "assistant", "content": "x", "function_call": {"name": "f", "arguments": ""}},
        {"role": "system", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]},
        {"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]},
    ],
)
def test_bad_messages_are_refused(message):
    assert faults(messages=[message])


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
        {"type": "file", "file": {"file_id": "1"}},
        {"type": "image_embeds", "image_embeds": "AA=="},
        {"type": "video_embeds", "video_embeds": "AA=="},
        {"type": "prompt_embeds", "prompt_embeds": "AA=="},
        {"type": "audio_url", "audio_url": {"url": "data:x"}},
        {"type": "text"},
        {"type": "text", "text": 5},
        {"type": "image_url"},
        {"type": "image_url", "image_url": "data:x"},
        {"type": "image_url", "image_url": {"url": ""}},
        {"type": "image_url", "image_url": {"url": "x", "detail": "max"}},
        {"type": "image_url", "image_url": {"url": "x"}, "mm_processor_kwargs": {"num_frames": 2}},
        {"type": "video_url", "video_url": {"url": "x", "tensor": [1]}},
        {"type": "video", "video": "x"},
        {"type": "image_url", "image_url": {"url": "x"}, "pixel_values": [[1.0]]},
        {"image": "x"},
        {},
    ],
)
def test_bad_parts_are_refused_at_their_place(part):
    good = {"type": "text", "text": "x"}
    (fault,) = faults(messages=[{"role": "user", "content": [good, part]}])
    assert fault["loc"][:5] == ("messages", 0, "user", "content", "parts")
    assert fault["loc"][5] == 1


def test_options_of_the_engine():
    full = request(
        max_completion_tokens=9,
        temperature=0.7,
        top_p=0.5,
        top_k=4,
        min_tokens=2,
        stop="x",
        seed=-1,
        logprobs=True,
        top_logprobs=3,
        repetition_penalty=1.2,
    )
    assert full.sampling() == {
        "max_new_tokens": 9,
        "min_new_tokens": 2,
        "temperature": 0.7,
        "top_p": 0.5,
        "top_k": 4,
        "repetition_penalty": 1.2,
        "stop": "x",
        "logprobs": 3,
        "seed": 2**63 - 1,
    }
    SamplingOptions(**full.sampling())
    assert request(seed=5).sampling(2)["seed"] == 7
    assert request(logprobs=True).sampling()["logprobs"] == 0
    assert request(max_tokens=3).sampling()["max_new_tokens"] == 3
    assert request(max_tokens=3, max_completion_tokens=3).sampling()["max_new_tokens"] == 3
    assert request(top_k=-1).sampling()["top_k"] == 0


def test_a_whole_number_may_be_written_with_a_point():
    assert request(max_tokens=5.0, seed=3.0).sampling()["max_new_tokens"] == 5
    assert faults(max_tokens=float("inf"))


@pytest.mark.parametrize(
    ("fields", "temperature"),
    [
        ({}, 0.0),
        ({"seed": 3}, 0.0),
        ({"top_p": 1.0}, 0.0),
        ({"top_p": 0.9}, 1.0),
        ({"top_k": 5}, 1.0),
        ({"n": 2}, 1.0),
        ({"n": 2, "temperature": 0}, 0.0),
        ({"temperature": 0.3}, 0.3),
    ],
)
def test_the_temperature_nobody_gave(fields, temperature):
    assert request(**fields).sampling()["temperature"] == temperature


def test_the_schema_is_valid_json_schema():
    schema = ChatRequest.model_json_schema()
    assert {"model", "messages"} == set(schema["required"])
    assert schema["additionalProperties"] is False
    # It says what is accepted, not only what is known.
    assert schema["properties"]["tools"]["enum"] == [None, []]
    assert schema["properties"]["response_format"]["enum"] == [None, {"type": "text"}]
    assert get_args(ChatRequest.model_fields["messages"].annotation)
