"""Requests that are refused for a value, a message or a part, and the place that the complaint names."""

import pytest

from tests.serve.helpers.chats import BASE, faults
from videollama2.serve.web.body import place_of_fault


@pytest.mark.parametrize(
    "fields",
    [
        {"frequency_penalty": 2.5},
        {"presence_penalty": -2.5},
        {"logit_bias": {"a": 1}},
        {"logit_bias": {"5": 101}},
        {"min_p": 1.5},
        {"best_of": 2},
        {"request_id": "a b"},
        {"tools": [{"type": "function"}]},
        {"tools": [{"type": "web_search"}]},
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"tools": [{"type": "function", "function": {"name": "f"}}] * 2},
        {"response_format": {"type": "structural_tag"}},
        {"response_format": {"type": "json_object"}, "guided_choice": ["a"]},
        {"response_format": {"type": "json_object"}, "min_tokens": 5},
        {"structured_outputs": {"choice": ["a"], "regex": "a"}},
        {"guided_choice": "a"},
        {"continue_final_message": True},
        {"continue_final_message": True, "add_generation_prompt": True},
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
        {"stream": True, "stream_options": {"include_usage": 1}},
        {"max_tokens": 5, "max_completion_tokens": 6},
        {"max_tokens": 5, "min_tokens": 6},
        {"messages": []},
        {"messages": {}},
        {"messages": ["hi"]},
        {"model": 5},
        {"model": None},
        {"metadata": {"a": 1}},
        {"mm_processor_kwargs": {"num_frames": 0}},
        {"mm_processor_kwargs": {"fps": 0}},
        {"truncate_prompt_tokens": 0},
        {"truncate_prompt_tokens": -2},
        {"priority": 1.5},
        {"mm_processor_kwargs": {"fps": 1e9}},
        {"mm_processor_kwargs": {"fps": 1, "num_frames": 4}},
        {"media_io_kwargs": {"video": {"num_frames": 0}}},
        {"metadata": {str(n): "a" for n in range(17)}},
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
        {"role": "tool", "content": "x"},
        {"role": "function", "content": "x", "name": "f"},
        {"role": "root", "content": "x"},
        {"content": "x"},
        {"role": "user"},
        {"role": "user", "content": None},
        {"role": "user", "content": 5},
        {"role": "user", "content": []},
        {"role": "user", "content": ["x"]},
        {"role": "user", "content": {"type": "text", "text": "x"}},
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
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "exe"}},
        {"type": "input_audio", "input_audio": {"data": "AA=="}},
        {"type": "file", "file": {"file_id": "1"}},
        {"type": "image_embeds", "image_embeds": "AA=="},
        {"type": "video_embeds", "video_embeds": "AA=="},
        {"type": "prompt_embeds", "prompt_embeds": "AA=="},
        {"type": "audio_url", "audio_url": {"url": ""}},
        {"type": "audio_url"},
        {"type": "text"},
        {"type": "text", "text": 5},
        {"type": "image_url"},
        {"type": "image_url", "image_url": 5},
        {"type": "image_url", "image_url": {"url": ""}},
        {"type": "image_url", "image_url": {"url": "x", "detail": "max"}},
        {"type": "video_url", "video_url": ""},
        {"type": "video", "video": "x"},
        {"image": "x"},
        {},
    ],
)
def test_bad_parts_are_refused_at_their_place(part):
    good = {"type": "text", "text": "x"}
    (fault,) = faults(messages=[{"role": "user", "content": [good, part]}])
    assert fault["loc"][:5] == ("messages", 0, "user", "content", "parts")
    assert fault["loc"][5] == 1


def test_of_very_many_faults_the_first_is_told():
    for fields in (
        {"stop": [1] * 50_000},
        {"messages": [1] * 2000},
        {"tools": [1] * 128},
        {"guided_choice": [1] * 999},
    ):
        assert len(faults(**fields)) <= 3, fields
    assert len(faults(messages=[{"role": "user", "content": [1] * 1000}])) == 1


@pytest.mark.parametrize(
    ("message", "place"),
    [
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": 5}}]},
            "messages.0.content.0.image_url.url",
        ),
        ({"role": "user", "content": [{"type": "image_url", "image_url": ""}]}, "messages.0.content.0.image_url"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages.0.content.0.text"),
        ({"role": "user", "content": 5}, "messages.0.content"),
        ({"role": "user"}, "messages.0.content"),
        ({"content": "x"}, "messages.0.role"),
        (5, "messages.0"),
    ],
)
def test_complaints_name_a_place_in_the_clients_body(message, place):
    fault, body = faults(messages=[message])[0], {**BASE, "messages": [message]}
    assert place_of_fault(fault, body) == place
