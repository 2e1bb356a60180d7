"""TRL's trainers take model and processor as transformers' Auto classes open them: two lines of set-up."""

import copy
import math

import pytest
import torch
from PIL import Image

from tests.conftest import golden_dir

PATH = golden_dir() / "models" / "qwen2-stc_connector-clip"
COMMON = {"max_steps": 2, "per_device_train_batch_size": 2, "report_to": [], "save_strategy": "no", "bf16": False}


@pytest.fixture(scope="module")
def trl():
    pytest.importorskip("datasets")
    return pytest.importorskip("trl")


def opened():
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import videollama2  # noqa: F401 - registers the model

    return AutoModelForImageTextToText.from_pretrained(PATH), AutoProcessor.from_pretrained(PATH)


def turn(role, words, *media):
    return {"role": role, "content": [{"type": "text", "text": words}, *media]}


def data(**columns):
    from datasets import Dataset

    pictures = [[Image.new("RGB", (40, 30), (60 * number, 90, 200))] for number in range(4)]
    return Dataset.from_dict({"images": pictures, **{name: [value] * 4 for name, value in columns.items()}})


QUESTION = turn("user", "What is it?", {"type": "image"})


def test_supervised_fine_tuning(trl, tmp_path):
    model, processor = opened()
    before = copy.deepcopy(model.state_dict())
    rows = data(prompt=[QUESTION], completion=[turn("assistant", "A cat.")])
    arguments = trl.SFTConfig(str(tmp_path), logging_steps=1, use_cpu=True, max_length=None, **COMMON)
    trainer = trl.SFTTrainer(model, arguments, train_dataset=rows, processing_class=processor)
    batch = next(iter(trainer.get_train_dataloader()))
    assert (batch["input_ids"] == processor.image_token_id).any() and batch["pixel_values"].shape[0] == 2
    answers = [processor.tokenizer.decode(row[row != -100]) for row in batch["labels"]]
    assert answers == ["A cat.<|im_end|>\n"] * 2
    with torch.no_grad():
        expected = model.eval()(**batch).loss.item()
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2 and losses[0] == pytest.approx(expected, rel=0.05)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any("mm_projector" in name for name in changed) and any("language_model" in name for name in changed)


def test_preference_optimisation(trl, tmp_path):
    """TRL builds the reference model of a third-party class only where it is given one."""
    (model, processor), (reference, _) = opened(), opened()
    rows = data(prompt=[QUESTION], chosen=[turn("assistant", "A cat.")], rejected=[turn("assistant", "A dog.")])
    arguments = trl.DPOConfig(str(tmp_path), logging_steps=1, use_cpu=True, max_length=None, **COMMON)
    trainer = trl.DPOTrainer(model, reference, arguments, train_dataset=rows, processing_class=processor)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    # Model and reference agree at first, which is log 2; one step later they do not.
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3) and losses[1] != losses[0]
