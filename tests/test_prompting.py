"""Prompts, ids and labels equal the published ones; tags in users' text stay text; bad records are refused."""

import json

import pytest
from transformers import AutoTokenizer

from tests.conftest import golden_dir
from videollama2.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX, VIDEO_TOKEN_INDEX
from videollama2.errors import DataError, PromptError
from videollama2.prompting import (
    Prompt,
    build_prompt,
    conversation_messages,
    tokenizer_multimodal_token,
    training_ids,
    user_messages,
)


@pytest.fixture(scope="module")
def tokenizers():
    return {name: AutoTokenizer.from_pretrained(golden_dir() / "tokenizers" / name) for name in ("qwen2", "mistral")}


def rows(name):
    return json.loads((golden_dir() / f"{name}.json").read_text())


def test_tokenize(tokenizers):
    assert len(rows("tokenize")) == 48
    for row in rows("tokenize"):
        assert tokenizer_multimodal_token(row["prompt"], tokenizers[row["tokenizer"]], row["tag"]) == row["input_ids"]


def test_labels_of_both_stages(tokenizers):
    for row in rows("labels"):
        kinds = [row["tag"].strip("<>")] if row["tag"] else []
        ids, labels = training_ids(row["conversations"], kinds, tokenizers[row["tokenizer"]], row["stage"])
        assert ids == row["input_ids"], row
        assert labels == row["labels"], row


def test_inference_prompts():
    for row in rows("infer_prompts"):
        tokenizer = AutoTokenizer.from_pretrained(golden_dir() / "tokenizers" / row["tokenizer"])
        source = AutoTokenizer.from_pretrained(golden_dir() / "models" / row["model"], config=None)
        decoder = row["model_type"].removeprefix("videollama2_")
        prompt = build_prompt(user_messages(row["instruct"], row["modal"]), source, decoder)
        assert prompt.text == row["prompt"]
        assert prompt.token_ids(source) == row["input_ids"]
        assert len(tokenizer) == len(source)


def test_tag_typed_by_a_user_stays_text(tokenizers):
    tokenizer = tokenizers["qwen2"]
    prompt = build_prompt(user_messages("what does <video> mean, or <image>?", "video"), tokenizer, "qwen2")
    assert prompt.tags == ("<video>",)
    ids = prompt.token_ids(tokenizer)
    assert ids.count(VIDEO_TOKEN_INDEX) == 1 and IMAGE_TOKEN_INDEX not in ids
    assert "<video> mean" in prompt.chunks[1]


def test_several_media_in_several_turns(tokenizers):
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "First."}]},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": [{"type": "text", "text": "Then"}, {"type": "video"}, {"type": "image"}]},
    ]
    prompt = build_prompt(messages, tokenizers["qwen2"], "qwen2")
    assert prompt.tags == ("<image>", "<video>", "<image>")
    assert prompt.text.endswith("Then\n<video>\n<image><|im_end|>\n<|im_start|>assistant\n")
    assert [i for i in prompt.token_ids(tokenizers["qwen2"]) if i < 0] == [-200, -201, -200]


def test_own_system_message_replaces_the_default(tokenizers):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    text = build_prompt(messages, tokenizers["mistral"], "mistral").text
    assert "Be brief." in text and "<<SYS>>" not in text
    text = build_prompt(user_messages(messages, "video"), tokenizers["mistral"], "mistral").text
    assert "Be brief.\n\n<video>\nHi" in text


@pytest.mark.parametrize(
    ("messages", "modal", "rule"),
    [
        ("", "video", "no text"),
        ("  \n", "image", "no text"),
        ([], "video", "no message"),
        ("hello", "depth", "unknown modality"),
        ([{"role": "robot", "content": "x"}], "text", "role"),
        ([{"role": "system", "content": "x"}], "text", "no question"),
        (None, "video", "list of messages is needed, got None"),
        (7, "video", "got int"),
        ({"role": "user", "content": "x"}, "video", "got dict"),
        (["What?"], "video", "message 0 must be a dict .*got str"),
        ([{"role": "user", "content": None}], "text", "no text"),
        ([{"role": "user", "content": 3}], "text", "list of parts, got int"),
        ([{"role": "user", "content": ["x"]}], "text", "a part must be a dict"),
        ([{"role": "user", "content": [{"type": "text"}]}], "text", "a part must be a dict"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "text", "a part must be a dict"),
        ("caf\udce9?", "video", r"message 0 \(user\) is not valid UTF-8: character 4 is '\\udce9'"),
        ([{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}], "text", "not valid UTF-8"),
    ],
)
def test_bad_messages_are_refused(messages, modal, rule):
    with pytest.raises(PromptError, match=rule):
        user_messages(messages, modal)


def test_tokenizer_without_template_is_named(tokenizers):
    tokenizer = AutoTokenizer.from_pretrained(golden_dir() / "tokenizers" / "qwen2")
    tokenizer.chat_template = None
    with pytest.raises(PromptError, match="no chat template"):
        build_prompt(user_messages("hi"), tokenizer, "qwen2")


def turns(*values):
    return [{"from": "human" if n % 2 == 0 else "gpt", "value": v} for n, v in enumerate(values)]


@pytest.mark.parametrize(
    ("conversations", "kinds", "rule"),
    [
        (turns("<video>\nQ", "A", "Q2"), ["video"], "alternate"),
        (turns("Q", "A"), ["video"], "0 media tag"),
        (turns("<video><video>Q", "A"), ["video"], "2 media tag"),
        (turns("<image>Q", "A"), [], "1 media tag"),
        ([], [], "no turn"),
        ([{"from": "dog", "value": "x"}], [], "human or gpt"),
        ([{"from": "human"}], [], "human or gpt"),
        (turns("Q", "A\ud83d"), [], "not valid UTF-8: character 2"),
    ],
)
def test_bad_conversations_are_refused(conversations, kinds, rule):
    with pytest.raises(DataError, match=rule):
        conversation_messages(conversations, kinds)


def test_the_file_decides_what_a_tag_is(tokenizers):
    ids, _ = training_ids(turns("<image>\nQ", "A"), ["video"], tokenizers["qwen2"])
    assert VIDEO_TOKEN_INDEX in ids and IMAGE_TOKEN_INDEX not in ids


def test_media_stay_where_they_are_when_there_are_several(tokenizers):
    conversation = turns("Compare <image> with <video>.", "A", "and <image>?", "B")
    ids, _ = training_ids(conversation, ["image", "video", "image"], tokenizers["qwen2"])
    assert [i for i in ids if i < 0] == [IMAGE_TOKEN_INDEX, VIDEO_TOKEN_INDEX, IMAGE_TOKEN_INDEX]


def test_answer_only_first_stage(tokenizers):
    tokenizer = tokenizers["qwen2"]
    ids, labels = training_ids(turns("<video>\nDescribe it.", "A cat."), ["video"], tokenizer, "pretrain_answer")
    assert ids[-1] == labels[-1] == tokenizer.eos_token_id
    assert tokenizer.decode([i for i in labels if i != IGNORE_INDEX]) == " A cat." + tokenizer.eos_token


def test_prompt_text_and_ids_agree(tokenizers):
    prompt = Prompt(("a ", " b"), ("<image>",))
    assert prompt.text == "a <image> b"
    assert prompt.token_ids(tokenizers["qwen2"]) == tokenizer_multimodal_token(
        "a <image> b", tokenizers["qwen2"], "<image>"
    )
