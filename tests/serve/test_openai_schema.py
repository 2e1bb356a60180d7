"""The request's schema: all of OpenAI's fields, vLLM's beside them, and what becomes of those nobody knows."""

import json
from typing import get_args, get_type_hints

import pytest
from pydantic import TypeAdapter

from tests.serve.helpers.chats import BASE, faults, request
from videollama2.inference.sampling import SamplingOptions
from videollama2.serve.api.fields import ignored_fields
from videollama2.serve.api.request import ChatRequest
from videollama2.serve.api.responses import ResponsesRequest
from videollama2.serve.worker.service import structure_of

completion_create_params = pytest.importorskip("openai.types.chat.completion_create_params")

EXTENSIONS = """
top_k min_p repetition_penalty min_tokens ignore_eos skip_special_tokens structured_outputs guided_json guided_choice
guided_regex guided_grammar guided_decoding_backend request_id add_special_tokens priority truncate_prompt_tokens
use_beam_search length_penalty best_of stop_token_ids allowed_token_ids bad_words include_stop_str_in_output
spaces_between_special_tokens prompt_logprobs return_token_ids return_tokens_as_token_ids logits_processors cache_salt
prompt_embeds mm_processor_kwargs media_io_kwargs chat_template_kwargs add_generation_prompt continue_final_message
chat_template documents echo
"""
"""What vLLM's requests have beside the official fields, under vLLM's names."""


def test_every_field_of_the_official_request_is_known():
    official = set()
    for name in ("CompletionCreateParamsNonStreaming", "CompletionCreateParamsStreaming"):
        official |= set(get_type_hints(getattr(completion_create_params, name)))
    assert official - set(ChatRequest.model_fields) == set()


def test_extensions_are_the_only_fields_besides():
    official = set(get_type_hints(completion_create_params.CompletionCreateParamsBase)) | {"stream"}
    assert set(ChatRequest.model_fields) - official == set(EXTENSIONS.split())


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
    "best_of": 1,
    "priority": 0,
    "min_p": 0.0,
    "ignore_eos": False,
    "skip_special_tokens": True,
    "request_id": "mine-1",
    "truncate_prompt_tokens": -1,
    "use_beam_search": False,
    "length_penalty": 1.0,
    "stop_token_ids": [],
    "bad_words": [],
    "prompt_logprobs": None,
    "guided_decoding_backend": "auto",
    "media_io_kwargs": {},
    "chat_template_kwargs": {},
    "add_generation_prompt": True,
    "continue_final_message": False,
    "something_of_next_year": {"a": [1]},
}


@pytest.mark.parametrize("field", HARMLESS)
def test_what_changes_no_answer_is_accepted(field):
    plain = request()
    assert request(**{field: HARMLESS[field]}).sampling() == plain.sampling()


CHANGING = {
    "functions": [{"name": "f"}],
    "function_call": {"name": "f"},
    "audio": {"voice": "alloy", "format": "mp3"},
    "modalities": ["text", "audio"],
    "web_search_options": {},
    "moderation": {"model": "m"},
    "use_beam_search": True,
    "length_penalty": 0.5,
    "stop_token_ids": [5],
    "allowed_token_ids": [5],
    "bad_words": ["no"],
    "include_stop_str_in_output": True,
    "prompt_logprobs": 1,
    "chat_template": "{{ messages }}",
    "documents": [{"text": "a"}],
    "echo": True,
    "cache_salt": "mine",
    "prompt_embeds": "AA==",
}


@pytest.mark.parametrize("field", CHANGING)
def test_what_would_change_it_and_cannot_is_refused_by_name(field):
    (fault,) = faults(**{field: CHANGING[field]})
    assert fault["loc"] == (field,)
    assert fault["type"] == "unsupported_parameter"
    assert len(fault["msg"]) > 10, "why not, in words"


@pytest.mark.parametrize(("field", "value"), [("reasoning_effort", "high"), ("verbosity", "low")])
def test_hints_change_nothing_and_are_named(field, value):
    """What the clients of models that reason send. vLLM takes them for models that do not."""
    body = request(**{field: value})
    assert body.sampling() == request().sampling() and ignored_fields(body) == [field]
    (fault,) = faults(**{field: "loudly"})
    assert fault["type"] == "literal_error"


@pytest.mark.parametrize(
    ("reasoning", "named"), [({"effort": "low"}, True), ({"effort": None, "summary": None}, False), (None, False)]
)
def test_a_hint_about_reasoning_is_named(reasoning, named):
    body = ResponsesRequest(model="m", input="hi", reasoning=reasoning)
    assert ignored_fields(body) == ["reasoning"] * named


def test_fields_that_nobody_knows_are_named():
    part = {"type": "text", "text": "x", "of_part": 1}
    body = request(
        temprature=1,
        messages=[{"role": "user", "content": "a"}, {"role": "user", "content": [part], "of_message": 2}],
        stream=True,
        stream_options={"of_options": 3},
        **{"bad, name\n": 4, "ü": 5},
    )
    assert ignored_fields(body) == [
        "temprature",
        "bad??name?",
        "?",
        "stream_options.of_options",
        "messages.1.of_message",
        "messages.1.content.0.of_part",
    ]
    assert ignored_fields(request()) == []
    assert len(ignored_fields(request(**{f"field{n}": n for n in range(100)}))) == 8


@pytest.mark.parametrize(
    ("fields", "kind", "value"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object", None),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "null"}}}},)
        + ("json_schema", {"type": "null"}),
        ({"structured_outputs": {"json": {"type": "null"}}}, "json_schema", {"type": "null"}),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "choice", ["a", "b"]),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+"),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, "grammar", 'start: "a"'),
        ({"structured_outputs": {"json_object": True}}, "json_object", None),
        ({"guided_json": '{"type": "null"}'}, "json_schema", '{"type": "null"}'),
        ({"guided_choice": ["a"]}, "choice", ["a"]),
        ({"guided_regex": "a+"}, "regex", "a+"),
        ({"guided_grammar": 'start: "a"'}, "grammar", 'start: "a"'),
    ],
)
def test_the_form_of_an_answer(fields, kind, value):
    (form,) = request(**fields).forms()
    assert (form.kind, form.value) == (kind, value)
    assert structure_of([form]).kind == ("json" if kind.startswith("json") else kind)


def test_the_form_of_a_call_that_is_demanded():
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    assert request(tools=tools).forms() == request(tools=tools, tool_choice="none").forms() == []
    named = {"type": "function", "function": {"name": "f"}}
    assert request(tools=tools, tool_choice=named).forms()[0].value == {"type": "object"}
    inner = {"type": "object", "properties": {"b": {"enum": [{"properties": {}}]}}}
    tools[0]["function"]["parameters"] = {**inner, "properties": {"a": inner}}
    closed = {**inner, "additionalProperties": False}
    assert request(tools=tools, tool_choice=named).forms()[0].value == {**closed, "properties": {"a": closed}}
    (form,) = request(tools=tools, tool_choice="required", parallel_tool_calls=False).forms()
    assert form.value["maxItems"] == form.value["minItems"] == 1


def test_frames_of_all_videos():
    body = request(media_io_kwargs={"video": {"num_frames": 3}}, mm_processor_kwargs={"fps": 1, "start": 2})
    assert body.media_io_kwargs.video.given() == {"num_frames": 3, "fps": None}
    assert body.mm_processor_kwargs.given() == {"num_frames": None, "fps": None, "start": 2}


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
        presence_penalty=0.5,
        logit_bias={"7": -3},
    )
    assert full.sampling(limit=full.limit) == {
        "min_p": 0.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.5,
        "logit_bias": {7: -3},
        "ignore_eos": False,
        "skip_special_tokens": True,
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
    assert request(max_tokens=3).limit == 3
    assert request(max_tokens=3, max_completion_tokens=3).limit == 3
    assert request(top_k=-1).sampling()["top_k"] == 0


def test_a_whole_number_may_be_written_with_a_point():
    assert request(max_tokens=5.0, seed=3.0).limit == 5
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
    # It says what is accepted, not only what is known.
    assert schema["properties"]["functions"]["enum"] == [None, []]
    assert schema["properties"]["modalities"]["enum"] == [None, ["text"]]
    assert get_args(ChatRequest.model_fields["messages"].annotation)
