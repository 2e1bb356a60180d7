"""Pretrains the tiny model's vision encoder, since real models start from a pretrained CLIP.

CLIP learns from millions of captions. The built-in world has none, but it knows what it drew. The encoder is therefore
trained on still scenes: from the patches of each quadrant, one linear layer must be able to read the shape and colour
of the object there (or that there is none) and the place of its centre.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

from videollama2.commands import hides_bar
from videollama2.media.kinds import IMAGE
from videollama2.media.pixels import PixelTransform
from videollama2.model.encoders import encode_frames
from videollama2.shapes.scene import COLOURS, SHAPES, SIZE, Scene, make_scene, render_scene

SCENE_SEED = 1_000_003
"""Seed of the scenes of pretraining; no data set uses it."""

STEPS, BATCH, LEARNING_RATE, WARMUP = 2000, 64, 2e-3, 100

QUADRANT_COUNT = 4
_NAMES = {"shape": SHAPES, "colour": tuple(COLOURS)}


class QuadrantProbe(nn.Module):
    """Linear layers that read shape, colour (both with a last class 'nothing') and centre from a quadrant's patches."""

    def __init__(self, width: int, patches_per_side: int) -> None:
        super().__init__()
        self.side = patches_per_side
        features = width * patches_per_side**2 // QUADRANT_COUNT
        self.shape = nn.Linear(features, len(SHAPES) + 1)
        self.colour = nn.Linear(features, len(COLOURS) + 1)
        self.centre = nn.Linear(features, 2)

    def forward(self, features_BND: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map patch features (B, patches, D) to readings (B, 4 quadrants, values)."""
        # The patches are rows of a grid: two halves of rows, of which each has two halves of columns.
        quadrants = rearrange(
            features_BND, "b (row h column w) d -> b (row column) (h w d)", row=2, column=2, h=self.side // 2
        )
        return {name: getattr(self, name)(quadrants) for name in ("shape", "colour", "centre")}


Truth = dict[str, torch.Tensor]


def quadrant_truth(scene: Scene, frame: int) -> Truth:
    """Return what one frame shows in each of the four quadrants.

    ``shape`` and ``colour`` (4,) are class indices, the last of which means 'nothing'. ``centre`` (4, 2) is the x and y
    of the object's centre, from -1 to 1 across its quadrant, and NaN if the quadrant is empty.
    """
    shape = torch.full((QUADRANT_COUNT,), len(SHAPES))
    colour = torch.full((QUADRANT_COUNT,), len(COLOURS))
    centre = torch.full((QUADRANT_COUNT, 2), torch.nan)
    for item in scene.objects:
        state = item.state(frame)
        if state is not None:
            shape[item.quadrant] = _NAMES["shape"].index(state.shape)
            colour[item.quadrant] = _NAMES["colour"].index(state.colour)
            middle = [SIZE // 4 * (1 + 2 * place) for place in (item.quadrant % 2, item.quadrant // 2)]
            centre[item.quadrant] = 4 * (torch.tensor([state.x, state.y]) - torch.tensor(middle)) / SIZE
    return {"shape": shape, "colour": colour, "centre": centre}


def stack(truths: list[Truth]) -> Truth:
    """Stack the tensors of several truths along a new first axis."""
    return {name: torch.stack([truth[name] for truth in truths]) for name in truths[0]}


def draw_batch(first: int, count: int) -> tuple[np.ndarray, Truth]:
    """Draw ``count`` (B) still scenes from number ``first`` on.

    Returns the frames (B, 128, 128, 3) and their :func:`quadrant_truth` (B, 4, ...).
    """
    scenes = [make_scene(SCENE_SEED, first + row, IMAGE) for row in range(count)]
    frames = np.concatenate([render_scene(scene) for scene in scenes])
    return frames, stack([quadrant_truth(scene, 0) for scene in scenes])


def probe_loss(readings: dict[str, torch.Tensor], truth: Truth) -> torch.Tensor:
    """Return the cross entropies of shape and colour plus the mean absolute error of the centres that exist."""
    there = ~truth["centre"].isnan()
    classes = sum(F.cross_entropy(readings[name].flatten(0, -2), truth[name].flatten()) for name in _NAMES)
    return classes + F.l1_loss(readings["centre"][there], truth["centre"][there])


def pretrain_encoder(
    encoder: PreTrainedModel, transform: PixelTransform, select_layer: int, steps: int = STEPS, progress: bool = True
) -> dict[str, float]:
    """Train ``encoder`` in place.

    Args:
        encoder: CLIP vision model with an even number of patches per side.
        transform: preprocessing of the encoder.
        select_layer: index of the hidden state that the connector will read; the layers above it stay untrained.

    Returns:
        The accuracies of shape and colour, and the mean error of the centre in halves of a quadrant, each averaged over
        the last 20 batches.
    """
    config = encoder.config
    probe = QuadrantProbe(config.hidden_size, config.image_size // config.patch_size)

    def read(pixels_BCHW: torch.Tensor) -> dict[str, torch.Tensor]:
        return probe(encode_frames(encoder, pixels_BCHW, select_layer))

    batches = DrawnBatches(draw_batch, transform, BATCH, steps)
    return fit([*encoder.parameters(), *probe.parameters()], batches, read, "encoder", progress)


class WholeBatches(Dataset):
    """A data set whose item ``step`` is a whole batch: the inputs of a part, and what they show."""

    def __len__(self) -> int:
        """Return the number of batches, which is that of the steps of training."""
        raise NotImplementedError

    def __getitem__(self, step: int) -> tuple[torch.Tensor, Truth]:
        raise NotImplementedError


@dataclass(frozen=True)
class DrawnBatches(WholeBatches):
    """A data set whose item ``step`` is a whole batch of ``size`` scenes: their pixels and what they show.

    Args:
        draw: function from the first scene's number and the number of scenes to frames and truth (:func:`draw_batch`).
        transform: the preprocessing that turns the frames into pixels (B, C, H, W).
        size: number of scenes in a batch.
        steps: number of batches.
    """

    draw: Callable[[int, int], tuple[np.ndarray, Truth]]
    transform: PixelTransform
    size: int
    steps: int

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[torch.Tensor, Truth]:
        frames, truth = self.draw(step * self.size, self.size)
        return self.transform(frames, None), truth


def fit(
    parameters: list[nn.Parameter],
    batches: WholeBatches,
    read: Callable[[torch.Tensor], dict[str, torch.Tensor]],
    name: str,
    progress: bool,
    loss_of: Callable[[dict[str, torch.Tensor], Truth], torch.Tensor] = probe_loss,
    measure_of: Callable[[dict[str, torch.Tensor], Truth], dict[str, float]] | None = None,
) -> dict[str, float]:
    """Minimise ``loss_of(read(inputs), truth)`` with one step for each batch (inputs, truth).

    Returns the means of ``measure_of(readings, truth)`` (by default :func:`measure`) over the last 20 batches.
    """
    measure_of = measure_of or measure
    steps = len(cast("Sized", batches))
    # Drawing a batch takes as long as learning from it, so a worker process draws ahead. Without a generator of its own
    # the loader would take a seed from the global one, although drawing uses no random numbers.
    drawn = DataLoader(batches, batch_size=None, num_workers=1, generator=torch.Generator())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, min(WARMUP, steps // 4), steps)
    history: list[dict[str, float]] = []
    bar = tqdm(drawn, desc=name, disable=hides_bar(progress), mininterval=2.0)
    for step, (inputs, truth) in enumerate(bar):
        readings = read(inputs)
        loss = loss_of(readings, truth)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step >= steps - 20 or step % 50 == 0:
            history.append(measure_of(readings, truth))
            bar.set_postfix({key: f"{value:.3f}" for key, value in history[-1].items()})
    last = history[-20:]
    return {key: sum(row[key] for row in last) / len(last) for key in last[0]}


@torch.no_grad()
def measure(readings: dict[str, torch.Tensor], truth: Truth) -> dict[str, float]:
    """Return the accuracies of shape and colour (of visible objects) and the mean absolute error of the centre.

    For readings with ``words`` the result also holds their intersection over union: the number of words read and true,
    divided by the number of words read or true.
    """
    there = ~truth["centre"].isnan()
    result = {name: (readings[name].argmax(-1) == truth[name])[there[..., 0]].float().mean().item() for name in _NAMES}
    result["centre"] = (readings["centre"] - truth["centre"])[there].abs().mean().item()
    if "words" in truth:
        told, true = readings["words"] > 0, truth["words"] > 0
        result["words"] = ((told & true).sum() / (told | true).sum()).item()
    return result
