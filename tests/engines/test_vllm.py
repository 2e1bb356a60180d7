"""vLLM gives the tokens of the package's own engine. Runs where vLLM is installed: ``bash scripts/test_vllm.sh``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own (scripts/test_vllm.sh)")

from transformers import AutoConfig

from tests.conftest import golden_audio_dir
from tests.engines.helpers.vllm_cases import (
    CHECKED,
    CLIP,
    EAGER,
    HEARING,
    IMAGE,
    LENGTH,
    REQUESTS,
    SOUND_REQUESTS,
    TINY,
    as_openai,
    first_logprobs,
    own_answers,
    said,
    same,
    video,
    widened,
)
from videollama2.engines.vllm.engine import VllmEngine
from videollama2.errors import CheckpointError, ConfigError, EngineError, PromptError, RequestTooLongError
from videollama2.inference.structure import Structure

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

GOLDEN = (
    "mistral-stc_connector-clip",
    "mixtral-stc_connector-clip",
    "qwen2-stc_connector_v35-siglip",
    "llama-mlp2x_gelu-clip",
)
HEARING_GOLDEN = (
    "mistral-stc_connector-clip-beats",
    "qwen2-audio_only-linear-beats",
    "qwen2-stc_connector_v35-siglip-beats",
)


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
    wanted = own_answers(TINY, REQUESTS)
    answers = {name: tiny.submit(asked, **CHECKED) for name, asked in REQUESTS.items()}
    for name, answer in answers.items():
        same(answer.result(300), wanted[name])
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


@pytest.mark.parametrize("name", GOLDEN)
def test_tokens_of_reference_configurations(name: str, tmp_path: Path) -> None:
    folder = widened(name, tmp_path, is_nested=name.startswith("mixtral"))
    equal_to_own(folder, {name: REQUESTS[name] for name in ("video", "image", "text", "several media")})


def equal_to_own(folder: Path, requests: dict[str, list[dict[str, Any]]], length: int = LENGTH) -> None:
    wanted = own_answers(folder, requests, length)
    assert len({first_logprobs(answer) for answer in wanted.values()}) == len(requests), "a medium is of no effect"
    with VllmEngine(str(folder), max_batch=4, max_length=length, **EAGER) as engine:
        answers = {name: engine.submit(asked, **CHECKED) for name, asked in requests.items()}
        for name, answer in answers.items():
            same(answer.result(300), wanted[name])


def test_tokens_of_the_tiny_model_that_hears() -> None:
    requests = {**SOUND_REQUESTS, "image": REQUESTS["image"]}
    wanted = own_answers(HEARING, requests)
    with VllmEngine("videollama2-tiny-av", max_batch=4, max_length=LENGTH, **EAGER) as engine:
        answers = {name: engine.submit(asked, **CHECKED) for name, asked in requests.items()}
        for name, answer in answers.items():
            same(answer.result(300), wanted[name])


@pytest.mark.parametrize("name", HEARING_GOLDEN)
def test_tokens_of_reference_configurations_that_hear(name: str, tmp_path: Path) -> None:
    folder, media = widened(name, tmp_path, is_nested="linear" in name), golden_audio_dir() / "media"
    sound, film = ({"type": "audio", "path": str(media / "door_cut.wav")}, video(media / "demo1_cut.mp4"))
    requests = {
        "a sound": [said("user", sound, "What is it?")],
        "the sound of a video": [said("user", {**film, "type": "audio", "of_video": True}, "What is it?")],
        "text": REQUESTS["text"],
    }
    if "audio_only" not in name:
        requests["a video"] = [said("user", film, "What happens?")]
        requests["a video with its sound"] = [said("user", {**film, "use_audio": True}, "What happens?")]
    equal_to_own(folder, requests, length=2048)


def test_two_processes_share_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # else each process wants a memory node of its own
    with VllmEngine("videollama2-tiny", max_batch=4, max_length=LENGTH, tensor_parallel_size=2, **EAGER) as engine:
        wanted = own_answers(TINY, {name: REQUESTS[name] for name in ("video", "image")})
        for name in wanted:
            same(engine.submit(REQUESTS[name], **CHECKED).result(300), wanted[name])
    assert engine.closed
    with pytest.raises(EngineError, match="closed"):
        engine.submit("Hello")


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


def test_the_model_type_is_known_to_transformers() -> None:
    """The plug-in's registration needs no import of this package by the caller."""
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    assert AutoConfig.from_pretrained(TINY).model_type == "videollama2"
