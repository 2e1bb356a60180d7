"""A decode step reads no number back from the device beyond what the decoder itself reads."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, GenerationMixin, StaticCache

from tests.conftest import golden_dir
from videollama2.checkpoints import load_checkpoint
from videollama2.errors import PromptError

QWEN = golden_dir() / "models" / "qwen2-stc_connector-clip"


class CountReads(TorchDispatchMode):
    """Counts ``.item()``, ``int(tensor)``, ``bool(tensor)`` and ``.tolist()`` of one element."""

    def __init__(self):
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def model():
    return load_checkpoint(QWEN, dtype=torch.float32)[0].eval()


@torch.no_grad()
def test_a_step_reads_nothing_back(model):
    ids = torch.tensor([[5, 6, 7]])
    caches = [DynamicCache(config=model.config.text_config) for _ in range(2)]
    for cache in caches:
        model(input_ids=ids, past_key_values=cache)
    with CountReads() as ours:
        logits = model(input_ids=ids[:, -1:], past_key_values=caches[0]).logits
    embeds = model.get_input_embeddings()(ids[:, -1:])
    with CountReads() as decoder:
        hidden = model.get_decoder()(inputs_embeds=embeds, past_key_values=caches[1]).last_hidden_state
    assert ours.reads == decoder.reads
    torch.testing.assert_close(logits, model.lm_head(hidden))


@torch.no_grad()
def test_preparing_a_step_reads_nothing_back(model):
    """A static cache holds its length in a tensor."""
    cache = StaticCache(config=model.config.text_config, max_cache_len=16)
    model(input_ids=torch.tensor([[5, 6, 7]]), past_key_values=cache)
    ids = torch.tensor([[5, 6, 7, 8]])
    own = {"past_key_values": cache, "next_sequence_length": 1, "attention_mask": torch.ones_like(ids)}
    with CountReads() as ours:
        inputs = model.prepare_inputs_for_generation(ids, pixel_values=torch.zeros(1), **own)
    assert inputs.get("pixel_values") is None
    with CountReads() as base:
        GenerationMixin.prepare_inputs_for_generation(model, ids, **own)
    assert ours.reads == base.reads


@torch.no_grad()
@pytest.mark.parametrize("cache", [None, "static"])
def test_media_belong_to_the_first_step_of_every_cache(model, golden, cache):
    from videollama2.processing import VideoLlama2Processor

    processor = VideoLlama2Processor.from_pretrained(QWEN)
    inputs = processor(text="<video>\nWhat?", videos=golden / "media" / "landscape_30fps_90f.mp4")
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    plain = model.generate(**inputs, **options, use_cache=False)
    assert torch.equal(model.generate(**inputs, **options, cache_implementation=cache), plain)


@torch.no_grad()
def test_placeholders_without_media_are_still_refused(model):
    """In a prompt, and in a prompt that continues a cache."""
    video = model.config.video_token_id
    with pytest.raises(PromptError, match="3 video placeholder"):
        model(input_ids=torch.tensor([[5, video, video, video]]))
    cache = DynamicCache(config=model.config.text_config)
    model(input_ids=torch.tensor([[5, 6]]), past_key_values=cache)
    with pytest.raises(PromptError, match="2 video placeholder"):
        model(input_ids=torch.tensor([[video, video]]), past_key_values=cache)
