"""``vllm serve`` with the plug-in, and ``videollama2 serve --engine vllm``, asked by the ``openai`` client.

Both have the model that sees and hears. Runs where vLLM is installed: ``bash scripts/test_vllm.sh``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own (scripts/test_vllm.sh)")

import httpx
from openai import BadRequestError, OpenAI, OpenAIError

from tests.engines.helpers.vllm_cases import (
    CLIP,
    HEARING,
    IMAGE,
    LENGTH,
    REQUESTS,
    SOUND_REQUESTS,
    as_openai,
    own_answers,
    said,
    video,
)
from tests.helpers.ports import free_port
from tests.serve.helpers.processes import running
from tests.serve.helpers.servers import http
from videollama2.inference.answer import Result

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

ALL = {**{f"seen: {name}": asked for name, asked in REQUESTS.items()}, **SOUND_REQUESTS}
HEARD = {"use_audio_in_video": True}
# What the parts of ALL say about reading, which goes beside the messages here.
OPTIONS: dict[str, dict[str, Any]] = {
    "seen: more frames": {"num_frames": 16},
    "seen: a part": {"start": 0.5, "end": 1.5},
    "seen and heard": HEARD,
    "a part": {"start": 0.5, "end": 1.5, **HEARD},
    "without a track": HEARD,
    "several turns": HEARD,
}
MODEL = "videollama2-tiny-av"


@pytest.fixture(scope="module")
def wanted() -> dict[str, Result]:
    return own_answers(HEARING, ALL)


@pytest.fixture(scope="module")
def vllm_serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """vLLM's own server, with nothing of this package but the plug-in."""
    port = free_port()
    flags = ["--dtype", "float32", "--enforce-eager", "--max-model-len", str(LENGTH), "--served-model-name", MODEL]
    flags += ["--interleave-mm-strings", "--trust-request-mm-kwargs", "--port", str(port)]

    def is_ready() -> bool:
        try:
            return http.get(f"http://127.0.0.1:{port}/health").status_code == 200
        except httpx.HTTPError:
            return False

    command = ["vllm.entrypoints.openai.api_server", "--model", str(HEARING), *flags]
    with running(command, tmp_path_factory.mktemp("vllm") / "log", is_ready):
        yield client_of(port)


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    return {name: free_port() for name in ("page", "api", "controller", "worker")}


@pytest.fixture(scope="module")
def own_serve(ports: dict[str, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """Controller, API, page, and a worker with vLLM in two processes that share each layer."""
    log = tmp_path_factory.mktemp("own") / "log"
    flags = ["--model-path", MODEL, "--engine", "vllm", "--tensor-parallel-size", "2", "--dtype", "float32"]
    flags += ["--engine-option", "enforce_eager=true", "--max-length", str(LENGTH), "--decode-processes", "1"]
    flags += [word for name, port in ports.items() for word in (f"--{name}-port", str(port))]
    # With any other value, each of the two processes wants a memory node of its own.
    environment = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with running(["videollama2", "serve", *flags], log, lambda: "Ctrl-C ends all." in log.read_text(), **environment):
        yield client_of(ports["api"])


def client_of(port: int) -> OpenAI:
    return OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=300)


def ask(client: OpenAI, messages: list[dict[str, Any]], read: dict[str, Any], **options: Any) -> Any:
    body = {"mm_processor_kwargs": read} if read else {}
    return client.chat.completions.create(
        model=MODEL, messages=as_openai(messages), temperature=0, max_tokens=16, extra_body=body, **options
    )


def check_all(client: OpenAI, wanted: dict[str, Result]) -> None:
    for name, messages in ALL.items():
        reply = ask(client, messages, OPTIONS.get(name, {}))
        assert reply.choices[0].message.content == wanted[name].text, name
        assert reply.usage.prompt_tokens == wanted[name].prompt_tokens, name
    stream = ask(client, ALL["seen and heard"], HEARD, stream=True)
    deltas = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(deltas) == wanted["seen and heard"].text


def test_vllm_serve(vllm_serve: OpenAI, wanted: dict[str, Result]) -> None:
    check_all(vllm_serve, wanted)
    typed = [said("user", IMAGE, "What does <video> or <image> mean?")]
    assert ask(vllm_serve, typed, {}).choices
    for wrong in ({"num_frames": 0}, {"no_such_option": 1}):
        with pytest.raises(BadRequestError):
            ask(vllm_serve, REQUESTS["video"], wrong)


def test_a_worker_of_this_package(own_serve: OpenAI, wanted: dict[str, Result], ports: dict[str, int]) -> None:
    check_all(own_serve, wanted)
    assert [model.id for model in own_serve.models.list()] == [MODEL]
    assert http.get(f"http://127.0.0.1:{ports['page']}/").status_code == 200
    described = http.get(f"http://127.0.0.1:{ports['worker']}/metrics").text
    assert "videollama2:num_requests_running" in described


@pytest.mark.parametrize(
    "url",
    [
        f"file://{CLIP}",
        "http://127.0.0.1:1/clip.mp4",
        "http://169.254.169.254/latest/meta-data",
        "data:video/mp4;base64,AAAAGGZ0eXBtcDQy",
    ],
)
def test_media_guards_are_in_front(own_serve: OpenAI, url: str) -> None:
    part = {"type": "video_url", "video_url": {"url": url}}
    asked = [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]
    with pytest.raises(OpenAIError) as refused:
        own_serve.chat.completions.create(model=MODEL, messages=asked, max_tokens=4)
    assert 400 <= refused.value.status_code < 500
    assert ask(own_serve, [said("user", video(), "What happens?")], {}).choices
