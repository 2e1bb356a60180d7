"""Two processes on the CPU with sound: DDP and DeepSpeed give the numbers of one process, whichever of them hears."""

import pytest
import torch

from tests.conftest import ROOT
from videollama2.checkpoints import load_pretrained_model

from .helpers.hearing import joint_flags, write_beats, write_records, write_seeing
from .helpers.runs import FEW_PARTS, copy_checkpoint, difference, needs_deepspeed, same_log

pytestmark = pytest.mark.slow

TABLE = "model.audio_tower.encoder.layers.{}.self_attn.relative_attention_bias.weight"


@pytest.fixture(scope="module")
def joint(tmp_path_factory, parts):
    """Flags of the joint stage; the audio encoder skips a third of its layers, the same ones on all processes."""
    folder = tmp_path_factory.mktemp("joint")
    seeing = write_seeing(folder / "seeing", parts, connector=FEW_PARTS["mm_projector_type"])
    beats = write_beats(folder / "beats.pt", encoder_layerdrop=0.33)
    return joint_flags(seeing, beats, write_records(folder), gradient_checkpointing=True, max_steps=6)


def test_two_processes_equal_one(run_once, launch, joint):
    """Batches of one: in some steps one process sees and the other hears."""
    one = run_once(per_device_train_batch_size=2, **joint)
    two = launch(2, per_device_train_batch_size=1, **joint)
    same_log(one, two, 1e-4)
    assert difference(one.weights, two.weights) < 1e-3


@needs_deepspeed
@pytest.mark.parametrize("stage", [2, 3])
def test_zero_equals_plain_training(run_once, launch, joint, stage):
    one = run_once(per_device_train_batch_size=2, **joint)
    zero = {"deepspeed": ROOT / "scripts" / f"zero{stage}.json"}
    two = launch(2, per_device_train_batch_size=1, **zero, **joint)
    same_log(one, two, 1e-3)
    written = two.weights  # with ZeRO-2 they hold tied tensors under each of their names
    assert difference(one.weights, {name: written[name] for name in one.weights}) < 5e-3
    _, model, _, _ = load_pretrained_model(two.folder, device="cpu")
    assert torch.equal(model.state_dict()[TABLE.format(1)], written[TABLE.format(0)])


@needs_deepspeed
def test_zero_3_writes_and_reads_the_parts_of_an_audio_stage(run, launch, joint, tmp_path):
    alone = {**joint, "tune_adapter_llm": None, "va": None, "data_path": joint["data_path"][1:2], "max_steps": 2}
    zero = {"deepspeed": ROOT / "scripts" / "zero3.json", "save_strategy": "steps", "save_steps": 1}
    one = run(per_device_train_batch_size=2, **alone)
    two = launch(2, per_device_train_batch_size=1, **zero, **alone)
    assert {path.name for path in two.folder.glob("*.bin")} == {"mm_projector_a.bin", "audio_tower.bin"}
    assert difference(one.weights, two.weights) < 2e-3
    copy_checkpoint(two.folder / "checkpoint-1", tmp_path / "again" / "checkpoint-1")
    resumed = launch(2, folder=tmp_path / "again", per_device_train_batch_size=1, **zero, **alone)
    assert difference(two.weights, resumed.weights) <= 1e-6
    assert resumed.losses == pytest.approx(two.losses, abs=1e-6)
