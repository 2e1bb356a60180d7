"""Two processes on the CPU: DDP and DeepSpeed give the numbers of one process, whatever media each of them sees."""

import json
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.helpers.forked import run_ranks
from tests.helpers.ports import reserved_port
from videollama2 import train
from videollama2.checkpoints import load_pretrained_model
from videollama2.data.collator import TrainingCollator
from videollama2.data.dataset import VideoInstructionDataset
from videollama2.errors import CheckpointError
from videollama2.training.distributed.sharding import check_slices
from videollama2.training.trainers.eval_loss import sums_over

from .helpers.runs import FEW_PARTS, Run, copy_checkpoint, difference, flags, needs_deepspeed, same_log

pytestmark = pytest.mark.slow


PLAIN = {"max_steps": 6, "group_by_modality_length": False, "weight_decay": 0.1}


@pytest.mark.parametrize("grouped", [False, True])
def test_two_processes_equal_one_and_accumulated_batches(run, run_once, launch_once, grouped):
    """14 records with different numbers of labels, batches of 4: the second epoch begins after an incomplete one."""
    options = {**PLAIN, "group_by_modality_length": grouped}
    one = run_once(per_device_train_batch_size=4, **options)
    accumulated = run(per_device_train_batch_size=2, gradient_accumulation_steps=2, **options)
    two = launch_once(2, per_device_train_batch_size=2, **options)
    same_log(one, accumulated, 1e-4)
    same_log(one, two, 1e-4)
    assert difference(one.weights, two.weights) < 1e-3


def test_log_counts_all_processes(run_once, launch_once):
    """Twice the samples of one process, not twice the loss."""
    one = run_once(per_device_train_batch_size=4, **PLAIN).log[0]
    two = launch_once(2, per_device_train_batch_size=2, **PLAIN).log[0]
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
    ratios = [row["visual_tokens_per_second"] / row["samples_per_second"] for row in (one, two)]
    assert ratios[0] == pytest.approx(ratios[1], rel=0.01)


def test_different_media_on_each_process(run, launch, world, several):
    options = {"max_steps": 8, "data_path": several, "data_folder": world}
    same_log(run(per_device_train_batch_size=2, **options), launch(2, per_device_train_batch_size=1, **options), 1e-4)


def test_more_processes_than_records(run, launch, world, tmp_path):
    rows = json.loads((world / "train.json").read_text())[:1]
    rows[0]["video"] = str(world / rows[0]["video"])
    (tmp_path / "one.json").write_text(json.dumps(rows))
    options = {"data_path": tmp_path / "one.json", "per_device_train_batch_size": 1}
    same_log(run(**options), launch(2, **options), 1e-4)


# An epoch has four steps: processes that die after five do so in the second one, whose order is another one.
SAVING = {"max_steps": 8, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 2}


def test_killed_processes_go_on(launch, launch_once):
    whole = launch_once(2, **SAVING)
    killed = launch(2, kill_at=5, **SAVING)
    assert not (killed.folder / "trainer_state.json").exists()
    resumed = launch(2, folder=killed.folder, **SAVING)
    assert difference(whole.weights, resumed.weights) <= 1e-6
    assert resumed.losses == pytest.approx(whole.losses, abs=1e-6)


def test_a_killed_process_comes_back(launch_once, torchrun, world, parts, tmp_path):
    """``torchrun --max-restarts``: the launcher ends the other process and starts both again."""
    whole = launch_once(2, **SAVING)
    folder, log, begun = tmp_path / "out", tmp_path / "log", tmp_path / "begun"
    begun.mkdir()
    argv = [str(begun), "0-1", "5", *flags(world, parts, folder, **SAVING)]
    code = torchrun(argv, log, "--max-restarts=1", module="tests.training.helpers.dying")
    assert code == 0, log.read_text()[-3000:]
    started = {path.name for path in begun.iterdir()}
    assert started == {"0-0", "0-1", "1-0", "1-1"}, "two processes, and two more after one of them had died"
    assert log.read_text().count("'loss'") == 5 + 4, "what came after the fourth step was learnt again, and no more"
    assert difference(whole.weights, Run(folder).weights) <= 1e-6


def main(argv):
    """One of two processes, the first of which writes a file."""
    accelerator, written = Accelerator(cpu=True), Path(argv[0])
    if accelerator.is_main_process:
        time.sleep(0.5)  # a result that takes long to write
        written.touch()
    train.end_together(accelerator)
    assert written.exists() and not torch.distributed.is_initialized()
    return 0


def test_no_process_leaves_before_the_first_has_written(tmp_path):
    log = tmp_path / "log"
    assert run_ranks([str(tmp_path / "written")], 2, log, module=__name__) == 0, log.read_text()


def test_evaluation_does_not_depend_on_processes(run, launch, world):
    options = {
        "eval_data_path": world / "mixed.json",
        "eval_strategy": "steps",
        "eval_steps": 2,
        "per_device_eval_batch_size": 4,
    }
    one = run(per_device_train_batch_size=4, **options)
    two = launch(2, per_device_train_batch_size=2, **options)
    (a,), (b,) = ([row for row in r.history if "eval_loss" in row] for r in (one, two))
    assert a["eval_answers"] == b["eval_answers"] > 14
    assert a["eval_loss"] == pytest.approx(b["eval_loss"], rel=1e-4)
    assert a["eval_answer_accuracy"] == b["eval_answer_accuracy"]


@pytest.fixture(scope="module")
def kinds(world):
    """The mixed records by what they hold, and two with several media."""
    rows = json.loads((world / "mixed.json").read_text())
    found = {kind: [row for row in rows if kind in row] for kind in ("video", "image")}
    found["text"] = [row for row in rows if not row.keys() & {"video", "image"}]
    video, image = found["video"][0]["video"], found["image"][0]["image"]
    answer = {"from": "gpt", "value": "a circle"}
    for name, media, text in (
        ("both", {"image": image, "video": video}, "<video> or <image>?"),
        ("two", {"image": [image, image]}, "<image> or <image>?"),
    ):
        found[name] = [{"id": name, **media, "conversations": [{"from": "human", "value": text}, answer]}]
    return found


@pytest.fixture(scope="module")
def several(kinds, tmp_path_factory):
    """All of these records, so that a micro-batch may hold any of the kinds."""
    path = tmp_path_factory.mktemp("several") / "several.json"
    path.write_text(json.dumps([row for rows in kinds.values() for row in rows]))
    return path


@pytest.fixture(scope="module")
def alternating(kinds, world, tmp_path_factory):
    """Flags of a run in whose four steps two processes see different kinds of media, in two of them one text alone."""
    order = ("video", "text", "image", "video", "text", "both", "two", "image")
    rows = {kind: iter(rows) for kind, rows in kinds.items()}
    path = tmp_path_factory.mktemp("alternating") / "alternating.json"
    path.write_text(json.dumps([next(rows[kind]) for kind in order]))
    return {"data_path": path, "data_folder": world, "train_sampling_strategy": "sequential", "max_steps": 4}


def logits(folder, records):
    _, model, processor, _ = load_pretrained_model(folder, device="cpu")
    samples = [VideoInstructionDataset(records, processor, 400)[i] for i in range(len(records))]
    with torch.no_grad():
        return model(**TrainingCollator(processor.pad_token_id)(samples)).logits


def loss_of(folder, records):
    """Per label, as evaluation counts it."""
    _, model, processor, _ = load_pretrained_model(folder, device="cpu")
    dataset, collator = VideoInstructionDataset(records, processor, 400), TrainingCollator(processor.pad_token_id)
    batches = (collator([dataset[i]]) for i in range(len(records)))
    loss, labels, _, _ = sums_over(model, batches, torch.device("cpu")).tolist()
    return loss / labels


@needs_deepspeed
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("frozen_tower", [True, False])
def test_zero_equals_plain_training(run_once, launch, world, alternating, records, stage, frozen_tower):
    """With the published connector where all learns, and with a smaller one."""
    options = {**alternating, "freeze_vision_tower": frozen_tower, "gradient_checkpointing": True}
    if frozen_tower:
        options |= FEW_PARTS
    asked = {"eval_data_path": world / "mixed.json", "eval_strategy": "steps", "eval_steps": 4}
    one = run_once(per_device_train_batch_size=2, **options)
    zero = {"deepspeed": ROOT / "scripts" / f"zero{stage}.json"}
    two = launch(2, per_device_train_batch_size=1, **zero, **asked, **options)
    same_log(one, two, 1e-3)
    torch.testing.assert_close(logits(one.folder, records), logits(two.folder, records), rtol=0, atol=5e-3)
    # What was written is what the engine held at the end, apart from rounding.
    (inside,) = [row["eval_loss"] for row in two.history if "eval_loss" in row]
    assert loss_of(two.folder, records) == pytest.approx(inside, rel=1e-5)


@needs_deepspeed
def test_zero_3_goes_on_from_its_checkpoint_and_writes_each_kind(run, launch, captions, tmp_path):
    zero = {"deepspeed": ROOT / "scripts" / "zero3.json", "per_device_train_batch_size": 2, **FEW_PARTS}
    # The frozen encoder is not in the engine's part of a checkpoint.
    options = {"save_strategy": "steps", "save_steps": 1, "freeze_vision_tower": True, **zero}
    whole = launch(2, **options)
    begun = tmp_path / "begun"
    copy_checkpoint(whole.folder / "checkpoint-1", begun / "checkpoint-1")
    resumed = launch(2, folder=begun, **options)
    assert difference(whole.weights, resumed.weights) <= 1e-6
    first = {"tune_mm_mlp_adapter": True, "freeze_vision_tower": True, "data_path": captions}
    connector = launch(2, **first, **zero)
    assert difference(connector.weights, run(per_device_train_batch_size=4, **first, **FEW_PARTS).weights) < 2e-3
    lora = {"lora_enable": True, "lora_r": 4, "lora_dropout": 0, "freeze_vision_tower": True}
    adapter = launch(2, **lora, **zero)
    assert difference(adapter.weights, run(per_device_train_batch_size=4, **lora, **FEW_PARTS).weights) < 2e-3


@needs_deepspeed
def test_zero_2_goes_on_over_quantised_weights(launch, world, parts, tmp_path, capsys):
    """As scripts/custom/finetune_qlora.sh does; its checkpoints do not repeat what is frozen."""
    options = {
        "lora_enable": True,
        "lora_r": 4,
        "bits": 4,
        "freeze_vision_tower": True,
        "per_device_train_batch_size": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        **FEW_PARTS,
    }
    zero = {"deepspeed": ROOT / "scripts" / "zero2.json"}
    whole = launch(2, **zero, **options)
    begun = tmp_path / "begun"
    copy_checkpoint(whole.folder / "checkpoint-1", begun / "checkpoint-1")
    (states,) = begun.glob("checkpoint-1/global_step1/*model_states.pt")
    names = torch.load(states, weights_only=False)["module"]
    assert not [name for name in names if name.endswith((".base_layer.weight", "embed_tokens.weight"))]
    assert any(".lora_A." in name for name in names)
    resumed = launch(2, folder=begun, **zero, **options)
    assert difference(whole.weights, resumed.weights) <= 1e-6
    assert resumed.losses == pytest.approx(whole.losses, abs=1e-6)

    assert train.main(flags(world, parts, begun, **options)) == 2
    assert "--deepspeed not given (was with other content)" in capsys.readouterr().err
    asked = {**options, "resume_from_checkpoint": begun / "checkpoint-2"}
    assert train.main(flags(world, parts, tmp_path / "plain", **asked)) == 2
    assert "checkpoint-2 was written with --deepspeed, but this run is without it" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="by 2 processes, but this run has 3"):
        check_slices(str(begun / "checkpoint-1"), processes=3)


@needs_deepspeed
def test_zero_3_reports_weights_that_do_not_fit(world, parts, tmp_path):
    """transformers reads weights under ZeRO-3 without reporting anything."""
    torch.save({"model.mm_projector.readout.0.weight": torch.zeros(3, 3)}, tmp_path / "wrong.bin")
    changes = {"pretrain_mm_mlp_adapter": tmp_path / "wrong.bin", "deepspeed": ROOT / "scripts" / "zero3.json"}
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    with reserved_port() as port:
        argv, log = flags(world, parts, tmp_path / "out", **changes), tmp_path / "log"
        assert run_ranks(argv, 1, log, variables={**alone, "MASTER_PORT": str(port)}) == 2, log.read_text()
    error = log.read_text()
    assert "readout.0.weight" in error
    assert "(3, 3)" in error


def test_fully_sharded_equals_ddp_and_goes_on(launch, records, several, world):
    """Slices of all weights on two processes, which see different kinds of media; gradients are clipped."""
    options = {"max_steps": 4, "data_path": several, "data_folder": world, "max_grad_norm": 0.5, "num_frames": 2}
    options |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "gradient_checkpointing": True}
    plain = launch(2, **options)
    saving = {"save_strategy": "steps", "save_steps": 2, "fully_shard": True}
    whole = launch(2, **options, **saving)
    assert whole.losses == pytest.approx(plain.losses, abs=1e-6)
    assert [row["grad_norm"] for row in whole.log] == pytest.approx([row["grad_norm"] for row in plain.log], rel=1e-4)
    assert difference(plain.weights, whole.weights) < 1e-3  # Adam enlarges rounding where gradients are near zero
    resumed = Run(whole.folder.parent / "resumed")
    copy_checkpoint(whole.folder / "checkpoint-2", resumed.folder / "checkpoint-2")
    launch(2, folder=resumed.folder, **options, **saving)
    assert difference(whole.weights, resumed.weights) <= 1e-6
    config = json.loads((whole.folder / "config.json").read_text())
    assert config["architectures"] == json.loads((plain.folder / "config.json").read_text())["architectures"]
    torch.testing.assert_close(logits(plain.folder, records), logits(whole.folder, records), rtol=0, atol=1e-4)


def test_fully_sharded_in_half_precision_learns_as_ddp_does(launch, records, several, world):
    """Slices have 32 bits; what is gathered of them, and the computation, 16."""
    options = {"max_steps": 2, "data_path": several, "data_folder": world, "num_frames": 2, "bf16": True, **FEW_PARTS}
    options |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    plain = launch(2, **options)
    saving = {"save_strategy": "steps", "save_steps": 1, "fully_shard": True}
    whole = launch(2, **options, **saving)
    assert whole.losses == pytest.approx(plain.losses, rel=5e-3)
    kept = load_file(whole.folder / "checkpoint-1" / "model.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}
    resumed = Run(whole.folder.parent / "resumed")
    copy_checkpoint(whole.folder / "checkpoint-1", resumed.folder / "checkpoint-1")
    launch(2, folder=resumed.folder, **options, **saving)
    assert resumed.losses == whole.losses and difference(whole.weights, resumed.weights) == 0
    assert torch.isfinite(logits(whole.folder, records)).all()
