"""Parameter groups and what is frozen."""

import pytest
import torch

from videollama2.data.collator import TrainingCollator
from videollama2.data.dataset import VideoInstructionDataset
from videollama2.training.arguments import parse_arguments
from videollama2.training.model.build import build_model, describe_trainable
from videollama2.training.trainers.trainer import VideoLlama2Trainer

from .helpers.runs import FEW_PARTS, flags


@pytest.fixture
def make(world, parts, tmp_path, records):
    def build(**changes):
        arguments = parse_arguments(flags(world, parts, tmp_path / "out", **changes))
        model, processor = build_model(*arguments)
        dataset = VideoInstructionDataset(records, processor, 400)
        trainer = VideoLlama2Trainer(model=model, args=arguments[2], train_dataset=dataset, processing_class=processor)
        return model, trainer

    return build


def test_parameter_groups(make):
    model, trainer = make(weight_decay=0.1, mm_projector_lr=3e-4, vision_tower_lr=2e-5, learning_rate=1e-3)
    of = {id(p): name for name, p in model.named_parameters()}
    seen = {}
    for group in trainer.create_optimizer().param_groups:
        for parameter in group["params"]:
            assert id(parameter) not in seen
            seen[id(parameter)] = (group["lr"], group["weight_decay"])
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    assert set(seen) == trainable
    for key, (rate, decay) in seen.items():
        name = of[key]
        expected = 3e-4 if "mm_projector" in name else 2e-5 if "vision_tower" in name else 1e-3
        assert rate == expected, name
        vector = dict(model.named_parameters())[name].ndim < 2
        assert decay == (0.0 if vector else 0.1), name


def test_layers_above_the_selected_one_do_not_learn(make):
    model, _ = make()
    tower = model.model.vision_tower
    assert all(p.requires_grad for p in tower.encoder.layers[1].parameters())
    assert not any(p.requires_grad for p in tower.encoder.layers[2].parameters())
    assert not any(p.requires_grad for p in tower.post_layernorm.parameters())
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert f"{learning:,}" in describe_trainable(model).splitlines()[-1]


def test_every_trainable_weight_gets_a_gradient_even_from_text_alone(make, records):
    model, trainer = make()
    dataset = trainer.train_dataset
    text = next(i for i, record in enumerate(records) if not record.media)
    batch = TrainingCollator(0)([dataset[text]])
    model.train()
    model(**batch).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert not any(torch.isnan(p.grad).any() for p in model.parameters() if p.grad is not None)


def test_grouping_uses_our_sampler(make):
    _, trainer = make(group_by_modality_length=True, per_device_train_batch_size=2)
    order = list(trainer._get_train_sampler())
    assert sorted(order) == list(range(len(trainer.train_dataset)))


def test_new_connector_starts_as_torch_makes_it(make):
    """Built inside from_pretrained, transformers would draw it with deviation 0.02 and zero biases."""
    layer = make()[0].model.mm_projector.readout[0]
    bound = layer.in_features**-0.5
    assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert layer.weight.abs().max() <= bound
    assert layer.bias.abs().max() > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "learning"),
    [
        ({"freeze_vision_tower": True}, {"mm_projector", "language_model"}),
        ({"freeze_vision_tower": True, "freeze_backbone": True}, {"mm_projector"}),
        ({"freeze_vision_tower": True, "tune_mm_mlp_adapter": True}, {"mm_projector"}),
        ({"freeze_mm_mlp_adapter": True}, {"vision_tower", "language_model"}),
    ],
)
def test_frozen_means_frozen(make, records, changes, learning):
    """After two steps with weight decay, what does not learn is equal to the bit."""
    model, trainer = make(weight_decay=0.1, per_device_train_batch_size=2, **changes)
    trainer.data_collator = TrainingCollator(0)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    trainer.train()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}
    assert not changed & frozen
    assert {name.split(".")[1] for name in changed} == learning
    table = {line.split()[0]: line.split()[2] for line in describe_trainable(model).splitlines()[1:]}
    assert {name for name, count in table.items() if count != "0"} - {"total"} == learning


OPTIMIZERS = [
    "adamw_torch",
    "adamw_torch_fused",
    "adafactor",
    "sgd",
    "adagrad",
    "rmsprop",
    "adamw_8bit",
    "lion_32bit",
    "paged_adamw_8bit",
    "ademamix",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_of_transformers(make, name):
    """All of them keep the parts' own learning rates and change what learns."""
    rates = {"mm_projector_lr": 3e-2, "learning_rate": 1e-2}
    model, trainer = make(optim=name, per_device_train_batch_size=2, **rates, **FEW_PARTS)
    trainer.data_collator = TrainingCollator(0)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trainer.train()
    used = {group.get("part"): group["initial_lr"] for group in trainer.optimizer.param_groups}
    assert used == {None: 1e-2, "mm_projector_lr": 3e-2}
    changed = {name.split(".")[1] for name, p in model.named_parameters() if not torch.equal(before[name], p)}
    assert changed == {"vision_tower", "mm_projector", "language_model"}
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chosen", "every", "expected"),
    [
        (["language_model"], 1, {"decoder 0": 2, "decoder 1": 2, "encoder 0": 1, "encoder 1": 1, "connector": 1}),
        (["mm_projector"], 1, {"decoder 0": 1, "decoder 1": 1, "encoder 0": 1, "encoder 1": 1, "connector": 2}),
        (
            ["language_model", "vision_tower"],
            2,
            {"decoder 0": 2, "decoder 1": 1, "encoder 0": 2, "encoder 1": 1, "connector": 1},
        ),
    ],
)
def test_recomputed_are_the_parts_and_layers_asked_for(make, chosen, every, expected):
    """Counted over one training step on a video."""
    model, trainer = make(
        gradient_checkpointing=True,
        gradient_checkpointing_parts=chosen,
        gradient_checkpointing_every=every,
        per_device_train_batch_size=1,
        max_steps=1,
    )
    trainer.data_collator = TrainingCollator(0)
    inner = model.model
    watched = {f"decoder {i}": inner.language_model.layers[i].mlp for i in range(2)}
    watched |= {f"encoder {i}": inner.vision_tower.encoder.layers[i].mlp for i in range(2)}
    watched["connector"] = inner.mm_projector.s1[0]
    seen = []
    for name, module in watched.items():
        module.register_forward_pre_hook(lambda *_, name=name: seen.append(name))
    trainer.train_dataset = torch.utils.data.Subset(trainer.train_dataset, [0])
    trainer.train()
    assert {name: seen.count(name) for name in watched} == expected


def test_gradient_checkpointing_of_decoder_and_connector(make):
    """Same gradients, and both parts compute forwards twice."""
    gradients, calls = [], []
    for wanted in (False, True):
        torch.manual_seed(0)
        model, trainer = make(gradient_checkpointing=wanted)
        batch = TrainingCollator(0)([trainer.train_dataset[0]])
        inner = model.model
        seen = []
        for name, module in (("decoder", inner.language_model.layers[0].mlp), ("connector", inner.mm_projector.s1[0])):
            module.register_forward_pre_hook(lambda *_, name=name, seen=seen: seen.append(name))
        if wanted:
            model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
        model.train()
        model(**batch).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        calls.append((seen.count("decoder"), seen.count("connector")))
    assert calls == [(1, 1), (2, 2)]
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-5, atol=1e-7, msg=name)
