"""vLLM's front end lays conversations out as the package's own engine does. Needs vLLM, and starts no engine."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own (scripts/test_vllm.sh)")

from vllm.config import ModelConfig
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.plugins import load_general_plugins
from vllm.renderers.chat_utils import parse_chat_messages

from tests.engines.helpers.vllm_cases import HEARING, IMAGE, LENGTH, SOUNDING, as_openai, said, sound, video
from videollama2.engines.vllm.prompts import VllmChatProcessor, filler_id
from videollama2.inference.media.reader import read_part
from videollama2.inference.request import Request
from videollama2.processing import expand_placeholders, media_tokens

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

FILE, FILM = sound("door_cut.wav"), video(SOUNDING, use_audio=True)
SAME = {"type": "audio", "path": str(SOUNDING), "of_video": True}
CONVERSATIONS = {
    "a video": [said("user", FILM, "What?")],
    "behind a text": [said("user", IMAGE, "and", FILM, "What?")],
    "a sound before": [said("user", FILE, "and", FILM, "What?")],
    "a sound behind": [said("user", FILM, FILE, "What?")],
    "its own sound before": [said("user", SAME, "and", FILM, "What?")],
    "among others": [said("user", FILM, IMAGE, FILE, "and", FILM, "What?")],
    "turns": [
        said("user", FILE, "What?"),
        said("assistant", "a bell"),
        said("user", FILM, "And here?"),
        said("assistant", "a square"),
        said("user", FILE, FILM, "And here?"),
    ],
}


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    load_general_plugins()
    return ModelConfig(model=str(HEARING), dtype="float32", max_model_len=LENGTH, interleave_mm_strings=True)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_same_ids_at_the_same_places(name: str, config: ModelConfig) -> None:
    messages, heard = CONVERSATIONS[name], {"use_audio_in_video": True}
    turns, data, _ = parse_chat_messages(as_openai(messages), config, "string", mm_processor_kwargs=heard)
    own = VllmChatProcessor.from_pretrained(HEARING)
    text = own.tokenizer.apply_chat_template(
        turns, chat_template=own.chat_template, tokenize=False, add_generation_prompt=True
    )
    processor = MULTIMODAL_REGISTRY.create_processor(config)
    items: Any = processor.info.parse_mm_data(data)
    found = processor(own.tokenizer(text, add_special_tokens=False).input_ids, items, hf_processor_mm_kwargs=heard)

    request = Request(messages)
    read = [read_part(part, own) for part in request.media]
    pairs = zip(request.media, read, strict=True)
    counts = [media_tokens(own.model_config, part.kind, frames) for part, (_, frames, _) in pairs]
    ids = own.prompt(request.messages, **request.prompt_options).token_ids(own.tokenizer)
    expanded, _ = expand_placeholders(ids, counts, own.model_config)
    vocabulary = own.model_config.vocab_size
    wanted = [token if token < vocabulary else filler_id(own.tokenizer) for token in expanded]
    assert list(found["prompt_token_ids"]) == wanted

    # And each medium is at its own place.
    places = sorted(
        (place.offset, kind, number)
        for kind, ranges in found["mm_placeholders"].items()
        for number, place in enumerate(ranges)
    )
    assert [kind for _, kind, _ in places] == [part.kind for part in request.media]
    for (_, kind, number), (values, _, _) in zip(places, read, strict=True):
        (field,) = found["mm_kwargs"][kind][number].values()
        assert (field.data == values.float()).all(), (kind, number)
