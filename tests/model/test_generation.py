"""What transformers' ``generate`` does with prompts whose placeholders lie outside the vocabulary, or inside it."""

import pytest
import torch

from tests.conftest import golden_dir
from videollama2.checkpoints import load_checkpoint

VIDEO = golden_dir() / "media" / "landscape_30fps_90f.mp4"


@pytest.fixture(scope="module")
def tiny():
    return load_checkpoint("videollama2-tiny", dtype=torch.float32)


def answer(model, inputs, **options):
    length = inputs["input_ids"].shape[1]
    return model.generate(**inputs, do_sample=False, max_new_tokens=8, **options)[0, length:].tolist()


def before_video(processor, answer_ids):
    """A prompt in which the answer's first words stand right before the video."""
    text = processor.tokenizer.decode(answer_ids, skip_special_tokens=True)
    return processor(text=f"{text}<video>\nWhat colour is the object?", videos=VIDEO)


def test_prompt_lookup_answers_as_greedy_decoding_does(tiny):
    """What stands in the prompt behind the words that were just generated may be a video."""
    model, processor = tiny
    plain = processor(text="<video>\nWhat colour is the object?", videos=VIDEO)
    inputs = before_video(processor, answer(model, plain))
    greedy = answer(model, inputs)
    asked = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: asked.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    assert answer(model, inputs, prompt_lookup_num_tokens=2) == greedy
    hook.remove()
    assert len(asked) >= 1
    assert answer(model, plain, prompt_lookup_num_tokens=3) == answer(model, plain)


def test_looked_up_text_ends_where_a_medium_begins(tiny):
    from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

    from videollama2.model.generation import _LookedUpText

    model, _ = tiny
    video = model.config.video_token_id
    for end in (torch.tensor([2]), None):
        lookup = PromptLookupCandidateGenerator(num_output_tokens=3, max_length=99, eos_token_id=end)
        ids = torch.tensor([[7, 8, video, video, 9, 5, 6, 11, 12, 7]])
        assert _LookedUpText(model, lookup).get_candidates(ids)[0][0, 10:12].tolist()[:1] == [8]
        assert video not in _LookedUpText(model, lookup).get_candidates(ids)[0][0, 10:].tolist()


@pytest.mark.parametrize("options", [{"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}, {"min_new_tokens": 3}])
def test_processors_of_scores_see_text_alone(tiny, options):
    """A placeholder outside the vocabulary has no score to penalise."""
    model, processor = tiny
    inputs = processor(text="<video>\nWhat colour is the object?", videos=VIDEO)
    assert answer(model, inputs, **options)
    # The penalty is that of the prompt's text: embeddings, where generate sees no prompt, are penalised less.
    if "repetition_penalty" in options:
        ids = torch.full((1, 3), model.config.vocab_size + 1)
        ids[0, 2] = 5
        processors = model._get_logits_processor(
            model._prepare_generation_config(None, **options)[0], input_ids_seq_length=3, device="cpu"
        )
        scores = processors(ids, torch.ones(1, model.config.vocab_size))
        assert scores[0, 5] < 1
        assert (scores == 1).sum() == scores.numel() - 1


def test_placeholders_inside_the_vocabulary(tiny):
    """Engines that refuse other ids may choose some that no text has."""
    model, processor = load_checkpoint("videollama2-tiny", dtype=torch.float32)
    outside = processor(text="<video>\nWhat colour is the object?", videos=VIDEO)
    unused = sorted(set(range(model.config.vocab_size)) - set(outside["input_ids"].flatten().tolist()))[-3:]
    names = ("image_token_id", "video_token_id", "audio_token_id")
    for name, value in zip(names, unused, strict=True):
        setattr(model.config, name, value)
    inside = processor(text="<video>\nWhat colour is the object?", videos=VIDEO)
    assert inside["input_ids"].max() < model.config.vocab_size
    assert answer(model, inside) == answer(tiny[0], outside)
    assert answer(model, inside, prompt_lookup_num_tokens=2, repetition_penalty=1.1)


def test_outputs_as_tuples(tiny):
    model, processor = tiny
    inputs = processor(text="<video>\nWhat?", videos=VIDEO)
    with torch.no_grad():
        for part in (model, model.model):
            first, *_ = part(**inputs, return_dict=False)
            assert torch.equal(first, next(iter(part(**inputs).values())))
