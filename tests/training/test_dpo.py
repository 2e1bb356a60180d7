"""Preferences between answers: the loss of the paper, references that stay where the run began, exact resuming."""

import json
import math
from importlib.util import find_spec

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from tests.conftest import ROOT
from videollama2 import train
from videollama2.data.collator import TrainingCollator
from videollama2.data.dataset import VideoInstructionDataset
from videollama2.data.pairs import PairCollator, PreferencePairs
from videollama2.data.records import read_records
from videollama2.errors import ConfigError, DataError
from videollama2.processing import VideoLlama2Processor
from videollama2.training.asking.rollouts import PromptDataset
from videollama2.training.model.build import build_model
from videollama2.training.trainers.dpo import DpoTrainer, adapters_off

from .helpers.runs import FEW_PARTS, Run, copy_checkpoint, difference, flags

LORA = {"lora_enable": True, "lora_r": 4, "freeze_vision_tower": True, "freeze_mm_mlp_adapter": True}
DPO = {"objective": "dpo", "dpo_beta": 0.5, "per_device_train_batch_size": 2}


@pytest.fixture(scope="module")
def pairs(world):
    """Every record of the world whose last answer is preferred to another; the last one is text with two turns."""
    rows = json.loads((world / "mixed.json").read_text())
    for number, row in enumerate(rows):
        row["rejected"] = "no" if number % 2 else "a very red answer"
    path = world / "pairs.json"
    path.write_text(json.dumps(rows[::5] + rows[-1:]))
    return path


@pytest.fixture
def trainer(world, parts, pairs, tmp_path):
    """``trainer(flag=value, ...)``: the trainer as ``train.py`` makes it, with matrices that are not zero."""

    def make(**changes):
        argv = flags(world, parts, tmp_path / "unused", data_path=pairs, **{**DPO, **changes})
        model_args, data_args, args = train.parse_arguments(argv)
        torch.manual_seed(0)  # of the connector, which is new: how far the loss is from that of no preference
        model, processor = build_model(model_args, data_args, args)
        with torch.no_grad():
            for number, (name, parameter) in enumerate(model.named_parameters()):
                if ".lora_" in name:
                    generator = torch.Generator().manual_seed(number)
                    parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        dataset = PreferencePairs(read_records([pairs]), processor, 400, levels=True)
        collator = PairCollator(TrainingCollator(processor.pad_token_id, shared=("image", "video", "audio")))
        return DpoTrainer(model=model, args=args, train_dataset=dataset, data_collator=collator)

    return make


def plain_loss(model, processor, records, beta):
    """The loss of the paper, from one sequence at a time and the logits of all its positions."""
    samples = VideoInstructionDataset
    total = 0.0
    for record in records:
        log_probs = []
        for answer in (record.conversations[-1]["value"], record.rejected):
            turns = (*record.conversations[:-1], {"from": "gpt", "value": answer})
            sample = samples([type(record)("x", "x", record.media, turns)], processor, 400, levels=True)[0]
            batch = TrainingCollator(processor.pad_token_id)([sample])
            labels = batch.pop("labels")[0, 1:]
            wanted = labels.clone()
            ends = [i for i in range(len(labels)) if labels[i] >= 0 and (i + 1 == len(labels) or labels[i + 1] < 0)]
            wanted[: ends[-2] + 1 if len(ends) > 1 else 0] = -100
            own = []
            for reference in (False, True):
                if reference:
                    with torch.no_grad(), adapters_off(model):
                        logits = model(**batch).logits[0, :-1]
                else:
                    logits = model(**batch).logits[0, :-1]
                own.append(logits.log_softmax(-1).gather(1, wanted.clamp(min=0)[:, None])[:, 0][wanted >= 0].sum())
            log_probs.append(own[0] - own[1])
        total = total - F.logsigmoid(beta * (log_probs[0] - log_probs[1]))
    return total / len(records)


@pytest.mark.slow
def test_equals_the_loss_of_the_paper(trainer):
    """Batched, with shared media and logits at few positions, as one sequence at a time; gradients too."""
    it = trainer(**LORA)
    assert it.adapters_alone
    model, dataset = it.model.eval().double(), it.train_dataset
    model.model.pixel_table = model.model.pixel_table.double()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    chosen = (0, 1, len(dataset) - 1, 3)
    expected = plain_loss(model, dataset.processor, [dataset.records[i] for i in chosen], 0.5)
    gradients = torch.autograd.grad(expected, learning)
    batch = it.data_collator(dataset.__getitems__(chosen))
    batch.pop("attention_mask")
    assert batch["input_ids"].shape[0] == 8
    shown = len(batch.get("pixel_values", ())) + len(batch.get("pixel_values_videos", ()))
    assert shown == sum(len(dataset.records[i].media) for i in chosen)  # each medium once, for both answers
    loss = it.compute_loss(model, batch, num_items_in_batch=4)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6) and abs(loss.item() - math.log(2)) > 1e-2
    for found, wanted in zip(torch.autograd.grad(loss, learning), gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=5e-6)  # parts of the sum are float32
    assert all(parameter.requires_grad for parameter in learning)  # switching matrices off has not frozen them


def test_batch_without_pairs_learns_nothing(trainer):
    it = trainer()
    dataset = it.train_dataset
    batch = it.data_collator([dataset[len(dataset)]])
    batch.pop("attention_mask")
    loss = it.compute_loss(it.model.train(), batch, num_items_in_batch=torch.tensor(1))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in it.model.parameters() if p.requires_grad)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [LORA, {}], ids=["lora", "full"])
def test_prefers_and_resumes_exactly(run, pairs, tmp_path, kind):
    """LoRA dropout is on; the reference stays the model at step 0 also in the second half of the run."""
    options = {**DPO, **kind, "data_path": pairs, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = run(**options)
    assert whole.losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert whole.losses[-1] < 0.6 and whole.log[-1]["reward_margin"] > 0
    assert (whole.folder / "reference_log_probs.npy").exists() == (not kind)
    begun = Run(tmp_path / "begun")
    copy_checkpoint(whole.folder / "checkpoint-2", begun.folder / "checkpoint-2")
    resumed = run(folder=begun.folder, **options)
    assert difference(whole.weights, resumed.weights) == 0
    assert resumed.losses == whole.losses


@pytest.mark.slow
def test_two_processes_learn_the_same(run, launch, pairs):
    options = {**DPO, **FEW_PARTS, "data_path": pairs, "max_steps": 2}
    alone = run(**{**options, "per_device_train_batch_size": 4})
    apart = {**options, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    both = launch(2, **apart)
    assert both.losses == pytest.approx(alone.losses, abs=1e-6)
    assert difference(alone.weights, both.weights) < 1e-4
    if find_spec("deepspeed") is not None:
        zero = launch(2, **apart, deepspeed=ROOT / "scripts" / "zero2.json")
        assert zero.losses == pytest.approx(both.losses, abs=1e-5)
        assert difference(zero.weights, both.weights) < 1e-4


@pytest.mark.parametrize(
    "own",
    [
        {"chosen": "blue", "rejected": "red"},
        {"chosen": {"from": "gpt", "value": "blue"}, "rejected": {"from": "gpt", "value": "red"}},
        {"chosen": [{"role": "assistant", "content": "blue"}], "rejected": [{"role": "assistant", "content": "red"}]},
    ],
)
def test_forms_of_other_programs(tmp_path, own):
    question = [{"from": "human", "value": "Which colour?"}]
    path = tmp_path / "pairs.json"
    answered = {"messages": [{"role": "user", "content": "Which colour?"}, {"role": "assistant", "content": "blue"}]}
    path.write_text(json.dumps([{"conversations": question, **own}, {**answered, "rejected_response": "red"}]))
    whole = [[*answered["messages"][:1], {"role": "assistant", "content": text}] for text in ("blue", "red")]
    parts = [[{"role": "assistant", "content": [{"type": "text", "text": text}]}] for text in ("blue", "red")]
    others = [
        {"prompt": "Which colour?", "chosen": "blue", "rejected": "red"},
        {"prompt": answered["messages"][:1], "chosen": parts[0], "rejected": parts[1]},
        {"chosen": whole[0], "rejected": whole[1]},
        {**answered, "rejected_messages": whole[1]},
    ]
    (tmp_path / "others.json").write_text(json.dumps(others))
    for record in read_records([path, tmp_path / "others.json"]):
        assert record.rejected == "red"
        assert [turn["value"] for turn in record.conversations] == ["Which colour?", "blue"]


@pytest.mark.parametrize(
    "own, message",
    [
        ({"chosen": "blue"}, "'chosen' has no 'rejected' answer"),
        ({"rejected": "red"}, "and it is neither"),
        ({"chosen": "red", "rejected": "red"}, "are the same: 'red'"),
        ({"chosen": "blue", "rejected": " "}, "'rejected' must be an answer that is not empty"),
        ({"chosen": "blue", "rejected": "red", "rejected_response": "x"}, "mean the same"),
        ({"chosen": "blue", "rejected": {"role": "user", "content": "red"}}, "an answer of the assistant, got one of"),
        ({"chosen": [1, 2], "rejected": [1, 3]}, "'chosen', 'rejected' and 'conversations' all hold the conversation"),
        ({"rejected_messages": [1, 2]}, "must be conversations that differ in the last answer alone"),
        ({"rejected_images": ["a.png"]}, "both answers of a pair are about the same media"),
    ],
)
def test_faulty_pairs_are_named(tmp_path, own, message):
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps([{"id": 7, "conversations": [{"from": "human", "value": "Which?"}], **own}]))
    with pytest.raises(DataError, match=f"record '7': .*{message}"):
        read_records([path])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"dpo_beta": 0.2}, "--dpo_beta 0.2 has no effect without --objective dpo"),
        ({"objective": "dpo", "dpo_beta": -1}, "--dpo_beta -1.0 is not above 0"),
        ({"objective": "dpo", "packing": 400}, "--packing does not support --objective dpo"),
        ({"objective": "dpo", "tune_mm_mlp_adapter": True}, "--objective dpo needs a model that answers already"),
    ],
)
def test_flags_that_contradict_the_objective(world, parts, tmp_path, changes, message):
    more = {"freeze_vision_tower": True} if "tune_mm_mlp_adapter" in changes else {}
    with pytest.raises(ConfigError, match=message):
        train.parse_arguments(flags(world, parts, tmp_path, **changes, **more))


def test_an_answer_that_was_cut_off_is_named(tmp_path):
    """Otherwise the answer to an earlier question would be compared with itself, or rewarded as the last one."""
    turns = [("human", "Which?"), ("gpt", "red"), ("human", "Where? " * 40), ("gpt", "left")]
    row = {"id": 7, "conversations": [{"from": who, "value": text} for who, text in turns], "rejected": "right"}
    (tmp_path / "pairs.json").write_text(json.dumps([row]))
    records = read_records([tmp_path / "pairs.json"])
    processor = VideoLlama2Processor.from_pretrained(ROOT / "videollama2" / "assets" / "videollama2-tiny")
    for kind in (PreferencePairs, PromptDataset):
        assert kind(records, processor, 400)[0]
        with pytest.raises(DataError, match="record '7': the last answer does not begin within the 40 tokens"):
            kind(records, processor, 40)[0]


def test_record_without_a_worse_answer_is_named(run, world):
    with pytest.raises(DataError, match=r"mixed\.json: record .*has no 'rejected' answer, which --objective dpo needs"):
        run(**DPO)
