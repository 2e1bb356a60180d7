"""Connectors: names and shapes at 7B size, token counts, the still-image shortcut, refusals."""

import json

import pytest
import torch

from videollama2.errors import ConfigError
from videollama2.model.connectors import CONNECTORS, build_connector, num_visual_tokens

NAMES = [*CONNECTORS, "mlp1x_gelu", "mlp2x_gelu", "mlp5x_gelu"]


def test_names_and_shapes_at_7b_size(golden):
    reference = json.loads((golden / "connector_state_dict_7b.json").read_text())
    assert len(reference) == 7
    for name, published in reference.items():
        with torch.device("meta"):
            connector = build_connector(name, 1024, 4096)
        ours = {key: list(tensor.shape) for key, tensor in connector.state_dict().items()}
        # The published spatial_* cannot run at these widths; ours add the projection that is missing there.
        added = {"s1.weight", "s1.bias"} if name.startswith("spatial") else set()
        assert set(ours) - set(published) == added
        assert {key: ours[key] for key in published} == published, name


def test_token_counts(golden):
    for row in json.loads((golden / "token_counts.json").read_text()):
        assert num_visual_tokens(row["connector"], row["frames"], row["patches_per_side"]) == row["tokens"], row


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frames", [2, 3, 4, 5, 8, 9, 16])
def test_count_is_what_comes_out_and_a_still_image_equals_equal_frames(name, frames):
    torch.manual_seed(0)
    width = 12 if name == "identity" else 8
    connector = build_connector(name, width, 12).double()
    features = torch.randn(2, 16, width, dtype=torch.double, requires_grad=True)
    repeated = connector(features.unsqueeze(1).expand(-1, frames, -1, -1))
    still = connector.forward_still(features, frames)
    assert still.shape == (2, num_visual_tokens(name, frames, 4), 12)
    torch.testing.assert_close(still, repeated, rtol=0, atol=1e-12)
    weights = torch.randn_like(still)
    wanted = [features, *connector.parameters()]
    gradients = [torch.autograd.grad((out * weights).sum(), wanted) for out in (still, repeated)]
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_on_a_cpu_is_float32_rounded(name, dtype):
    torch.manual_seed(0)
    connector = build_connector(name, 32, 32).eval()
    features = torch.randn(1, 4, 36, 32)
    exact = connector(features)
    half = connector.to(dtype)(features.to(dtype))
    assert half.dtype == dtype
    assert (half.float() - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("name", ["stc_connector", "stc_connector_v35", "stp_connector"])
def test_still_image_computes_distinct_slices_only(name):
    """A 16-frame still costs no more than four frames after, and one frame before the sampler."""
    connector = build_connector(name, 8, 8)
    seen = []
    connector.s1.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[0]))
    connector.s2.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[0]))
    connector.forward_still(torch.randn(1, 16, 8), 16)
    assert seen[0] == 1
    assert seen[1] <= 3


def test_regnet_stage_equals_timm():
    timm = pytest.importorskip("timm", reason="timm is no dependency; it pulls torchvision")
    from timm.layers import LayerNorm2d
    from timm.models.regnet import RegStage

    from videollama2.model.connectors.stc import RegNetStage

    assert timm
    theirs = RegStage(4, 8, 12, stride=1, dilation=1, act_layer=torch.nn.SiLU, norm_layer=LayerNorm2d)
    ours = RegNetStage(4, 8, 12)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("name", ["stc", "mlp0x_gelu", "mlpx_gelu", "mlp2x_relu", ""])
def test_unknown_names_are_refused(name):
    with pytest.raises(ConfigError, match="mm_projector_type"):
        build_connector(name, 8, 8)


def test_impossible_sizes_are_refused():
    with pytest.raises(ConfigError, match="equal widths"):
        build_connector("identity", 8, 12)
    with pytest.raises(ConfigError, match="square patch grid"):
        build_connector("stc_connector", 8, 8)(torch.randn(1, 2, 15, 8))
    with pytest.raises(ConfigError, match="no visual token"):
        num_visual_tokens("stc_connector_v35", 1, 24)
    with pytest.raises(ConfigError, match="at least 2 frames"):
        build_connector("stc_connector_v35", 8, 8)(torch.randn(1, 1, 16, 8))
