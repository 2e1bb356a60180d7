"""What the engine took over from ``generate``: its options, known beginnings, and adapters switched on and off."""

import copy

import pytest
import torch

from tests.conftest import golden_dir
from videollama2 import mm_infer, mm_infer_batch
from videollama2.errors import ConfigError
from videollama2.inference.api import PREFIX_BYTES, embed_prompts, prefix_cache
from videollama2.prompting import user_messages


class Noting:
    """A streamer of transformers."""

    def __init__(self):
        self.tokens, self.ended = [], False

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.ended = True


def test_options_that_the_engine_took_over_from_generate(tiny_golden):
    """Streamer, ends and repetition: the tokens that transformers' generate gives."""
    model, processor, tokenizer = tiny_golden
    pixels = processor["image"](golden_dir() / "media" / "wide.png")
    prompts, media = [processor.prompt(user_messages("What?", "image"))], [[pixels]]
    embeds, mask = embed_prompts(prompts, media, model, tokenizer)

    def generated(**options):
        with torch.inference_mode():
            return model.generate(
                inputs_embeds=embeds, attention_mask=mask, do_sample=False, max_new_tokens=20, pad_token_id=0, **options
            )[0].tolist()

    free = generated(eos_token_id=None)
    streamer = Noting()
    text = mm_infer(pixels, "What?", model, tokenizer, "image", max_new_tokens=20, streamer=streamer)
    assert streamer.ended and tokenizer.decode(streamer.tokens, skip_special_tokens=True).strip() == text
    assert streamer.tokens == free[: len(streamer.tokens)] and streamer.tokens
    end = free[4]
    cut = mm_infer(pixels, "What?", model, tokenizer, "image", max_new_tokens=20, eos_token_id=end)
    assert cut == tokenizer.decode(free[: free.index(end)], skip_special_tokens=True).strip()
    several = mm_infer(pixels, "What?", model, tokenizer, "image", max_new_tokens=20, eos_token_id=[end, 3])
    assert several == cut
    for size in (1, 2, 3):
        expected = generated(no_repeat_ngram_size=size, eos_token_id=tokenizer.eos_token_id)
        streamer = Noting()
        options = {"no_repeat_ngram_size": size, "streamer": streamer, "max_new_tokens": 20}
        mm_infer(pixels, "What?", model, tokenizer, "image", **options)
        assert streamer.tokens == [token for token in expected if token != tokenizer.eos_token_id]
    with pytest.raises(ConfigError, match="one answer, there are 2"):
        mm_infer_batch([(media[0], "What?", "image")] * 2, model, tokenizer, streamer=Noting())


def test_a_second_question_computes_the_beginning_no_more(tiny_golden):
    """Prompt beginnings are kept per model between calls, and forgotten when a weight changes."""
    model, processor, tokenizer = tiny_golden
    prefix_cache(model).clear()
    pixels = processor["video"](golden_dir() / "media" / "portrait_25fps_57f.mp4")
    passes = []
    forward = model.model.language_model.forward
    model.model.language_model.forward = lambda *args, **kwargs: (
        passes.append(kwargs["inputs_embeds"].shape[1]),
        forward(*args, **kwargs),
    )[1]
    story = "what who where " * 20
    try:

        def ask(question):
            passes.clear()
            answer = mm_infer(pixels, story + question, model, tokenizer, max_new_tokens=2)
            return answer, sum(passes)

        first, whole = ask("red?")
        again, rest = ask("red?")
        assert again == first and rest < whole / 3
        assert 0 < prefix_cache(model).used_bytes <= PREFIX_BYTES
        with torch.no_grad():
            model.lm_head.weight += 0  # a step of training, as torch counts it
        assert len(prefix_cache(model)) == 0 and ask("red?") == (first, whole)
    finally:
        del model.model.language_model.forward


def test_adapters_switched_on_and_off_are_noticed(tiny_golden):
    """With an adapter on, no beginning computed without it is taken over."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    model, processor, tokenizer = tiny_golden
    model = copy.deepcopy(model)
    pixels = processor["image"](golden_dir() / "media" / "wide.png")

    def ask():
        return mm_infer(pixels, "what who where " * 20, model, tokenizer, "image", max_new_tokens=8)

    bare = ask()
    inject_adapter_in_model(LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, r=64), model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight *= 30
    adapted = ask()
    prefix_cache(model).clear()
    assert adapted == ask() != bare
    for layer in (module for module in model.modules() if isinstance(module, BaseTunerLayer)):
        layer.enable_adapters(False)
    assert ask() == bare
