"""The rows that the processor makes of texts: padding, cutting, special tokens and placeholders."""

import pytest
import torch

from tests.conftest import golden_dir
from videollama2.errors import ConfigError, PromptError
from videollama2.processing import VideoLlama2Processor, media_tokens

MEDIA = golden_dir() / "media"
VIDEO, IMAGE = MEDIA / "portrait_25fps_57f.mp4", MEDIA / "wide.png"


@pytest.fixture(scope="module")
def processor():
    return VideoLlama2Processor.from_pretrained(golden_dir() / "models" / "qwen2-stc_connector-clip")


def test_padding(processor):
    texts = ["Hello.", "Hello, you there."]
    longest = processor(text=texts)["input_ids"].shape[1]
    assert processor(text=texts, padding="max_length", max_length=40)["input_ids"].shape == (2, 40)
    assert processor(text=texts, pad_to_multiple_of=16)["input_ids"].shape[1] % 16 == 0
    for side, place in (("left", -1), ("right", 0)):
        batch = processor(text=texts, padding_side=side, pad_to_multiple_of=16)
        assert batch["attention_mask"].sum() == processor(text=texts)["attention_mask"].sum()
        assert batch["attention_mask"][:, place].all()
    with pytest.raises(ConfigError, match="make no tensor without padding"):
        processor(text=texts, padding=False)
    lists = processor(text=texts, padding=False, return_tensors=None)
    assert [len(row) for row in lists["input_ids"]] == [len(row) for row in lists["attention_mask"]]
    assert max(map(len, lists["input_ids"])) == longest > min(map(len, lists["input_ids"]))
    with pytest.raises(ConfigError, match="more than max_length 2"):
        processor(text=texts, padding="max_length", max_length=2, truncation=False)
    assert "attention_mask" not in processor(text=texts, return_attention_mask=False)


def test_truncation(processor):
    texts = ["Hello, you there, and you.", "Hi."]
    whole = processor(text=texts, padding_side="right")["input_ids"]
    cut = processor(text=texts, padding_side="right", truncation=True, max_length=4)
    assert cut["input_ids"].shape[1] == 4
    assert cut["input_ids"][0].tolist() == whole[0, :4].tolist()
    assert torch.equal(processor(text=texts, max_length=4)["input_ids"][0], cut["input_ids"][0]), "as in transformers"
    prompt = "<image>\n" + "What is it? " * 8
    visual = media_tokens(processor.model_config, "image")
    kept = processor(text=prompt, images=IMAGE, truncation=True, max_length=visual + 2)["input_ids"]
    assert kept.shape[1] == visual + 2 and (kept == processor.image_token_id).sum() == visual
    with pytest.raises(PromptError, match=r"text 0 .* would cut a medium"):
        processor(text=prompt, images=IMAGE, truncation=True, max_length=visual - 1)


def test_special_tokens(processor):
    mistral = VideoLlama2Processor.from_pretrained(golden_dir() / "models" / "mistral-stc_connector-clip")
    plain = mistral(text="Hello.")["input_ids"][0].tolist()
    special = mistral(text="Hello.", add_special_tokens=True)["input_ids"][0].tolist()
    assert special == mistral.tokenizer("Hello.").input_ids
    assert plain == mistral.tokenizer("Hello.", add_special_tokens=False).input_ids
    for value in (True, False):
        ids = processor(text="Hello.", add_special_tokens=value)["input_ids"][0].tolist()
        assert ids == processor.tokenizer("Hello.", add_special_tokens=value).input_ids


def test_types_and_replacements_of_placeholders(processor):
    texts = ["<image>\nIs it in <video>?", "Hello."]
    batch = processor(
        text=texts,
        images=IMAGE,
        videos=VIDEO,
        return_mm_token_type_ids=True,
        return_text_replacement_offsets=True,
    )
    ids, types = batch["input_ids"], batch["mm_token_type_ids"]
    assert torch.equal(types == 1, ids == processor.image_token_id) and (types == 1).any()
    assert torch.equal(types == 2, ids == processor.video_token_id) and (types == 2).any()
    first, second = batch["text_replacement_offsets"][0]
    assert batch["text_replacement_offsets"][1] == []
    assert (first["type"], first["span"], first["text"]) == ("image", (0, 7), "<image>")
    grown = texts[0]
    for entry in (second, first):
        start, end = entry["span"]
        assert texts[0][start:end] == entry["text"]
        grown = grown[:start] + entry["replacement"] + grown[end:]
    for entry in (first, second):
        start, end = entry["new_span"]
        assert grown[start:end] == entry["replacement"]
    assert len(second["replacement"]) == len("<video>") * int((types == 2).sum())
