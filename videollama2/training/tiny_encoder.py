"""Pretraining of the tiny model's vision encoder on still scenes, as real models start from a pretrained CLIP.

The built-in world has no captions by the million to contrast, but it knows what it drew: the patches of each quadrant
must tell, through one linear layer, the shape and colour there (or that there is nothing) and where its centre lies.
A language model that starts beside such features learns to read them in minutes; beside random ones it takes hours.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from videollama2.data.moving_shapes_scene import COLOURS, SHAPES, SIZE, make_scene, render
from videollama2.media.pixels import PixelTransform
from videollama2.model.vision import encode_frames

SCENE_SEED = 1_000_003
"""Seed of the scenes drawn here; no data set uses it."""

STEPS, BATCH, LEARNING_RATE, WARMUP = 2000, 64, 2e-3, 100

_QUADRANTS = 4
_NAMES = {"shape": SHAPES, "colour": tuple(COLOURS)}


class QuadrantProbe(nn.Module):
    """Linear readings of each quadrant's patches: shape, colour (the last class is 'nothing'), centre."""

    def __init__(self, width: int, patches_per_side: int) -> None:
        super().__init__()
        self.side = patches_per_side
        features = width * patches_per_side**2 // _QUADRANTS
        self.shape = nn.Linear(features, len(SHAPES) + 1)
        self.colour = nn.Linear(features, len(COLOURS) + 1)
        self.centre = nn.Linear(features, 2)

    def forward(self, features_BND: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, patches, D) -> values per (B, 4 quadrants)."""
        B, _, D = features_BND.shape
        half = self.side // 2
        quadrants = features_BND.reshape(B, 2, half, 2, half, D).transpose(2, 3).reshape(B, _QUADRANTS, -1)
        return {name: getattr(self, name)(quadrants) for name in ("shape", "colour", "centre")}


def draw_batch(first: int, count: int) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    """Scenes ``first`` to ``first + count`` as frames (B, 128, 128, 3), and what is in their quadrants.

    The centre is given from -1 to 1 about the quadrant's own; where there is nothing it is NaN.
    """
    frames = np.empty((count, SIZE, SIZE, 3), np.uint8)
    shape = torch.full((count, _QUADRANTS), len(SHAPES))
    colour = torch.full((count, _QUADRANTS), len(COLOURS))
    centre = torch.full((count, _QUADRANTS, 2), torch.nan)
    for row in range(count):
        scene = make_scene(SCENE_SEED, first + row, "image")
        frames[row] = render(scene)[0]
        for item in scene.objects:
            state = item.state(0)
            shape[row, item.quadrant] = _NAMES["shape"].index(state.shape)
            colour[row, item.quadrant] = _NAMES["colour"].index(state.colour)
            middle = SIZE // 4 * (1 + 2 * (item.quadrant % 2)), SIZE // 4 * (1 + 2 * (item.quadrant // 2))
            centre[row, item.quadrant] = torch.tensor(
                [4 * (state.x - middle[0]) / SIZE, 4 * (state.y - middle[1]) / SIZE]
            )
    return frames, {"shape": shape, "colour": colour, "centre": centre}


def probe_loss(readings: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross entropies of shape and colour + absolute error of the centre where there is something."""
    there = ~truth["centre"].isnan()
    classes = sum(F.cross_entropy(readings[name].flatten(0, 1), truth[name].flatten()) for name in _NAMES)
    return classes + F.l1_loss(readings["centre"][there], truth["centre"][there])


def pretrain_encoder(
    encoder: nn.Module, transform: PixelTransform, select_layer: int, steps: int = STEPS, progress: bool = True
) -> dict[str, float]:
    """Train ``encoder`` in place.

    Args:
        encoder: CLIP vision model whose patches divide into quadrants.
        transform: its preprocessing.
        select_layer: hidden state that the connector will read; layers above it stay untrained.

    Returns:
        accuracies of shape and colour and the mean error of the centre (in quadrant halves) over the last 20 batches.
    """
    config = encoder.config
    probe = QuadrantProbe(config.hidden_size, config.image_size // config.patch_size)
    parameters = [*encoder.parameters(), *probe.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = get_cosine_schedule_with_warmup(optimizer, min(WARMUP, steps), steps)
    history: list[dict[str, float]] = []
    bar = tqdm(range(steps), desc="encoder", disable=not progress, mininterval=2.0)
    for step in bar:
        frames, truth = draw_batch(step * BATCH, BATCH)
        pixels = transform(frames, None)
        readings = probe(encode_frames(encoder, pixels, select_layer))
        loss = probe_loss(readings, truth)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step >= steps - 20 or step % 50 == 0:
            history.append(_measure(readings, truth))
            bar.set_postfix({name: f"{value:.3f}" for name, value in history[-1].items()})
    last = history[-20:]
    return {name: sum(row[name] for row in last) / len(last) for name in last[0]}


@torch.no_grad()
def _measure(readings: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> dict[str, float]:
    there = ~truth["centre"].isnan()
    result = {
        name: (readings[name].argmax(-1) == truth[name])[there[..., 0]].float().mean().item() for name in _NAMES
    }
    result["centre"] = (readings["centre"] - truth["centre"])[there].abs().mean().item()
    return result
