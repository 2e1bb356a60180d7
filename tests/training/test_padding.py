"""Batches are padded on the right and attention is causal: no mask reaches the decoder, and none is missed."""

import pytest

from videollama2 import train
from videollama2.data.collator import TrainingCollator
from videollama2.data.dataset import VideoInstructionDataset
from videollama2.training.arguments import parse_arguments
from videollama2.training.model.build import build_model
from videollama2.training.reports.meter import CountingCollator, count

from .helpers.runs import assert_same_learning, flags, loss_and_gradients


@pytest.fixture
def model(world, parts, tmp_path):
    return build_model(*parse_arguments(flags(world, parts, tmp_path / "out")))


def test_losses_and_gradients_do_not_need_a_mask(model, records):
    inner, processor = model
    dataset = VideoInstructionDataset(records, processor, 400)
    samples = [dataset[i] for i in range(len(records))]
    collate = TrainingCollator(processor.pad_token_id)
    masked = collate(samples)
    assert (masked["attention_mask"] == 0).any()
    bare = CountingCollator(collate, inner.config)(samples)
    counts = bare.pop("counts")
    assert counts == count(masked, inner.config)
    assert masked.keys() - bare.keys() == {"attention_mask"}
    inner.train()
    assert_same_learning(loss_and_gradients(inner, masked), loss_and_gradients(inner, bare), atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_no_mask_reaches_a_layer(run, world, monkeypatch, attention):
    """In training and in evaluation; eager attention makes itself a causal one."""
    seen = []

    def build(*arguments):
        inner, processor = build_model(*arguments)
        inner.model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
        )
        for layer in inner.model.language_model.layers:
            layer.register_forward_pre_hook(
                lambda module, args, kwargs: seen.append(kwargs["attention_mask"]) if attention == "sdpa" else None,
                with_kwargs=True,
            )
        return inner, processor

    monkeypatch.setattr(train, "build_model", build)
    asked = {"eval_data_path": world / "mixed.json", "eval_strategy": "steps", "eval_steps": 1, "max_steps": 1}
    run(attn_implementation=attention, **asked)
    assert len(seen) >= 2
    assert all(mask is None for mask in seen)
