"""Clients that people use work against the API unchanged; each test is skipped where its client is not installed."""

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.serve.helpers.chats import KEY
from tests.serve.helpers.media import data_url, demo, picture, user

SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}
PICTURE = data_url(picture(), "image/png")
QUESTION = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": PICTURE}}]
TOKENS = 80


@pytest.fixture
def base(keyed_chat):
    return keyed_chat.url + "/v1"


@pytest.fixture
def answer_type():
    pytest.importorskip("llguidance")
    from typing import Literal

    from pydantic import BaseModel, Field

    class Answer(BaseModel):
        """What was seen."""

        colour: Literal["red", "blue"]
        count: int = Field(ge=0, le=9)

    return Answer


# --------------------------------------------------------------------------------------------------------------- openai


@pytest.mark.slow
def test_openai_parses_an_answer(keyed_client, answer_type):
    messages = [user("How many?")]
    asked = {"model": "tiny", "messages": messages, "response_format": answer_type, "max_tokens": TOKENS}
    found = keyed_client.chat.completions.parse(**asked).choices[0].message.parsed
    assert isinstance(found, answer_type) and found.colour in ("red", "blue")
    whole = keyed_client.responses.parse(
        model="tiny", input="How many?", text_format=answer_type, max_output_tokens=TOKENS
    )
    assert isinstance(whole.output_parsed, answer_type)


@pytest.mark.slow
def test_openai_calls_tools(keyed_client, answer_type):
    function = {"name": "report", "description": "Say what was seen.", "parameters": SCHEMA}
    tools = [{"type": "function", "function": function}]
    options = {"model": "tiny", "messages": [user("How many?")], "tools": tools, "max_tokens": TOKENS}
    for choice, reason in (("required", "tool_calls"), ({"type": "function", "function": {"name": "report"}}, "stop")):
        reply = keyed_client.chat.completions.create(**options, tool_choice=choice).choices[0]
        (call,) = reply.message.tool_calls[:1]
        assert call.function.name == "report" and reply.finish_reason == reason
        answer_type.model_validate_json(call.function.arguments)
        with keyed_client.chat.completions.stream(**options, tool_choice=choice) as stream:
            told = stream.get_final_completion().choices[0].message.tool_calls[0].function
        assert told.name == "report" and answer_type.model_validate_json(told.arguments)
    turns = [
        user("How many?"),
        {"role": "assistant", "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "four"},
    ]
    assert keyed_client.chat.completions.create(**{**options, "messages": turns}, tool_choice="auto").choices[0].message


def test_openai_completions_and_logprobs(keyed_client):
    reply = keyed_client.completions.create(model="tiny", prompt=["How many", "What"], max_tokens=4, logprobs=2, n=1)
    assert len(reply.choices) == 2 and reply.usage.completion_tokens <= 8
    assert len(reply.choices[0].logprobs.tokens) == len(reply.choices[0].logprobs.top_logprobs)
    pieces = list(keyed_client.completions.create(model="tiny", prompt="How many", max_tokens=4, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == reply.choices[0].text


@pytest.mark.slow
def test_openai_responses(keyed_client):
    parts = [{"type": "input_text", "text": "What is it?"}, {"type": "input_image", "image_url": PICTURE}]
    asked = {"model": "tiny", "input": [{"role": "user", "content": parts}], "max_output_tokens": 20}
    whole = keyed_client.responses.create(**asked, instructions="Be brief.")
    assert whole.output_text and whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    with keyed_client.responses.stream(**asked, instructions="Be brief.") as stream:
        events = list(stream)
        assert stream.get_final_response().output_text == whole.output_text
    kinds = [event.type for event in events]
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(set(numbers))


@pytest.mark.slow
def test_openai_responses_call_tools(keyed_client, answer_type):
    tools = [{"type": "function", "name": "report", "parameters": SCHEMA, "strict": True}]
    asked = {"model": "tiny", "input": "How many?", "tools": tools, "tool_choice": "required"}
    whole = keyed_client.responses.create(**asked, max_output_tokens=TOKENS)
    (call,) = [item for item in whole.output if item.type == "function_call"][:1]
    answer_type.model_validate_json(call.arguments)
    with keyed_client.responses.stream(**asked, max_output_tokens=TOKENS) as stream:
        told = [item for item in stream.get_final_response().output if item.type == "function_call"]
    assert told and answer_type.model_validate_json(told[0].arguments)
    turns = [
        {"role": "user", "content": "How many?"},
        {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
        {"type": "function_call_output", "call_id": call.call_id, "output": "four"},
    ]
    assert keyed_client.responses.create(model="tiny", input=turns, tools=tools, max_output_tokens=5).status


def test_openai_names_of_models_with_their_length(keyed_client):
    (model,) = keyed_client.models.list().data
    assert model.max_model_len == 1024


# ------------------------------------------------------------------------------------------------------- other clients


@pytest.fixture
def langchain(base):
    found = pytest.importorskip("langchain_openai")
    return found.ChatOpenAI(base_url=base, api_key=KEY, model="tiny", max_tokens=TOKENS, max_retries=0, timeout=60)


def test_langchain(langchain):
    message = ("human", QUESTION)
    whole = langchain.invoke([message]).content
    assert whole and "".join(piece.content for piece in langchain.stream([message])) == whole


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_with_structured_output(langchain, answer_type, method):
    found = langchain.with_structured_output(answer_type, method=method).invoke("How many?")
    assert isinstance(found, answer_type)


def test_langchain_binds_tools(langchain, answer_type):
    found = langchain.bind_tools([answer_type], tool_choice="any").invoke("How many?")
    assert found.tool_calls[0]["name"] == "Answer" and answer_type.model_validate(found.tool_calls[0]["args"])


def test_instructor(keyed_client, answer_type):
    instructor = pytest.importorskip("instructor")
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        asked = instructor.from_openai(keyed_client, mode=mode)
        found = asked.chat.completions.create(
            model="tiny", messages=[user("How many?")], response_model=answer_type, max_tokens=TOKENS, max_retries=0
        )
        assert isinstance(found, answer_type), mode


def test_litellm(base):
    litellm = pytest.importorskip("litellm")
    asked = {"model": "openai/tiny", "api_base": base, "api_key": KEY, "max_tokens": 20}
    messages = [{"role": "user", "content": QUESTION}]
    whole = litellm.completion(messages=messages, **asked).choices[0].message.content
    pieces = litellm.completion(messages=messages, stream=True, **asked)
    assert whole and "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole

    async def ask():
        return await litellm.acompletion(messages=messages, **asked)

    assert asyncio.run(ask()).choices[0].message.content == whole


def test_llm(base, tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    llm = pytest.importorskip("llm")
    from llm.default_plugins.openai_models import Chat

    model = Chat("mine", model_name="tiny", api_base=base, key=KEY, vision=True)
    model.key = KEY
    attachment = llm.Attachment(path=str(demo("shapes.png")))
    streamed = "".join(model.prompt("What is it?", attachments=[attachment], stream=True))
    assert streamed == model.prompt("What is it?", attachments=[attachment], stream=False).text()


def test_the_request_of_the_report(keyed_client):
    """95,000 whole numbers where texts are expected."""
    body = {"stop": [1] * 95_000, "messages": [user("hi")]}
    openai = pytest.importorskip("openai")
    with pytest.raises(openai.APIStatusError) as raised:
        keyed_client.post("/chat/completions", body={**body, "model": "tiny"}, cast_to=object)
    assert raised.value.status_code in (400, 413)


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool, of Prometheus, is not installed")
def test_promtool_reads_the_metrics(tiny_service, tiny_engine):
    """Its only remark is about the colon behind the prefix, which vLLM's names have too."""
    from tests.serve.helpers.servers import AppThread, http
    from videollama2.serve.settings import Security
    from videollama2.serve.worker.app import WorkerService, make_worker_app

    service = WorkerService(tiny_engine, "tiny", tiny_service.policy, tiny_service.sandbox)
    with AppThread(make_worker_app(service, Security())) as worker:
        metrics = http.get(worker.url + "/metrics").text
    done = subprocess.run(["promtool", "check", "metrics"], input=metrics, capture_output=True, text=True)
    remarks = (done.stdout + done.stderr).splitlines()
    assert remarks and all(line.endswith("metric names should not contain ':'") for line in remarks), remarks


@pytest.mark.skipif("NODE_CLIENTS" not in os.environ, reason="NODE_CLIENTS names no folder with clients for Node")
def test_clients_for_node(base, tmp_path):
    """The openai package and the AI SDK of Vercel; ``scripts/test_clients.sh`` installs them."""
    folder = Path(os.environ["NODE_CLIENTS"])
    script = folder / "clients.mjs"
    script.write_bytes(Path(__file__).with_name("clients.mjs").read_bytes())
    shown = tmp_path / "picture.png"
    shown.write_bytes(picture())
    done = subprocess.run(
        ["node", script, base, KEY, shown], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["models"] == ["tiny"] and found["error"] == [404, "model_not_found"]
    answers = {found[name] for name in ("whole", "streamed", "responses", "aiWhole", "aiStreamed")}
    assert len(answers) == 1 and answers != {""}
    assert found["aiTokens"] > 0 and found["aiObject"]["count"] in range(10)
    ((name, given),) = found["aiCalls"][:1]
    assert name == "report" and given["count"] in range(10)
