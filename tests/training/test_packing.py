"""Packed rows: what is learnt from a record does not depend on the records beside it."""

import importlib.util

import pytest
import torch
from torch.utils.data import ConcatDataset

from tests.conftest import ROOT
from videollama2 import train
from videollama2.data.collator import TrainingCollator
from videollama2.data.dataset import VideoInstructionDataset
from videollama2.data.packing import PackedRows, pack_rows, token_counts
from videollama2.data.records import read_sets
from videollama2.errors import ConfigError, DataError
from videollama2.model.packed_attention import keep_records_apart
from videollama2.training.arguments import parse_arguments
from videollama2.training.model.build import build_model
from videollama2.training.reports.meter import CountingCollator, count

from .helpers.runs import FEW_PARTS, assert_same_learning, copy_checkpoint, difference, flags, loss_and_gradients

SIZE = 900
PACKED = {
    "packing": 200,
    "model_max_length": 200,
    "per_device_train_batch_size": 2,
    "num_train_epochs": 2,
    "max_steps": None,
}


@pytest.fixture
def build(world, parts, tmp_path):
    def start(**changes):
        return build_model(*parse_arguments(flags(world, parts, tmp_path / "out", **{"packing": SIZE, **changes})))

    return start


def samples_of(processor, records):
    dataset = VideoInstructionDataset(records, processor, 400)
    return [dataset[i] for i in range(len(records))]


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_loss_and_gradients_are_those_of_unpacked_records(build, records, attention):
    model, processor = build(attn_implementation=attention)
    samples = samples_of(processor, records)
    collate = CountingCollator(TrainingCollator(processor.pad_token_id), model.config)
    packed = collate([samples[:5], samples[5:9], samples[9:]])
    padded = collate(samples)
    assert packed.pop("counts") == padded.pop("counts")
    assert packed["input_ids"].shape == (1, sum(len(sample["input_ids"]) for sample in samples))
    model.train()
    assert_same_learning(loss_and_gradients(model, padded), loss_and_gradients(model, packed))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_neighbour_does_not_change_a_bit(build, records, attention):
    """Another record of the same length in front; without the boundaries, the logits would differ."""
    model, processor = build(attn_implementation=attention)
    model.eval()
    first, *others = samples_of(processor, records)[:4]
    ids = first["input_ids"]
    text = [i for i, token in enumerate(ids) if token not in model.config.placeholder_ids]
    other = {**first, "input_ids": list(ids)}
    for place in text:
        other["input_ids"][place] = (ids[place] + 7) % model.config.vocab_size
    results = []
    for neighbour in (first, other):
        batch = TrainingCollator(0)([[neighbour, *others]])
        del batch["labels"]
        with torch.inference_mode():
            results.append(model(**batch).logits[:, len(ids) :])
    assert torch.equal(*results)
    for name in ("position_ids", "record_lengths"):
        del batch[name]
    with torch.inference_mode():
        assert not torch.equal(model(**batch).logits[:, len(ids) :], results[0])


def test_a_batch_of_padded_rows_may_follow(build, records):
    """Evaluation does not pack."""
    packing, processor = build()
    plain, _ = build(packing=None)
    plain.load_state_dict(packing.state_dict())
    batch = TrainingCollator(processor.pad_token_id)(samples_of(processor, records)[:6])
    del batch["attention_mask"]
    with torch.inference_mode():
        assert torch.equal(packing.eval()(**batch).logits, plain.eval()(**batch).logits)


def test_rows_are_full_and_hold_every_record_once():
    generator = torch.Generator().manual_seed(0)
    lengths = (torch.randn(30_000, generator=generator) * 0.8 + 6).exp().clamp(1, 2048).int().tolist()
    rows = list(pack_rows(lengths, 4096, generator))
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    sums = [sum(lengths[index] for index in row) for row in rows]
    assert max(sums) <= 4096
    assert sum(sums) / (4096 * len(rows)) >= 0.98
    awkward = [2500] * 30_000  # no two fit together
    assert len(list(pack_rows(awkward, 4096, generator))) == 30_000


def test_lengths_are_exact_and_a_record_without_room_is_named(build, records):
    _, processor = build()
    dataset = VideoInstructionDataset(records, processor, 400)
    rows = PackedRows(dataset, [len(records)], SIZE, seed=1)
    exact = token_counts(dataset)
    assert [exact[i] for i in range(len(records))] == [len(dataset[i]["input_ids"]) for i in range(len(records))]
    assert [len(sample["input_ids"]) for sample in rows[0]] == [exact[i] for i in rows.row(0)]
    assert rows.fill == pytest.approx(sum(exact) / (SIZE * len(rows)))
    assert [sample["input_ids"] for sample in rows[len(rows)]] == [[processor.pad_token_id]]
    with pytest.raises(DataError, match=r"mixed.json: record '.*': no labelled token within the 20 tokens"):
        PackedRows(VideoInstructionDataset(records, processor, 20), [len(records)], SIZE)
    left_out = VideoInstructionDataset(records, processor, 20, skip_bad=True)
    assert 1 in token_counts(left_out)
    batch = TrainingCollator(0)([PackedRows(left_out, [len(records)], SIZE)[0]])
    assert any("no labelled token" in message for message in batch["bad_samples"])
    assert count(batch, processor.model_config).samples < len(records)


@pytest.mark.slow
def test_invariant_over_accumulation(run, run_once):
    # Adam would turn gradients of rounding errors into steps of a learning rate.
    options = {**PACKED, "optim": "sgd"}
    whole = run_once(**options)
    assert len(whole.losses) >= 4
    split = run(**{**options, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2})
    assert split.losses == pytest.approx(whole.losses, abs=1e-6)
    assert difference(whole.weights, split.weights) <= 1e-6


@pytest.mark.slow
def test_invariant_over_processes(run_once, launch):
    options = {**PACKED, "optim": "sgd"}
    whole = run_once(**options)
    spread = launch(2, **{**options, "per_device_train_batch_size": 1})
    assert spread.losses == pytest.approx(whole.losses, abs=1e-6)
    assert difference(whole.weights, spread.weights) <= 1e-6


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="the package deepspeed is not installed")
def test_zero_3_equals_plain_training(run, launch):
    """With layers recomputed; a row of one process may hold other media than that of the other."""
    options = {**PACKED, **FEW_PARTS, "gradient_checkpointing": True, "num_train_epochs": 1}
    whole = run(**options)
    sliced = launch(2, **{**options, "per_device_train_batch_size": 1, "deepspeed": ROOT / "scripts" / "zero3.json"})
    assert sliced.losses == pytest.approx(whole.losses, rel=1e-3)


@pytest.mark.slow
def test_resumed_exactly(run, tmp_path):
    """From within the second epoch."""
    options = {**PACKED, "save_strategy": "steps", "save_steps": 1, "dataloader_num_workers": 1}
    whole = run(**options)
    last = len(whole.losses) - 1
    assert last > len(whole.losses) / 2
    copy_checkpoint(whole.folder / f"checkpoint-{last}", tmp_path / "begun" / f"checkpoint-{last}")
    resumed = run(folder=tmp_path / "begun", **options)
    assert difference(whole.weights, resumed.weights) == 0
    assert resumed.losses == whole.losses


@pytest.mark.slow
def test_weights_are_shares_of_rows(build, run, world):
    """A row has records of one set, and the sampler mixes rows."""
    paths = [world / "mixed.json", world / "train.json"]
    sets = read_sets(paths)
    _, processor = build()
    sizes = [len(records) for records in sets]
    rows = PackedRows(VideoInstructionDataset(ConcatDataset(sets), processor, 200), sizes, 200)
    assert sum(rows.sizes) == len(rows)
    firsts = [{index < sizes[0] for index in rows.row(number)} for number in range(len(rows))]
    assert firsts == [{True}] * rows.sizes[0] + [{False}] * rows.sizes[1]
    log = run(**{**PACKED, "data_path": paths, "data_weights": [3, 1], "num_train_epochs": 1}).log
    assert len(log) == -(-len(rows) // 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"packing": 300}, "--packing 300 is below --model_max_length 400"),
        ({"group_by_modality_length": True}, "--packing and --group_by_modality_length both"),
        ({"train_sampling_strategy": "sequential"}, "--packing and --train_sampling_strategy both"),
    ],
)
def test_flags_that_contradict_packing(world, parts, tmp_path, capsys, changes, words):
    assert train.main(flags(world, parts, tmp_path / "out", **{"packing": SIZE, **changes})) == 2
    assert words in capsys.readouterr().err


def test_attention_that_mixes_neighbours_is_refused(build):
    model, _ = build(packing=None)
    decoder = model.get_decoder()
    decoder.config.sliding_window = 100
    with pytest.raises(ConfigError, match="the qwen2 decoder's is 100; give --model_max_length 100 or less"):
        keep_records_apart(decoder, 400)
    decoder.config.sliding_window = None
    decoder.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(ConfigError, match="decoder has linear_attention, which mixes neighbouring records"):
        keep_records_apart(decoder, 400)


@pytest.mark.slow
@pytest.mark.parametrize("order", [{"group_by_modality_length": True}, {"packing": 400}])
def test_kept_records_and_lengths_train_the_same(run, tmp_path, order):
    options = {**order, "records_cache": tmp_path / "cache"}
    losses = [run(**order).losses, run(**options).losses, run(**options).losses]
    assert losses[0] == losses[1] == losses[2]
    assert len([place for place in (tmp_path / "cache").iterdir() if place.is_dir()]) == 2
