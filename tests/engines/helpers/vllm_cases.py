"""Requests, answers of the package's own engine, and models for the tests of vLLM. Importing this needs no vLLM."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from tests.conftest import ROOT, golden_audio_dir, golden_dir
from videollama2 import Engine, model_init
from videollama2.config import VideoLlama2Config
from videollama2.inference.answer import Result
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration

ASSETS = ROOT / "videollama2" / "assets"
TINY, HEARING = ASSETS / "videollama2-tiny", ASSETS / "videollama2-tiny-av"
CLIP, PICTURE, SOUNDING = (
    ASSETS / "demo" / name for name in ("moving_shapes.mp4", "shapes.png", "sounding_shapes.mp4")
)
LENGTH = 512
EAGER = {"dtype": "float32", "enforce_eager": True}
# The attention of vLLM on CPUs takes heads of 32 values and more; those of the reference models have 8.
WIDE = {"head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "hidden_size": 64}

Message = dict[str, Any]


def said(role: str, *content: str | dict[str, Any]) -> Message:
    return {"role": role, "content": [{"type": "text", "text": c} if isinstance(c, str) else c for c in content]}


def video(path: Path = CLIP, **options: object) -> dict[str, Any]:
    return {"type": "video", "path": str(path), **options}


def sound(name: str) -> dict[str, Any]:
    return {"type": "audio", "path": str(golden_audio_dir() / "media" / name)}


IMAGE = {"type": "image", "path": str(PICTURE)}
REQUESTS: dict[str, list[Message]] = {
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


_NOISE = "What made the noise?"
SOUND_REQUESTS: dict[str, list[Message]] = {
    "seen and heard": [said("user", video(SOUNDING, use_audio=True), _NOISE)],
    "only seen": [said("user", video(SOUNDING), _NOISE)],
    "only heard": [said("user", {"type": "audio", "path": str(SOUNDING), "of_video": True}, _NOISE)],
    "a part": [said("user", video(SOUNDING, start=0.5, end=1.5, use_audio=True), _NOISE)],
    "without a track": [said("user", video(CLIP, use_audio=True), _NOISE)],
    "a file": [said("user", sound("door_cut.wav"), _NOISE)],
    "two channels": [said("user", sound("speech_stereo_44k.mp3"), _NOISE)],
    "several media": [
        said("user", IMAGE, sound("speech_mono_44k.flac"), "and", sound("door_cut.wav"), "What differs?")
    ],
    "several turns": [
        said("user", video(SOUNDING, use_audio=True), _NOISE),
        said("assistant", "the red square"),
        said("user", sound("door_cut.wav"), "And here?"),
    ],
}


CHECKED: dict[str, Any] = {"max_new_tokens": 16, "logprobs": 2}
"""How the answers are asked for that :func:`same` compares."""


def own_answers(folder: Path, requests: dict[str, list[Message]], length: int = LENGTH) -> dict[str, Result]:
    """Greedy answers of the package's own engine, by the requests' names."""
    model, processor, _ = model_init(str(folder), device="cpu", dtype="float32")
    with Engine(model, processor, max_batch=4, max_length=length) as engine:
        answers = {name: engine.submit(asked, **CHECKED) for name, asked in requests.items()}
        return {name: answer.result() for name, answer in answers.items()}


def same(found: Result, wanted: Result) -> None:
    assert found.token_ids == wanted.token_ids
    assert (found.text, found.finish_reason) == (wanted.text, wanted.finish_reason)
    assert (found.prompt_tokens, found.audio_tokens) == (wanted.prompt_tokens, wanted.audio_tokens)
    assert found.logprobs is not None and wanted.logprobs is not None
    for ours, theirs in zip(found.logprobs, wanted.logprobs, strict=True):
        assert abs(ours.logprob - theirs.logprob) < 1e-3
        assert [token for token, _ in ours.top] == [token for token, _ in theirs.top]


def first_logprobs(answer: Result) -> tuple[Any, ...]:
    """What tells apart answers of a random model, whose tokens are often the same."""
    assert answer.logprobs is not None
    return tuple((each.token_id, round(each.logprob, 2)) for each in answer.logprobs[:4])


def widened(name: str, folder: Path, is_nested: bool) -> Path:
    """A model of a reference model's configuration with wider heads and random weights, published or nested form."""
    golden = golden_dir() if (golden_dir() / "models" / name).is_dir() else golden_audio_dir()
    source = golden / "models" / name
    config = VideoLlama2Config.from_pretrained(source)
    if config.mm_vision_tower is not None:
        config.mm_vision_tower = str(golden / Path(str(config.mm_vision_tower)).name)
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


def as_openai(messages: list[Message]) -> list[Message]:
    """The same messages with media as ``data:`` URLs; what their parts say about reading is left out."""

    def part(given: dict[str, Any]) -> dict[str, Any]:
        if given["type"] == "text":
            return given
        path = Path(given["path"])
        content = base64.b64encode(path.read_bytes()).decode()
        if given["type"] == "audio" and path.suffix == ".wav":
            return {"type": "input_audio", "input_audio": {"data": content, "format": "wav"}}
        mime = {".mp4": "video/mp4", ".png": "image/png", ".flac": "audio/flac", ".mp3": "audio/mpeg"}[path.suffix]
        name = f"{given['type']}_url"
        return {"type": name, name: {"url": f"data:{mime};base64,{content}"}}

    return [{**message, "content": [part(p) for p in message["content"]]} for message in messages]
