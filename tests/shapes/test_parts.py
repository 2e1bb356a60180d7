"""Starting parts of the tiny model."""

import pytest
from transformers import AutoTokenizer

from videollama2.errors import ConfigError
from videollama2.shapes import parts as tiny


@pytest.mark.slow
def test_parts_are_a_function_of_the_seed(parts, tmp_path):
    from tests.training.helpers.runs import SIZES

    tiny.write_parts(tmp_path, SIZES, encoder_steps=2, connector_steps=2, progress=False)
    for file in (
        "llm/model.safetensors",
        "llm/tokenizer.json",
        "clip/model.safetensors",
        "clip/config.json",
        "mm_projector.bin",
    ):
        assert (tmp_path / file).read_bytes() == (parts / file).read_bytes(), file


@pytest.mark.slow
def test_tokenizer_writes_the_world_shortly_and_any_text_back():
    tokenizer = tiny.build_tokenizer(1024)
    assert len(tokenizer) <= 1024
    question = "What shape is the yellow object?"
    assert len(tokenizer(question).input_ids) == 7
    for text in (question, "Größe 12 über 世界 \n\t x", "<image> typed by a user"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "yes"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    assert rendered == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"


@pytest.mark.slow
def test_tokenizer_is_the_same_after_saving(parts):
    """transformers opens it as Qwen2's class whatever was saved; the ids must not change by that."""
    fresh = tiny.build_tokenizer(640)
    opened = AutoTokenizer.from_pretrained(parts / "llm")
    texts = [*list(tiny.world_texts())[:300], "don't 123 Größe é \n\n  x", "a.b,c;d"]
    assert [fresh(t).input_ids for t in texts] == [opened(t).input_ids for t in texts]
    assert opened.eos_token_id == fresh.eos_token_id == 2


def test_sizes_that_do_not_divide():
    with pytest.raises(ConfigError, match="image_size 50 is not a multiple of patch_size 12"):
        tiny.TinySizes(image_size=50)
    assert tiny.main(["--out", "unused", "--image-size", "50"]) == 2
