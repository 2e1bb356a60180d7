"""A reward of the user: the loss of the paper, answers of the engine on live weights, exact resuming."""

import json

import pytest
import torch

from videollama2 import train
from videollama2.data.collator import TrainingCollator
from videollama2.data.records import read_records
from videollama2.errors import ConfigError, DataError
from videollama2.inference.engine import Engine
from videollama2.training.asking.rollouts import AnswerGroup, PromptDataset, _request, rows_of
from videollama2.training.model.build import build_model
from videollama2.training.rewards import exact_match, load_reward
from videollama2.training.trainers.grpo import Repeated, StartWeights, grpo_loss

from .helpers.runs import FEW_PARTS, Run, copy_checkpoint, difference, flags

GRPO = {"objective": "grpo", "reward": "videollama2.training.rewards:exact_match", "group_size": 3, "answer_tokens": 4}


def plain_loss(now, old, start, advantage, clip, beta):
    """Equation 3 of the paper for one answer, token by token."""
    total = 0.0
    for new, before, first in zip(now, old, start, strict=True):
        ratio = (new - before).exp()
        bounded = min(max(ratio, torch.tensor(1 - clip)), torch.tensor(1 + clip))
        distance = (first - new).exp() - (first - new) - 1
        total = total - min(ratio * advantage, bounded * advantage) + beta * distance
    return total / len(now)


def test_equals_the_loss_of_the_paper():
    """Answers of different lengths; some ratios are outside the clip on either side."""
    generator = torch.Generator().manual_seed(0)
    now, old, start = (-torch.rand(4, 6, generator=generator) for _ in range(3))
    now.requires_grad_()
    lengths, advantages = [6, 3, 1, 4], torch.tensor([1.5, -0.5, 0.25, -1.0])
    answered = torch.arange(6) >= 6 - torch.tensor(lengths)[:, None]
    loss, distance, clipped = grpo_loss(now, old, start, answered, advantages, 0.2, 0.3)
    assert (distance > 0).all() and 0 < clipped.max() <= 1
    for row, length in enumerate(lengths):
        part = slice(6 - length, 6)
        wanted = plain_loss(now[row, part], old[row, part], start[row, part], advantages[row], 0.2, 0.3)
        assert loss[row].item() == pytest.approx(wanted.item(), abs=1e-6)
        expected = torch.autograd.grad(wanted, now, retain_graph=True)[0]
        found = torch.autograd.grad(loss[row], now, retain_graph=True)[0]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_advantages_compare_the_answers_of_a_question():
    mixed = AnswerGroup([[1], [2], [3], [4]], [1.0, 0.0, 0.0, 1.0]).advantages
    torch.testing.assert_close(mixed, torch.tensor([1.0, -1.0, -1.0, 1.0]), rtol=0, atol=1e-3)
    assert not AnswerGroup([[1], [2]], [1.0, 1.0]).advantages.any()


def test_blocks_are_repeated():
    assert list(Repeated([4, 2, 5, 1, 3], 2, 2)) == [4, 2, 4, 2, 5, 1, 5, 1]
    assert len(Repeated([4, 2, 5, 1, 3], 2, 2)) == 8
    with pytest.raises(DataError, match="1 records do not fill a batch of 2"):
        Repeated([4], 2, 2)


@pytest.fixture(scope="module")
def model(world, parts, tmp_path_factory):
    """Model, processor and the world's questions."""
    argv = flags(world, parts, tmp_path_factory.mktemp("unused"))
    model, processor = build_model(*train.parse_arguments(argv))
    return model, processor, PromptDataset(read_records([world / "mixed.json"]), processor, 400)


def test_engine_is_asked_what_is_trained_on(model):
    """The prompt in training is the one to which the engine answers, whatever media there are."""
    net, processor, data = model
    _, _, args = train.parse_arguments(
        ["--model_path", "x", "--data_path", "x", "--output_dir", "x", "--use_cpu", "True"]
    )
    places = [0, next(i for i, r in enumerate(data.records) if r.kinds == ["image"]), len(data) - 1]
    with Engine(net, processor, max_length=600, background=False) as engine:
        for place in places:
            sample = data[place]
            answer = engine.submit_request(_request(sample, args, 0, 0))
            task = engine._waiting.tasks[-1]
            answer.result()
            assert task.input_ids == sample["question"].prompt
            own = AnswerGroup([[5, 6, 7], [8]], [0.0, 1.0])
            rows = rows_of([sample], [own])
            assert [row["input_ids"][-len(ids) :] for row, ids in zip(rows, own.ids, strict=True)] == own.ids
            batch = TrainingCollator(0, ("image", "video", "audio"))(rows)
            assert (batch["labels"] >= 0).sum(dim=1).tolist() == [3, 1]


def test_start_weights_come_and_go(model):
    net, *_ = model
    weight = net.lm_head.weight
    start, before = StartWeights(net), weight.detach().clone()
    with torch.no_grad():
        weight += 1
    with start.used():
        torch.testing.assert_close(weight, before)
    torch.testing.assert_close(weight, before + 1)


@pytest.fixture
def red(tmp_path):
    """A reward in a file: the share of an answer's characters that are ``e``."""
    path = tmp_path / "red.py"
    path.write_text("def letters(record, answer):\n    return answer.count('e') / max(len(answer), 1)\n")
    return f"{path}:letters"


@pytest.mark.slow
def test_earns_and_resumes_exactly(run, red, tmp_path):
    """A checkpoint between two updates from the same answers; dropout of LoRA is on."""
    options = {**GRPO, "reward": red, "answer_updates": 2, "per_device_train_batch_size": 2, "max_steps": 4}
    options |= {"lora_enable": True, "lora_r": 4, "freeze_vision_tower": True, "kl_beta": 0.1, "learning_rate": 5e-3}
    options |= {"save_strategy": "steps", "save_steps": 3}
    whole = run(**options)
    assert [set(line) >= {"reward", "kl", "clipped", "generation_share"} for line in whole.log] == [True] * 4
    assert whole.log[0]["kl"] == pytest.approx(0, abs=1e-5) and whole.log[-1]["kl"] > 1e-5
    begun = Run(tmp_path / "begun")
    copy_checkpoint(whole.folder / "checkpoint-3", begun.folder / "checkpoint-3")
    resumed = run(folder=begun.folder, **options)
    assert difference(whole.weights, resumed.weights) == 0
    assert resumed.losses == whole.losses


@pytest.mark.slow
def test_learns_what_is_rewarded(run, tmp_path):
    """Without any label, most answers begin as the reward wants them to; about half do at first."""
    talk = [{"from": "human", "value": "Is a circle a shape?"}, {"from": "gpt", "value": "yes"}]
    data, reward = tmp_path / "talk.json", tmp_path / "early.py"
    data.write_text(json.dumps([{"id": str(number), "conversations": talk} for number in range(8)]))
    reward.write_text("def early(record, answer):\n    return answer.strip()[:1].lower() < 'm'\n")
    options = {**GRPO, "data_path": data, "reward": f"{reward}:early", "group_size": 16, "answer_tokens": 1}
    options |= {"per_device_train_batch_size": 2, "max_steps": 20, "kl_beta": 0, "learning_rate": 1e-2}
    options["lr_scheduler_type"] = "constant"
    earned = [line["reward"] for line in run(**options).log]
    assert sum(earned[-4:]) / 4 > sum(earned[:4]) / 4 + 0.1


@pytest.mark.slow
def test_two_processes_learn_the_same(run, launch, red):
    """Plain gradient descent: the first step of Adam would make a gradient of nearly zero as large as any other."""
    options = {**GRPO, **FEW_PARTS, "reward": red, "max_steps": 1, "kl_beta": 0.1, "optim": "sgd"}
    alone = run(**options, per_device_train_batch_size=2)
    both = launch(2, **options, per_device_train_batch_size=1)
    assert both.log[0]["reward"] == pytest.approx(alone.log[0]["reward"], abs=1e-6)
    assert difference(alone.weights, both.weights) < 1e-6
    assert both.log[0]["grad_norm"] == pytest.approx(alone.log[0]["grad_norm"], rel=1e-4)


def test_rewards_are_imported_or_named():
    class Told:
        conversations = ({"from": "human", "value": "?"}, {"from": "gpt", "value": "Red."})

    assert load_reward("videollama2.training.rewards:exact_match") is exact_match
    assert [exact_match(Told, text) for text in (" red ", "Red.", "blue")] == [1, 1, 0]
    for name, message in (
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("/nowhere/r.py:f", "No such file"),
        ("videollama2.training.rewards:nothing", "no attribute 'nothing'"),
        ("videollama2.training.rewards:__name__", "is not a function, but str"),
        ("exact_match", "is not MODULE:FUNCTION"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_reward(name)


@pytest.mark.slow
def test_a_reward_that_fails_is_told_and_leaves_a_checkpoint(run, tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "calls = []\n\n\ndef score(record, answer):\n    calls.append(answer)\n"
        "    return len(calls) if len(calls) <= 6 else float('nan')\n\n\n"
        "def one(answer):\n    return 1\n"
    )
    options = {**GRPO, "per_device_train_batch_size": 2, "max_steps": 2}
    told = rf"--reward gives nan to the answer .*; {tmp_path}/out/checkpoint-1 holds what was learnt up to step 1"
    with pytest.raises(DataError, match=told):
        run(folder=tmp_path / "out", **{**options, "reward": f"{file}:score"})
    with pytest.raises(DataError, match=r"--reward fails on the answer .*TypeError: one\(\) takes 1 positional"):
        run(**{**options, "reward": f"{file}:one"})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"reward": None}, "--objective grpo needs --reward MODULE:FUNCTION"),
        ({"group_size": 1}, "--group_size 1 is below 2"),
        ({"clip_ratio": 0.1}, "--clip_ratio has no effect with --answer_updates 1"),
        ({"answer_temperature": 0}, "equal answers have no advantage"),
        ({"objective": "answers"}, "has no effect without --objective grpo"),
    ],
)
def test_flags_that_contradict_each_other(world, parts, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        train.parse_arguments(flags(world, parts, tmp_path, **{**GRPO, **changes}))
