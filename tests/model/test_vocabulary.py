"""Resizing the vocabulary moves the placeholders that lie after it, in the model and in the processor."""

import pytest
import torch

from tests.conftest import golden_dir
from videollama2.checkpoints import load_checkpoint
from videollama2.errors import PromptError
from videollama2.processing import VideoLlama2Processor

QWEN = golden_dir() / "models" / "qwen2-stc_connector-clip"
VIDEO = golden_dir() / "media" / "landscape_30fps_90f.mp4"
TEXT = "<video>\nWhat happens?"


@pytest.fixture
def loaded():
    model, processor = load_checkpoint(QWEN, dtype=torch.float32)
    return model.eval(), processor


@torch.no_grad()
@pytest.mark.parametrize("change", [7, -3])
def test_placeholders_follow_the_vocabulary(loaded, tmp_path, change):
    model, processor = loaded
    size = model.config.vocab_size
    before = model(**processor(text=TEXT, videos=VIDEO)).logits
    model.resize_token_embeddings(size + change, mean_resizing=False)
    assert (model.config.image_token_id, model.config.video_token_id) == (size + change, size + change + 1)
    assert model.config.vocab_size == model.get_decoder().config.vocab_size == size + change
    assert processor.video_token_id == size + change + 1
    inputs = processor(text=TEXT, videos=VIDEO)
    after = model(**inputs).logits
    kept = size + min(change, 0)
    torch.testing.assert_close(after[..., :kept], before[..., :kept])
    out = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert out.shape[1] > inputs["input_ids"].shape[1]
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, reopened = load_checkpoint(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(again.eval()(**reopened(text=TEXT, videos=VIDEO)).logits, after)


@torch.no_grad()
def test_new_tokens_get_the_ids_the_placeholders_had(loaded):
    """The ids a tokenizer gives to added tokens are those after the old vocabulary."""
    model, processor = loaded
    old = model.config.image_token_id
    processor.tokenizer.add_tokens([f"<new{i}>" for i in range(old + 2 - len(processor.tokenizer))])
    model.resize_token_embeddings(len(processor.tokenizer))
    assert model.config.image_token_id == len(processor.tokenizer) == old + 2
    inputs = processor(text=TEXT + processor.tokenizer.convert_ids_to_tokens(old), videos=VIDEO)
    assert old in inputs["input_ids"][0]
    model(**inputs)


def test_a_processor_opened_by_itself_is_told(loaded):
    model, _ = loaded
    processor = VideoLlama2Processor.from_pretrained(QWEN)
    model.resize_token_embeddings(model.config.vocab_size + 8, mean_resizing=False)
    with pytest.raises(PromptError, match="0 video placeholder"):
        model(**processor(text=TEXT, videos=VIDEO))
    processor.model_config = model.config
    model(**processor(text=TEXT, videos=VIDEO))


def test_placeholders_inside_the_vocabulary_stay(loaded):
    model, _ = loaded
    model.config.image_token_id, model.config.video_token_id = 5, 6
    model.resize_token_embeddings(model.config.vocab_size + 8, mean_resizing=False)
    assert (model.config.image_token_id, model.config.video_token_id) == (5, 6)
    model.model.resize_token_embeddings(model.config.vocab_size + 8, mean_resizing=False)
    assert model.get_input_embeddings().num_embeddings == model.config.vocab_size
