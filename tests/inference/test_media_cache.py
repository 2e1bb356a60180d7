"""The cache of visual tokens: what it keeps, where, how much, and that what it gives back may be used anywhere."""

import pytest
import torch

from tests.conftest import golden_dir
from videollama2 import mm_infer, mm_infer_batch, model_init
from videollama2.inference.api import embed_prompts, encode_media, media_cache
from videollama2.inference.media.cache import DEFAULT_MAX_BYTES, MediaCache, content_key
from videollama2.prompting import build_prompt, user_messages


def test_the_least_recently_used_go_first_by_bytes():
    cache = MediaCache(max_bytes=100)
    a, b, c = (torch.full((10,), value) for value in (1.0, 2.0, 3.0))  # 40 bytes each
    cache.put("a", a)
    cache.put("b", b)
    assert torch.equal(cache.get("a"), a)
    cache.put("c", c)
    assert cache.get("b") is None
    assert torch.equal(cache.get("a"), a) and torch.equal(cache.get("c"), c)
    assert (cache.hits, cache.misses) == (3, 1)
    assert cache.used_bytes == 80 and len(cache) == 2
    cache.put("a", torch.zeros(5))
    assert cache.used_bytes == 60
    cache.put("big", torch.zeros(1000))
    assert cache.get("big") is None and len(cache) == 2
    cache.put("a", torch.zeros(1000))
    assert cache.get("a") is None, "an old value under this key would be a wrong one"
    cache.clear()
    assert cache.used_bytes == 0 and len(cache) == 0


def test_the_key_covers_content_kind_and_shape():
    pixels = torch.randn(2, 3, 4, 4)
    key = content_key("video", pixels)
    assert key == content_key("video", pixels.clone())
    changed = pixels.clone()
    changed[1, 2, 3, 3] += 1e-6
    reshaped = pixels.view(1, 6, 4, 4)
    others = [content_key("image", pixels), content_key("video", changed), content_key("video", reshaped)]
    assert key not in others


def test_bytes_counted_are_bytes_held():
    """One clip of a batch must not keep the batch alive, nor a graph, nor the caller's tensor."""
    cache = MediaCache()
    batch = torch.ones(64, 10, 8, requires_grad=True) * 2
    cache.put("view", batch[3])
    cache.put("turned", batch[4].T)
    with torch.no_grad():
        batch.zero_()
    for key in ("view", "turned"):
        kept = cache.get(key)
        assert kept.untyped_storage().nbytes() == kept.nbytes == 320
        assert not kept.requires_grad and kept.grad_fn is None
        assert (kept == 2).all()
    assert cache.used_bytes == 640
    assert cache.max_bytes == DEFAULT_MAX_BYTES == 2**30


def test_what_was_made_in_inference_mode_may_be_trained_on():
    cache = MediaCache()
    with torch.inference_mode():
        made = torch.ones(3, 4)
        cache.put("a", made)
        inside = cache.get("a")
    assert made.is_inference()
    for kept in (inside, cache.get("a")):
        assert not kept.is_inference()
        weight = torch.ones(4, requires_grad=True)
        (kept * weight).sum().backward()  # saves the kept tensor, which an inference tensor refuses
        assert weight.grad.tolist() == [3.0] * 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_no_memory_of_the_gpu_is_held():
    cache = MediaCache()
    values = torch.arange(1000, device="cuda", dtype=torch.bfloat16)
    expected = values.cpu()
    cache.put("a", values)
    del values
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for number in range(20):
        cache.put(number, torch.zeros(1 << 20, device="cuda"))
    assert torch.cuda.memory_allocated() == before
    back = cache.get("a")
    assert back.device.type == "cuda" and torch.equal(back.cpu(), expected)


# -------------------------------------------------------------------------------------------- with a model


@pytest.fixture(scope="module")
def opened():
    model, processor, tokenizer = model_init(golden_dir() / "models" / "qwen2-stc_connector-clip")
    return model, processor["video"](golden_dir() / "media" / "portrait_25fps_57f.mp4"), tokenizer


def test_a_training_step_on_tokens_of_an_earlier_answer(opened):
    """New and known tokens are alike: no inference tensors, no graph, the same values."""
    model, pixels, tokenizer = opened
    prompt = build_prompt(user_messages("What?", "video"), tokenizer, "qwen2")
    media_cache(model).clear()
    new = encode_media([("video", pixels)], model)[0][1]
    media_cache(model).clear()
    mm_infer(pixels, "What?", model, tokenizer, max_new_tokens=2)
    known = encode_media([("video", pixels)], model)[0][1]
    assert media_cache(model).hits == 1
    assert torch.equal(new, known)
    assert not (new.requires_grad or known.requires_grad or new.is_inference() or known.is_inference())
    embeds_BLD, mask_BL = embed_prompts([prompt], [[pixels]], model, tokenizer)
    labels = torch.full(mask_BL.shape, 5)
    model.train()
    try:
        model(inputs_embeds=embeds_BLD, attention_mask=mask_BL, labels=labels).loss.backward()
        assert model.get_input_embeddings().weight.grad.abs().sum() > 0
    finally:
        model.zero_grad()
        model.eval()


def test_a_batch_is_kept_clip_by_clip(opened):
    model, pixels, tokenizer = opened
    cache = media_cache(model)
    cache.clear()
    mm_infer_batch([([pixels + n], "What?", "video") for n in range(3)], model, tokenizer, max_new_tokens=2)
    assert len(cache) == 3
    kept = encode_media([("video", pixels + 1)], model)[0][1]
    assert cache.used_bytes == 3 * kept.nbytes == 3 * kept.untyped_storage().nbytes()


def test_changed_weights_are_noticed(opened):
    """Answers in the middle of a training must not come from the encoder or connector of before."""
    model, pixels, _ = opened
    media_cache(model).clear()
    before = encode_media([("video", pixels)], model)[0][1]
    state = {name: value.clone() for name, value in model.model.mm_projector.state_dict().items()}
    weight = next(p for p in model.model.mm_projector.parameters() if p.ndim > 1)
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], lr=0.1).step()
    weight.grad = None
    changed = encode_media([("video", pixels)], model)[0][1]
    assert not torch.equal(before, changed)
    model.model.mm_projector.load_state_dict(state)
    assert torch.equal(encode_media([("video", pixels)], model)[0][1], before)
