"""Frames travel as 8-bit levels, and the model turns them into the pixels that the processor would have made."""

import pytest
import torch

from videollama2.data.collator import TrainingCollator
from videollama2.data.dataset import VideoInstructionDataset
from videollama2.errors import PromptError
from videollama2.training.arguments import parse_arguments
from videollama2.training.model.build import build_model

from .helpers.runs import flags


@pytest.mark.parametrize("shape", ["square", "pad"])
def test_levels_become_the_same_pixels_loss_and_gradients(world, parts, tmp_path, records, shape):
    model, processor = build_model(*parse_arguments(flags(world, parts, tmp_path / "out", image_aspect_ratio=shape)))
    batches = []
    for levels in (False, True):
        dataset = VideoInstructionDataset(records, processor, 400, levels=levels)
        batches.append(TrainingCollator(0)([dataset[i] for i in (0, 9, len(records) - 1)]))
    pixels, levels = (batch["pixel_values_videos"].flatten(0, 1) for batch in batches)
    assert levels.dtype == torch.uint8
    assert torch.equal(model.model._pixels_of(levels), pixels)
    losses, gradients = [], []
    for batch in batches:
        model.zero_grad()
        loss = model.train()(**batch).loss
        loss.backward()
        losses.append(loss.item())
        gradients.append(model.model.mm_projector.s1[0].conv1.conv.weight.grad.clone())
    assert losses[0] == losses[1]
    assert torch.equal(*gradients)
    model.model.pixel_table = None
    with pytest.raises(PromptError, match="has no table for uint8 levels"):
        model(**batches[1])


def test_a_run_uses_levels(run, monkeypatch):
    seen = []
    inside = TrainingCollator.__call__

    def watch(self, samples):
        batch = inside(self, samples)
        seen.extend(batch[key].dtype for key in ("pixel_values", "pixel_values_videos") if key in batch)
        return batch

    monkeypatch.setattr(TrainingCollator, "__call__", watch)
    run()
    assert seen and set(seen) == {torch.uint8}
