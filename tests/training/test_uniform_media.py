"""All media of a micro-batch in one call of each part: as DeepSpeed needs it, and equal to one after the other."""

from collections import Counter

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from videollama2.data.collator import TrainingCollator
from videollama2.data.dataset import VideoInstructionDataset
from videollama2.errors import ConfigError
from videollama2.model.connectors import build_connector
from videollama2.model.connectors.base import Shown
from videollama2.training.arguments import parse_arguments
from videollama2.training.distributed.sharding import encode_uniformly
from videollama2.training.model.build import build_model

from .helpers.runs import assert_same_learning, flags, loss_and_gradients

CONNECTORS = (
    "stc_connector",
    "stc_connector_v35",
    "stp_connector",
    "spatial_conv",
    "spatial_pool",
    "linear",
    "mlp2x_gelu",
)


@pytest.mark.parametrize("name", CONNECTORS)
@pytest.mark.parametrize(
    "shown", [[(1, 8)], [(8, 8), (1, 8), (1, 8)], [(1, 7), (5, 5), (2, 2), (7, 7), (1, 3), (6, 6)]]
)
def test_together_equals_one_after_the_other(name, shown):
    torch.manual_seed(0)
    connector = build_connector(name, 12, 16).double()
    features_FND = torch.randn(sum(distinct for distinct, _ in shown), 16, 12, dtype=torch.float64, requires_grad=True)
    calls = Counter()
    for part, module in connector.named_children():
        module.register_forward_hook(lambda *_, part=part: calls.update([part]))
    together = connector(features_FND, [Shown(*medium) for medium in shown])
    assert set(calls.values()) <= {1}
    alone, first = [], 0
    for distinct, total in shown:
        part_TND = features_FND[first : first + distinct]
        alone.append(connector(part_TND.expand(total, -1, -1)[None] if distinct == 1 else part_TND[None])[0])
        first += distinct
    alone = torch.cat(alone)
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)
    weights_ND = torch.randn_like(alone)
    gradients = [torch.autograd.grad((tokens * weights_ND).sum(), features_FND)[0] for tokens in (together, alone)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "slices"), [("stc_connector", 3 + 5), ("stc_connector_v35", 1 + 4)])
def test_of_a_still_image_only_slices_that_differ_are_computed(name, slices):
    """Two images and one clip of eight frames: the images' interior slices are one."""
    connector = build_connector(name, 12, 16)
    seen = []
    connector.s1.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    connector.s2.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    connector(torch.randn(9, 16, 12), [Shown(1, 8), Shown(8, 8)])
    assert seen == [9, slices]


@pytest.mark.parametrize(
    ("name", "widths", "side", "frames", "still", "clip"),
    [
        ("stc_connector_v35", (1152, 3584), 27, 16, 0.222, 2.920),
        ("stc_connector", (1024, 4096), 24, 8, 0.452, 1.672),
    ],
)
def test_operations_of_an_image_at_the_published_sizes(name, widths, side, frames, still, clip):
    """10^12 operations forwards, counted without computing anything."""
    with torch.device("meta"):
        connector = build_connector(name, *widths)
        for shown, expected in ((Shown(1, frames), still), (Shown(frames, frames), clip)):
            with FlopCounterMode(display=False) as counter:
                connector(torch.zeros(shown.distinct, side**2, widths[0]), [shown])
            assert counter.get_total_flops() / 1e12 == pytest.approx(expected, abs=1e-3)


def test_clips_that_fill_no_window_are_refused():
    with pytest.raises(ConfigError, match="needs at least 2 frames, got 1"):
        build_connector("stc_connector_v35", 12, 16)(torch.randn(1, 16, 12), [Shown(1, 1)])


@pytest.fixture
def model(world, parts, tmp_path):
    return build_model(*parse_arguments(flags(world, parts, tmp_path / "out")))


def batch_of(processor, records, kinds):
    """The first records of these kinds."""
    dataset = VideoInstructionDataset(records, processor, 400)
    places = [next(i for i, record in enumerate(records) if record.kinds == kind) for kind in kinds]
    return TrainingCollator(processor.pad_token_id)([dataset[i] for i in places])


@pytest.mark.parametrize("kinds", [[["video"], ["image"], []], [["image"], ["image"]], [["video"]], [[]]])
def test_losses_and_gradients_are_those_of_plain_training(model, records, kinds):
    inner, processor = model
    batch = batch_of(processor, records, kinds)
    inner.train()
    plain = loss_and_gradients(inner, batch)
    encode_uniformly(inner)
    calls = Counter()
    modules = {"vision_tower": inner.model.vision_tower.encoder, **dict(inner.model.mm_projector.named_children())}
    for name, module in modules.items():
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    assert_same_learning(plain, loss_and_gradients(inner, batch))
    assert {name: n for name, n in calls.items() if name != "vision_tower"} == {
        "s1": 1,
        "sampler": 1,
        "s2": 1,
        "readout": 1,
    }
