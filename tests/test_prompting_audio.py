"""Prompts, ids and labels of sound, as the published audio branch makes them."""

import json

import pytest
from transformers import AutoTokenizer

from tests.conftest import golden_audio_dir
from videollama2.constants import AUDIO_TOKEN_INDEX, VIDEO_TOKEN_INDEX
from videollama2.errors import DataError, PromptError
from videollama2.prompting import build_prompt, tokenizer_multimodal_token, training_ids, user_messages

GOLDEN = golden_audio_dir()
KINDS = {"<audio>": "audio", "<video>": "video", "<image>": "image"}
STAGES = {"finetune": "finetune", "pretrain": "pretrain_chat"}


@pytest.fixture(scope="module")
def tokenizers():
    return {name: AutoTokenizer.from_pretrained(GOLDEN / "tokenizers" / name) for name in ("qwen2", "mistral")}


def rows(name):
    found = json.loads((GOLDEN / name).read_text())
    assert found
    return found


def test_tokenizing(tokenizers):
    for row in rows("tokenize_audio.json"):
        ids = tokenizer_multimodal_token(row["prompt"], tokenizers[row["tokenizer"]], row["tag"])
        assert ids == row["input_ids"], row


def test_labels(tokenizers):
    for row in rows("labels_audio.json"):
        kinds = [KINDS[row["tag"]]] if row["tag"] else []
        arguments = row["conversations"], kinds, tokenizers[row["tokenizer"]], STAGES[row["stage"]]
        if row.get("published_error"):
            with pytest.raises(DataError, match="first-stage record|media tag"):
                training_ids(*arguments)
            continue
        ids, labels = training_ids(*arguments)
        assert ids == row["input_ids"], row
        assert labels == row["labels"], row


def test_prompts_of_inference(tokenizers):
    for row in rows("infer_prompts_audio.json"):
        messages = user_messages(row["instruct"], row["modal"])
        if row["with_audio"]:
            for message in messages:
                for part in message["content"] if isinstance(message["content"], list) else ():
                    part.update({"use_audio": True} if part["type"] == "video" else {})
        decoder = "mistral" if row["tokenizer"] == "mistral" else "qwen2"
        prompt = build_prompt(messages, tokenizers[row["tokenizer"]], decoder)
        ids = prompt.token_ids(tokenizers[row["tokenizer"]])
        if row["with_audio"]:  # here the sound has a sentinel of its own, right behind the video's
            place = ids.index(VIDEO_TOKEN_INDEX)
            assert ids.pop(place + 1) == AUDIO_TOKEN_INDEX
            assert prompt.text == row["prompt"].replace("<video>", "<video><audio>", 1)
        else:
            assert prompt.text == row["prompt"]
        assert ids == row["input_ids"], row


def test_a_tag_that_a_user_types_is_no_sound(tokenizers):
    messages = user_messages("What does <audio> mean?", "text")
    for name, tokenizer in tokenizers.items():
        assert AUDIO_TOKEN_INDEX not in build_prompt(messages, tokenizer, name).token_ids(tokenizer)


def test_unknown_modality():
    with pytest.raises(PromptError, match="unknown modality 'smell'; known: image, video, audio, text"):
        user_messages("What?", "smell")
