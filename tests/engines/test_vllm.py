"""vLLM gives the tokens of the package's own engine. Runs where vLLM is installed: ``bash scripts/test_vllm.sh``."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own (scripts/test_vllm.sh)")

import torch
from transformers import AutoConfig

from tests.conftest import ROOT, golden_dir
from videollama2 import Engine, model_init
from videollama2.config import VideoLlama2Config
from videollama2.engines.vllm.engine import VllmEngine
from videollama2.errors import CheckpointError, ConfigError, EngineError, PromptError, RequestTooLongError
from videollama2.inference.answer import Result
from videollama2.inference.structure import Structure
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration

pytestmark = pytest.mark.vllm

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

TINY = ROOT / "videollama2" / "assets" / "videollama2-tiny"
DEMO = ROOT / "videollama2" / "assets" / "demo"
CLIP, PICTURE = DEMO / "moving_shapes.mp4", DEMO / "shapes.png"
LENGTH = 512
EAGER = {"dtype": "float32", "enforce_eager": True}
# The attention of vLLM on CPUs takes heads of 32 values and more; those of the reference models have 8.
WIDE = {"head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "hidden_size": 64}
GOLDEN = (
    "mistral-stc_connector-clip",
    "mixtral-stc_connector-clip",
    "qwen2-stc_connector_v35-siglip",
    "llama-mlp2x_gelu-clip",
)


def said(role: str, *content: str | dict) -> dict:
    return {"role": role, "content": [{"type": "text", "text": c} if isinstance(c, str) else c for c in content]}


def video(**options: object) -> dict:
    return {"type": "video", "path": str(CLIP), **options}


IMAGE = {"type": "image", "path": str(PICTURE)}
REQUESTS = {
    "video": [said("user", video(), "Which colour does the square change to?")],
    "image": [said("user", IMAGE, "How many objects can be seen?")],
    "text": [said("user", "Hello?")],
    "more frames": [said("user", video(num_frames=16), "What happens?")],
    "a part": [said("user", video(start=0.5, end=1.5), "What happens?")],
    "several media": [said("user", IMAGE, "and", video(), IMAGE, "What differs?")],
    "several turns": [
        said("user", IMAGE, "How many objects can be seen?"),
        said("assistant", "three"),
        said("user", video(), "And here?"),
    ],
    "system": [said("system", "Answer in one word."), said("user", video(), "Which colour does the square change to?")],
}


def own_answers(folder: Path, names: list[str]) -> dict[str, Result]:
    model, processor, _ = model_init(str(folder), device="cpu", dtype="float32")
    with Engine(model, processor, max_batch=4, max_length=LENGTH) as engine:
        answers = {name: engine.submit(REQUESTS[name], max_new_tokens=16, logprobs=2) for name in names}
        return {name: answer.result() for name, answer in answers.items()}


def same(found: Result, wanted: Result) -> None:
    assert found.token_ids == wanted.token_ids
    assert (found.text, found.finish_reason) == (wanted.text, wanted.finish_reason)
    assert found.prompt_tokens == wanted.prompt_tokens


@pytest.fixture(scope="module")
def tiny() -> Iterator[VllmEngine]:
    """Chunks of 48 tokens: prompts of several media take several, and prefixes are cached in blocks."""
    chunks = {
        "enable_chunked_prefill": True,
        "max_num_batched_tokens": 48,
        "enable_prefix_caching": True,
        "block_size": 32,
    }
    with VllmEngine("videollama2-tiny", max_batch=4, max_length=LENGTH, **EAGER, **chunks) as engine:
        yield engine


def test_tokens_of_the_tiny_model(tiny: VllmEngine) -> None:
    wanted = own_answers(TINY, list(REQUESTS))
    answers = {name: tiny.submit(messages, max_new_tokens=16, logprobs=2) for name, messages in REQUESTS.items()}
    for name, answer in answers.items():
        found = answer.result(300)
        same(found, wanted[name])
        assert found.logprobs is not None and wanted[name].logprobs is not None
        for ours, theirs in zip(found.logprobs, wanted[name].logprobs, strict=True):
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-3)
            assert [token for token, _ in ours.top] == [token for token, _ in theirs.top]
    assert wanted["video"].text == "yellow"


def test_streams_stop_texts_and_forms(tiny: VllmEngine) -> None:
    whole = tiny.submit(REQUESTS["text"], max_new_tokens=8, ignore_eos=True).result(300)
    assert whole.completion_tokens == 8 and whole.finish_reason == "length"
    deltas = list(tiny.submit(REQUESTS["video"], max_new_tokens=16))
    assert "".join(deltas) == "yellow"
    assert tiny.submit(REQUESTS["video"], stop="low").result(300).text == "yel"
    chosen = tiny.submit(REQUESTS["video"], structure=Structure.choice(["blue", "red"])).result(300)
    assert chosen.text in ("blue", "red")


def test_a_second_question_finds_the_beginning_cached(tiny: VllmEngine) -> None:
    long = [said("user", IMAGE, video(), video(num_frames=16), "What differs? " * 60)]  # blocks hold 128 tokens
    first = tiny.submit(long, max_new_tokens=4).result(300)
    again = tiny.submit(long, max_new_tokens=4).result(300)
    assert again.token_ids == first.token_ids
    assert again.cached_tokens > first.cached_tokens


def test_refusals_and_cancelling(tiny: VllmEngine, tmp_path: Path) -> None:
    with pytest.raises(RequestTooLongError):
        tiny.submit(REQUESTS["video"], max_new_tokens=LENGTH)
    with pytest.raises(ConfigError, match="no_repeat_ngram_size"):
        tiny.submit("Hello", no_repeat_ngram_size=2)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"\0" * 64)
    with pytest.raises(ValueError, match="broken.mp4"):
        tiny.submit([said("user", {"type": "video", "path": str(broken)}, "What?")]).result(300)
    with pytest.raises(PromptError):
        tiny.submit([said("user", {"type": "audio", "path": str(CLIP)}, "What?")]).result(300)
    answer = tiny.submit(REQUESTS["text"], ignore_eos=True)
    next(iter(answer))
    answer.cancel()
    assert answer.outcome() is not None or answer.result(300).finish_reason == "cancelled"
    deadline = time.monotonic() + 60
    while any(tiny.load.values()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_only_whole_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="merge this lora first"):
        VllmEngine(str(tmp_path))
    with pytest.raises(ConfigError, match="no_such_option"):
        VllmEngine("videollama2-tiny", no_such_option=1)


def widened(name: str, folder: Path, is_nested: bool) -> Path:
    """A model of a reference model's configuration with wider heads and random weights, published or nested form."""
    source = golden_dir() / "models" / name
    config = VideoLlama2Config.from_pretrained(source)
    config.mm_vision_tower = str(golden_dir() / Path(str(config.mm_vision_tower)).name)
    for field, value in WIDE.items():
        setattr(config.text_config, field, value)
    config = VideoLlama2Config.from_dict(config.to_dict())
    torch.manual_seed(0)
    model = VideoLlama2ForConditionalGeneration(config).eval()
    with torch.no_grad():  # untrained connectors and decoders hardly look at media otherwise
        for parameter in model.parameters():
            parameter.mul_(2.0)
    model.save_pretrained(folder)
    for file in source.iterdir():
        if file.suffix in (".json", ".model", ".jinja") and file.name not in ("config.json", "summary.json"):
            shutil.copy(file, folder)
    if not is_nested:
        (folder / "config.json").write_text(json.dumps(config.to_flat_dict() | {"head_dim": WIDE["head_dim"]}))
    return folder


@pytest.mark.parametrize("name", GOLDEN)
def test_tokens_of_reference_configurations(name: str, tmp_path: Path) -> None:
    folder = widened(name, tmp_path, is_nested=name.startswith("mixtral"))
    names = ["video", "image", "text", "several media"]
    wanted = own_answers(folder, names)
    assert len({wanted[name].token_ids for name in names}) == len(names)
    with VllmEngine(str(folder), max_batch=4, max_length=LENGTH, **EAGER) as engine:
        answers = {name: engine.submit(REQUESTS[name], max_new_tokens=16) for name in names}
        for name, answer in answers.items():
            same(answer.result(300), wanted[name])


def test_two_processes_share_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # else each process wants a memory node of its own
    with VllmEngine("videollama2-tiny", max_batch=4, max_length=LENGTH, tensor_parallel_size=2, **EAGER) as engine:
        wanted = own_answers(TINY, ["video", "image"])
        for name in wanted:
            same(engine.submit(REQUESTS[name], max_new_tokens=16).result(300), wanted[name])
    assert engine.closed
    with pytest.raises(EngineError, match="closed"):
        engine.submit("Hello")


@pytest.mark.slow
def test_a_batch(tmp_path: Path) -> None:
    """The same file as from the own engine."""
    source = tmp_path / "in.jsonl"
    names = ("video", "image")
    lines = [{"custom_id": name, "body": {"messages": as_openai(REQUESTS[name])}} for name in names]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, "-m", "videollama2", "batch", str(source), "--model-path", "videollama2-tiny"]
    texts = {}
    for engine in ("own", "vllm"):
        target = tmp_path / f"{engine}.jsonl"
        options = ["--engine", engine, "--dtype", "float32", "--max-length", str(LENGTH)]
        subprocess.run([*command[:5], str(target), *command[5:], *options], check=True, timeout=500)
        replies = [json.loads(line)["response"]["body"] for line in target.read_text().splitlines()]
        texts[engine] = [
            (reply["choices"][0]["message"]["content"], reply["usage"]["total_tokens"]) for reply in replies
        ]
    assert texts["vllm"] == texts["own"]


# ---------------------------------------------------------------------------------------------------------- vllm serve


@pytest.fixture(scope="module")
def server(free_port: int) -> Iterator[str]:
    """``vllm serve`` itself, with nothing of this package but the plug-in."""
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(TINY),
        "--port",
        str(free_port),
    ]
    command += ["--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager", "--max-model-len", str(LENGTH)]
    process = subprocess.Popen([*command, "--interleave-mm-strings", "--trust-request-mm-kwargs"])
    url = f"http://127.0.0.1:{free_port}"
    try:
        deadline = time.monotonic() + 400
        while True:
            assert process.poll() is None and time.monotonic() < deadline, "the server did not start"
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(1)
        yield f"{url}/v1"
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def as_openai(messages: list[dict]) -> list[dict]:
    def part(given: dict) -> dict:
        if given["type"] == "text":
            return given
        mime = {"video": "video/mp4", "image": "image/png"}[given["type"]]
        content = base64.b64encode(Path(given["path"]).read_bytes()).decode()
        name = f"{given['type']}_url"
        return {"type": name, name: {"url": f"data:{mime};base64,{content}"}}

    return [{**message, "content": [part(p) for p in message["content"]]} for message in messages]


def test_the_openai_client_and_vllm_serve(server: str) -> None:
    from openai import BadRequestError, OpenAI

    wanted = own_answers(TINY, list(REQUESTS))
    client = OpenAI(base_url=server, api_key="none")
    options = {"more frames": {"num_frames": 16}, "a part": {"start": 0.5, "end": 1.5}}
    for name, messages in REQUESTS.items():
        reply = client.chat.completions.create(
            model="tiny",
            messages=as_openai(messages),
            temperature=0,
            max_tokens=16,
            extra_body={"mm_processor_kwargs": options.get(name, {})},
        )
        assert reply.choices[0].message.content == wanted[name].text, name
        assert reply.usage.prompt_tokens == wanted[name].prompt_tokens, name
    stream = client.chat.completions.create(
        model="tiny", messages=as_openai(REQUESTS["video"]), temperature=0, max_tokens=16, stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == "yellow"
    typed = [said("user", IMAGE, "What does <video> or <image> mean?")]
    assert client.chat.completions.create(model="tiny", messages=as_openai(typed), max_tokens=4).choices
    for wrong in ({"num_frames": 0}, {"no_such_option": 1}):
        with pytest.raises(BadRequestError):
            client.chat.completions.create(
                model="tiny", messages=as_openai(REQUESTS["video"]), extra_body={"mm_processor_kwargs": wrong}
            )


def test_the_model_type_is_known_to_transformers() -> None:
    """The plug-in's registration needs no import of this package by the caller."""
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    assert AutoConfig.from_pretrained(TINY).model_type == "videollama2"
