"""``train.py`` end to end: it learns, its numbers do not depend on batching, its output opens, it resumes."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from videollama2.checkpoints import load_checkpoint, load_pretrained_model
from videollama2.data.collator import TrainingCollator
from videollama2.data.dataset import VideoInstructionDataset


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.slow
def test_loss_falls(run, world):
    result = run(max_steps=25, data_path=world / "train.json", per_device_train_batch_size=8, learning_rate=5e-3)
    losses = [row["loss"] for row in result.log]
    assert len(losses) == 25
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.slow
def test_accumulated_batches_equal_one_large_batch(run, run_once):
    """Samples have different numbers of labels, so a mean of means would differ."""
    whole = run_once().log
    parts_of_it = run(per_device_train_batch_size=2, gradient_accumulation_steps=2).log
    for a, b in zip(whole, parts_of_it, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


@pytest.mark.slow
def test_batch_of_text_image_and_video_is_the_sum_of_its_samples(run_once, records):
    model, processor = load_checkpoint(run_once().folder)
    dataset = VideoInstructionDataset(records, processor, 400)
    collator = TrainingCollator(processor.pad_token_id)
    chosen = [next(i for i, r in enumerate(records) if r.kinds == kinds) for kinds in (["video"], [], ["image"])]
    samples = [dataset[i] for i in chosen]
    batch = collator(samples)
    assert batch["pixel_values"].shape[0] == 1
    assert batch["pixel_values_videos"].shape[:2] == (1, 8)
    model.train()
    together = model(**batch, num_items_in_batch=1).loss
    alone = sum(model(**collator([sample]), num_items_in_batch=1).loss for sample in samples)
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)


@pytest.mark.slow
def test_saved_folder_opens_with_the_same_logits_and_published_names(run, records, world, parts):
    result = run(image_aspect_ratio="pad")
    with safe_open(result.folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert {"model.embed_tokens.weight", "model.norm.weight", "model.mm_projector.readout.0.weight"} <= names
    assert any(name.startswith("model.vision_tower.vision_tower.vision_model.") for name in names)
    assert not any("language_model" in name for name in names)

    _, model, processor, context = load_pretrained_model(result.folder, device="cpu")
    assert context == 1024
    assert processor.model_config.mm_inference_aspect_ratio == "pad"
    assert processor.model_config.image_aspect_ratio == "pad"
    assert model.config.text_config.use_cache
    sample = VideoInstructionDataset(records, processor, 400)[0]
    batch = TrainingCollator(processor.pad_token_id)([sample])
    again, _ = load_checkpoint(result.folder, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, again.eval()(**batch).logits)
        loss = model(**batch).loss.item()
    # fresh weights give 6.5
    assert loss < 6.2
    assert not (result.folder / "training_args.bin").exists()


@pytest.mark.slow
@pytest.mark.parametrize("grouped", [False, True])
def test_resumed_run_equals_an_uninterrupted_one(run, tmp_path, grouped):
    """Weights are renamed on disk; transformers' own way of resuming would skip all of them."""
    options = {
        "max_steps": 5,
        "save_strategy": "steps",
        "save_steps": 3,
        "group_by_modality_length": grouped,
        "weight_decay": 0.1,
        "mm_projector_lr": 1e-3,
    }
    whole = run(**options)
    interrupted = tmp_path / "interrupted"
    interrupted.mkdir()
    shutil.copytree(whole.folder / "checkpoint-3", interrupted / "checkpoint-3")
    # what a kill in the middle of the next save leaves behind must not be picked
    shutil.copytree(whole.folder / "checkpoint-3", interrupted / "checkpoint-4")
    (interrupted / "checkpoint-4" / "trainer_state.json").write_text('{"global_step": 4,')
    resumed = run(folder=interrupted, **options)
    expected, found = weights(whole.folder), weights(resumed.folder)
    assert expected.keys() == found.keys()
    assert max((expected[name] - found[name]).abs().max() for name in expected) <= 1e-6
    assert [row["loss"] for row in resumed.log] == pytest.approx([row["loss"] for row in whole.log], abs=1e-6)


@pytest.mark.slow
def test_goes_on_from_a_whole_checkpoint(run, run_once):
    first = run_once()
    second = run(model_path=first.folder, vision_tower=None, mm_projector_type=None, num_frames=4, freeze_backbone=True)
    before, after = weights(first.folder), weights(second.folder)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        in_decoder = "mm_projector" not in name and "vision_tower" not in name
        assert not in_decoder or torch.equal(tensor, after[name]), name
    assert not torch.equal(before["model.mm_projector.readout.0.weight"], after["model.mm_projector.readout.0.weight"])
    _, processor = load_checkpoint(second.folder)
    assert processor.model_config.num_frames == 4


@pytest.mark.slow
def test_first_stage_trains_and_writes_the_connector_alone(run, parts, tmp_path, captions):
    options = {
        "tune_mm_mlp_adapter": True,
        "freeze_vision_tower": True,
        "data_path": captions,
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    result = run(**options)
    assert not (result.folder / "model.safetensors").exists()
    tensors = torch.load(result.folder / "mm_projector.bin", weights_only=True)
    assert all(name.startswith("model.mm_projector.") for name in tensors)

    _, model, processor, _ = load_pretrained_model(result.folder, device="cpu")
    decoder = load_file(parts / "llm" / "model.safetensors")
    assert torch.equal(model.get_input_embeddings().weight, decoder["model.embed_tokens.weight"])
    name = "model.mm_projector.readout.0.weight"
    assert torch.equal(model.model.mm_projector.state_dict()["readout.0.weight"], tensors[name])

    interrupted = tmp_path / "interrupted"
    interrupted.mkdir()
    shutil.copytree(result.folder / "checkpoint-2", interrupted / "checkpoint-2")
    resumed = torch.load(run(folder=interrupted, **options).folder / "mm_projector.bin", weights_only=True)
    assert max((tensors[key] - resumed[key]).abs().max() for key in tensors) <= 1e-6

    second = run(pretrain_mm_mlp_adapter=result.folder / "mm_projector.bin", freeze_mm_mlp_adapter=True)
    assert torch.equal(weights(second.folder)[name], tensors[name])


@pytest.mark.slow
def test_loss_on_other_data_is_logged(run, world):
    import json

    result = run(eval_data_path=world / "mixed.json", eval_strategy="steps", eval_steps=1)
    history = json.loads((result.folder / "trainer_state.json").read_text())["log_history"]
    assert [row["step"] for row in history if row.get("eval_loss", 0) > 0] == [1, 2]
