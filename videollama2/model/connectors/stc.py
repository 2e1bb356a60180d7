"""Defines the spatial-temporal convolution connector and its ablations (paper, section 3 and table 1).

``s1`` (RegNet stage, per frame) -> ``sampler`` (3-d convolution or pooling over time and space) -> ``s2`` (RegNet
stage, per time slice) -> ``readout`` (two-layer MLP). Shapes: B clips, T frames, C channels, H and W grid sides.

The RegNet stage is the one timm builds for ``RegStage(depth, act=SiLU, norm=LayerNorm2d)``: bottleneck ratio 1,
depthwise 3x3 convolution, squeeze-excitation of a quarter of the block's *input* channels, norm epsilon 1e-5.
Weight names are timm's, since published checkpoints use them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from torch.utils.checkpoint import checkpoint

from videollama2.errors import ConfigError
from videollama2.model.connectors.base import Connector, Shown


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of ``x_BCHW``."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-5)

    # LayerNorm calls the argument "input"; here its name tells its shape.
    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        return super().forward(x_BHWC).permute(0, 3, 1, 2)


class ConvNorm(nn.Module):
    """Convolution without bias, channel norm, optional SiLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, groups: int = 1, act: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, groups=groups, bias=False)
        self.bn = ChannelNorm(out_channels)  # the published name, although this is not a batch norm
        self.act = act

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        x_BCHW = self.bn(self.conv(x_BCHW))
        return F.silu(x_BCHW) if self.act else x_BCHW


class SqueezeExcitation(nn.Module):
    """Scales channels by a gate computed from their spatial means."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        # Convolutions of size 1 on a 1 x 1 grid: the published weights have this form, so linear layers would not fit.
        gate = self.fc2(F.silu(self.fc1(x_BCHW.mean((2, 3), keepdim=True))))
        return x_BCHW * gate.sigmoid()


class RegNetBlock(nn.Module):
    """1x1, depthwise 3x3, squeeze-excitation, 1x1; SiLU follows the residual sum."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, out_channels, 1)
        self.conv2 = ConvNorm(out_channels, out_channels, 3, groups=out_channels)
        # As timm counts: a quarter of the channels that enter the block, though the gate acts on those that leave it.
        self.se = SqueezeExcitation(out_channels, round(in_channels * 0.25))
        self.conv3 = ConvNorm(out_channels, out_channels, 1, act=False)
        self.downsample = ConvNorm(in_channels, out_channels, 1, act=False) if in_channels != out_channels else None

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        shortcut = x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        return F.silu(self.conv3(self.se(self.conv2(self.conv1(x_BCHW)))) + shortcut)


class RegNetStage(nn.Sequential):
    """``depth`` blocks named ``b1``, ``b2``, ...; the first one changes the width."""

    def __init__(self, depth: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        for number in range(1, depth + 1):
            self.add_module(f"b{number}", RegNetBlock(in_channels if number == 1 else out_channels, out_channels))


class StcConnector(Connector):
    """``stc_connector``: 3-d convolution of kernel and stride 2, padded by 1 on every axis."""

    kernel = (2, 2, 2)
    padding = 1
    depth = 4

    def __init__(self, encoder_hidden_size: int, hidden_size: int) -> None:
        super().__init__()
        self.s1 = self._first_stage(encoder_hidden_size, hidden_size)
        self.sampler = self._make_sampler(hidden_size)
        self.s2 = RegNetStage(self.depth, hidden_size, hidden_size) if self.depth else nn.Identity()
        self.readout = nn.Sequential(
            nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size)
        )
        self.gradient_checkpointing = False

    def _first_stage(self, in_channels: int, out_channels: int) -> nn.Module:
        if self.depth:
            return RegNetStage(self.depth, in_channels, out_channels)
        # The published code lacks this change of width and crashes if the widths differ.
        return nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def _make_sampler(self, channels: int) -> nn.Module:
        convolution = nn.Conv3d(channels, channels, self.kernel, stride=self.kernel, padding=self.padding)
        return nn.Sequential(convolution, nn.SiLU())

    @classmethod
    def num_tokens(cls, num_frames: int, patches_per_side: int) -> int:
        return math.prod(cls.grid(num_frames, patches_per_side))

    @classmethod
    def grid(cls, num_frames: int, patches_per_side: int) -> tuple[int, int, int]:
        """See :meth:`Connector.grid`."""
        time, rows, columns = (
            cls._out_size(size, kernel)
            for size, kernel in zip((num_frames, patches_per_side, patches_per_side), cls.kernel, strict=True)
        )
        return time, rows, columns

    @classmethod
    def frames_of(cls, time_slice: int, num_frames: int) -> range:
        """See :meth:`Connector.frames_of`."""
        # The window of the first slice begins in the padding, so it may hold a single frame; likewise the last one.
        first = time_slice * cls.kernel[0] - cls.padding
        return range(max(first, 0), min(first + cls.kernel[0], num_frames))

    @classmethod
    def _out_size(cls, size: int, kernel: int) -> int:
        return (size + 2 * cls.padding - kernel) // kernel + 1

    def forward(self, features_BTND: torch.Tensor, shown: Sequence[Shown] | None = None) -> torch.Tensor:
        if shown is not None:
            return self._forward_together(features_BTND, shown)
        x_BCHW = self._stage(self.s1, _to_grid(rearrange(features_BTND, "b t n d -> (b t) n d")))
        return self._after_s1(rearrange(x_BCHW, "(b t) c h w -> b c t h w", b=len(features_BTND)))

    def forward_still(self, features_BND: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Compute the tokens of ``num_frames`` equal frames; only distinct time slices are computed."""
        x_BCHW = self._stage(self.s1, _to_grid(features_BND))
        # expand copies no memory: all frames of the short clip are one tensor.
        copies, order = self._distinct_slices(num_frames)
        x_BCTHW = x_BCHW.unsqueeze(2).expand(-1, -1, copies, -1, -1)
        return self._after_s1(x_BCTHW, order)

    def _forward_together(self, features_FND: torch.Tensor, shown: Sequence[Shown]) -> torch.Tensor:
        """Compute the tokens of media of any kinds and lengths with one call of each part.

        The sampler's stride equals its kernel size, so each time slice depends on its own window of frames, which
        does not overlap the others. The distinct windows of all media are concatenated into one long clip, sampled
        once, and the resulting slices are copied to every place in the media that has the same window.
        """
        windows, order = self._windows(shown)
        x_FCHW = self._stage(self.s1, _to_grid(features_FND))
        if self.padding:
            x_FCHW = torch.cat([x_FCHW, torch.zeros_like(x_FCHW[:1])])  # the empty frame that padding adds
        kernel = self.kernel[0]
        # The windows contain their padding frames, but the sampler also pads the long clip in time. So the padding at
        # the start of the first window is left out here, because the sampler adds it, and slices that consist of
        # nothing but the sampler's padding are cut off below.
        frames = torch.tensor([frame for window in windows for frame in window][self.padding % kernel :])
        x_1CTHW = rearrange(x_FCHW[frames.to(x_FCHW.device)], "t c h w -> 1 c t h w")
        x_WCHW = rearrange(self.sampler(x_1CTHW), "1 c w h v -> w c h v")
        x_WCHW = x_WCHW.narrow(0, self.padding // kernel, len(windows))
        tokens_WND = self.readout(rearrange(self._stage(self.s2, x_WCHW), "w c h v -> w (h v) c"))
        return rearrange(tokens_WND[torch.tensor(order, device=tokens_WND.device)], "t n d -> (t n) d")

    def _windows(self, shown: Sequence[Shown]) -> tuple[list[tuple[int, ...]], list[int]]:
        """Return the distinct windows as tuples of frame indices, and for each time slice the index of its window.

        Index ``nothing``, one past the last frame, is the empty frame of the padding.

        Raises:
            ConfigError: a medium is too short to fill a window.
        """
        kernel, nothing = self.kernel[0], sum(frames for frames, _ in shown)
        # A dictionary from window to its number: media that show the same frames, and equal slices of a still, are
        # computed once. All frames of a still have the index of its only one, by min(place, distinct - 1).
        windows: dict[tuple[int, ...], int] = {}
        order: list[int] = []
        first = 0
        for distinct, total in shown:
            count = self._out_size(total, kernel)
            self._check_frames(total)
            places = [range(t * kernel - self.padding, (t + 1) * kernel - self.padding) for t in range(count)]
            medium = [
                tuple(first + min(place, distinct - 1) if 0 <= place < total else nothing for place in window)
                for window in places
            ]
            order += [windows.setdefault(window, len(windows)) for window in medium]
            first += distinct
        return list(windows), order

    def _check_frames(self, frames: int) -> None:
        if self._out_size(frames, self.kernel[0]) < 1:
            raise ConfigError(f"{type(self).__name__} needs at least {self.kernel[0]} frames, got {frames}")

    def _distinct_slices(self, num_frames: int) -> tuple[int, list[int]]:
        """Return how many copies to feed the sampler, and for each output slice the computed slice that it equals.

        All frames of a still are equal, so an output slice depends only on how many of its frames are padding. With
        padding 1, the first slice contains some, the last slice may, depending on the number of frames, and all slices
        in between are equal.
        """
        # For example, 8 frames padded by 1 give the slices (-,0) (1,2) (3,4) (5,6) (7,-), and all but the first and the
        # last are equal: 4 copies give one of each.
        kernel, out_size = self.kernel[0], self._out_size(num_frames, self.kernel[0])
        # Use the fewest copies that leave the same padding at the end and at least one slice in between.
        copies = num_frames
        while copies > kernel and self._out_size(copies - kernel, kernel) >= (3 if self.padding else 1):
            copies -= kernel
        computed = self._out_size(copies, kernel)
        order = [min(t, 1) if t < out_size - 1 else computed - 1 for t in range(out_size)]
        return copies, [min(t, computed - 1) for t in order]

    def _after_s1(self, x_BCTHW: torch.Tensor, order: list[int] | None = None) -> torch.Tensor:
        self._check_frames(x_BCTHW.shape[2])
        x_BCTHW = self.sampler(x_BCTHW)
        x_BCHW = self._stage(self.s2, rearrange(x_BCTHW, "b c t h w -> (b t) c h w"))
        # Slice after slice, each row by row: the order in which the decoder reads them.
        tokens_BTND = self.readout(rearrange(x_BCHW, "(b t) c h w -> b t (h w) c", b=len(x_BCTHW)))
        if order is not None:
            tokens_BTND = tokens_BTND[:, order]
        return rearrange(tokens_BTND, "b t n d -> b (t n) d")

    def _stage(self, stage: nn.Module, x_BCHW: torch.Tensor) -> torch.Tensor:
        if self.gradient_checkpointing and self.training:
            return checkpoint(stage, x_BCHW, use_reentrant=False)
        return stage(x_BCHW)


class StcConnectorV35(StcConnector):
    """``stc_connector_v35`` (VideoLLaMA2.1): no padding."""

    padding = 0


class _AveragePool(nn.AvgPool3d):
    """Average pooling that sums bfloat16 and float16 in float32 on a CPU, for which torch has no such kernel."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if input.device.type == "cpu" and input.dtype in (torch.bfloat16, torch.float16):
            return super().forward(input.float()).to(input.dtype)
        return super().forward(input)


class StpConnector(StcConnector):
    """``stp_connector``: average pooling instead of the convolution."""

    padding = 0

    def _make_sampler(self, channels: int) -> nn.Module:
        return nn.Sequential(_AveragePool(self.kernel), nn.SiLU())


class SpatialConvConnector(StcConnector):
    """``spatial_conv``: convolution within frames, no RegNet stages. Padding 1 also adds two empty time slices."""

    kernel = (1, 2, 2)
    depth = 0


class SpatialPoolConnector(StpConnector):
    """``spatial_pool``: average pooling within frames, no RegNet stages."""

    kernel = (1, 2, 2)
    depth = 0


def _to_grid(features_BND: torch.Tensor) -> torch.Tensor:
    """Arrange the ``features_BND`` of a square grid as ``x_BCHW``.

    Raises:
        ConfigError: the number of patches is not a square number (a class token was kept, or the grid is not square).
    """
    N = features_BND.shape[1]
    side = math.isqrt(N)
    if side * side != N:
        raise ConfigError(
            f"this connector needs a square patch grid, got {N} features per frame; "
            f"with mm_vision_select_feature 'cls_patch' use linear, identity or mlpNx_gelu"
        )
    return rearrange(features_BND, "b (h w) d -> b d h w", h=side)
