"""LoRA and QLoRA over models that hear (the published code has neither): written, opened, merged."""

import pytest
import torch

from videollama2.checkpoints import load_pretrained_model
from videollama2.checkpoints.merge import merge_adapter
from videollama2.checkpoints.write import save_lora
from videollama2.data.collator import TrainingCollator
from videollama2.data.dataset import VideoInstructionDataset
from videollama2.data.records import read_records
from videollama2.errors import CheckpointError
from videollama2.training.arguments import parse_arguments
from videollama2.training.model.build import build_model

from .helpers.hearing import stage_flags, write_beats, write_records, write_seeing
from .helpers.runs import copy_checkpoint, difference, flags


@pytest.fixture(scope="module")
def start(tmp_path_factory, parts):
    """A model that sees, an audio encoder, and records with sound."""
    folder = tmp_path_factory.mktemp("start")
    return write_seeing(folder / "seeing", parts), write_beats(folder / "beats.pt"), write_records(folder)


def asked(start, **changes):
    seeing, beats, files = start
    lora = {"tune_adapter_llm": True, "lora_enable": True, "lora_r": 4, "lora_alpha": 8}
    return stage_flags(seeing, beats, **lora, data_path=files["av"], va="True", **changes)


def logits(model, processor, files):
    data = VideoInstructionDataset(read_records([files["av"], files["audio"]], va=[True, False]), processor, 400)
    batch = TrainingCollator(processor.pad_token_id)([data[0], data[4]])
    with torch.no_grad():
        return model.eval()(**batch).logits


ADAPTED = {"lora_parts": ["language_model", "audio_tower"], "lora_bias": "all"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "encoder", [{}, {"tune_audio_tower": True}, ADAPTED, {**ADAPTED, "lora_dora": True, "lora_bias": "none"}]
)
def test_an_adapter_opens_and_merges_with_the_logits_it_was_trained_to(start, world, tmp_path, encoder):
    seeing, beats, files = start
    changes = asked(start, **encoder)
    model, processor = build_model(*parse_arguments(flags(world, seeing, tmp_path / "unused", **changes)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    expected = logits(model, processor, files)
    save_lora(model, processor, tmp_path / "adapter", str(seeing))
    opened = load_pretrained_model(tmp_path / "adapter", device="cpu")
    torch.testing.assert_close(logits(opened[1], opened[2], files), expected, rtol=0, atol=2e-4)
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    _, whole, processor, _ = load_pretrained_model(tmp_path / "merged", device="cpu")
    torch.testing.assert_close(logits(whole, processor, files), expected, rtol=0, atol=2e-4)
    untouched = load_pretrained_model(seeing, device="cpu")[1]
    assert not torch.equal(whole.model.mm_projector.readout[0].weight, untouched.model.mm_projector.readout[0].weight)


def test_parts_that_are_missing_are_named(start, world, tmp_path):
    seeing, _, _ = start
    changes = asked(start, tune_audio_tower=True)
    model, processor = build_model(*parse_arguments(flags(world, seeing, tmp_path / "unused", **changes)))
    save_lora(model, processor, tmp_path / "adapter", str(seeing))
    path = tmp_path / "adapter" / "non_lora_trainables.bin"
    weights = torch.load(path, weights_only=True)
    torch.save({name: tensor for name, tensor in weights.items() if "layers.1.fc1" not in name}, path)
    with pytest.raises(CheckpointError, match=r"2 weights of the audio encoder are missing.*layers\.1\.fc1\.bias"):
        load_pretrained_model(tmp_path / "adapter", device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {"tune_audio_tower": True},
        {"lora_parts": ["audio_tower"], "audio_gradient_multiplier": 1, "lora_bias": "all"},
        {"tune_audio_tower": True, "bits": 4},
    ],
)
def test_training_and_resuming(run, start, tmp_path, how):
    changes = asked(start, **how, lora_dropout=0.1)
    options = {**changes, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = run(**options)
    copy_checkpoint(whole.folder / "checkpoint-2", tmp_path / "again" / "checkpoint-2")
    resumed = run(folder=tmp_path / "again", **options)
    assert difference(whole.weights, resumed.weights) <= 1e-6
    assert any("audio_tower" in name for name in whole.weights)
    assert any(".lora_A." in name for name in whole.weights)
