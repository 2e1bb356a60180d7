"""Pretraining of the tiny model's connector: visual tokens that read like words.

Connectors of real models are first trained on captions by the hundred thousand, until visual tokens lie where the
language model keeps the words for what they show. The built-in world knows what each token shows, so here this is done
directly: a token must point towards the embeddings of its words (colour, shape, place, direction and pace of motion,
appearing, vanishing), and must tell, through one linear layer, what is in either of its two frames and where.

A decoder that starts beside such tokens learns to read them in minutes. Beside random ones it had not begun to after an
hour, and beside tokens that hold the same facts in directions of their own it learnt colours, but neither shapes nor
motions.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from videollama2.media.frames import uniform_indices
from videollama2.media.pixels import PixelTransform
from videollama2.model.encoders import encode_frames
from videollama2.shapes.pretrain_encoder import (
    QUADRANT_COUNT,
    SCENE_SEED,
    DrawnBatches,
    Truth,
    fit,
    probe_loss,
    quadrant_truth,
    stack,
)
from videollama2.shapes.questions import DIRECTIONS
from videollama2.shapes.scene import COLOURS, FRAMES, QUADRANTS, SHAPES, Scene, State, make_scene, render

STEPS, BATCH = 900, 32

TOKEN_RMS = 0.1
"""Root mean square of the finished tokens' entries: about that of the sum of four words (entries of 0.05)."""

PLACES = ("top", "bottom", "left", "right")
PACES = ("slowly", "fast")
EVENTS = ("appears", "disappears")
# Where something is and where it goes share the words 'left' and 'right'. In answers a direction is the first word,
# and the second half of a place follows a space, which the tokenizer writes as part of the word.
WORD_FORMS = (
    *((word, f" {word}") for word in (*COLOURS, *SHAPES, *PACES, *EVENTS)),
    *((f" {word}",) for word in PLACES),
    *((word,) for word in DIRECTIONS),
)
"""The ways of writing each word that a token may point to; a word's vector is the mean over them."""
_WORD_OF = {forms[0]: number for number, forms in enumerate(WORD_FORMS)}

_MOVING, _FAST = 2.0, 5.0
"""Pixels between the two frames of a token: less is no motion, more is fast. Slow objects go 3.25, fast ones 6.5 up."""


def word_vectors(tokenizer: Any, embeddings_VD: torch.Tensor) -> torch.Tensor:
    """Directions (unit length) of :data:`WORD_FORMS` among a decoder's word embeddings: (W, D)."""
    vectors = [
        torch.stack([embeddings_VD[tokenizer(form).input_ids].mean(0) for form in forms]).mean(0)
        for forms in WORD_FORMS
    ]
    return F.normalize(torch.stack(vectors).detach().float(), dim=-1)


def token_words(scene: Scene, frames: tuple[int, int]) -> torch.Tensor:
    """Which words are true of each quadrant in a pair of frames: 0 or 1, (4, W)."""
    words = torch.zeros(QUADRANT_COUNT, len(WORD_FORMS))
    for item in scene.objects:
        before, after = item.state(frames[0]), item.state(frames[1])
        said = [word for state in (before, after) if state is not None for word in (state.colour, state.shape)]
        if said:
            said += [f" {word}" for word in QUADRANTS[item.quadrant].split()]
        said += _happening(before, after)
        words[item.quadrant, [_WORD_OF[word] for word in said]] = 1
    return words


def _happening(before: State | None, after: State | None) -> list[str]:
    if before is None or after is None:
        return [] if before is after else ["appears" if before is None else "disappears"]
    step = {"x": after.x - before.x, "y": after.y - before.y}
    axis = max(step, key=lambda name: abs(step[name]))
    if abs(step[axis]) < _MOVING:
        return []
    back, forth = ("left", "right") if axis == "x" else ("up", "down")
    return [forth if step[axis] > 0 else back, "fast" if abs(step[axis]) > _FAST else "slowly"]


def draw_clips(first: int, count: int, num_frames: int) -> tuple[np.ndarray, Truth]:
    """Clips of :data:`SCENE_SEED`: sampled frames (B * T, 128, 128, 3), and what they show.

    The truth holds :func:`quadrant_truth` of every frame (B, T, 4, ...) and ``words`` (B, T/2, 4, W).
    """
    indices = uniform_indices(FRAMES, num_frames)
    pairs = list(zip(indices[::2], indices[1::2], strict=True))
    scenes = [make_scene(SCENE_SEED, first + row, "video") for row in range(count)]
    frames = np.concatenate([render(scene)[indices] for scene in scenes])
    truth = stack([stack([quadrant_truth(scene, i) for i in indices]) for scene in scenes])
    truth["words"] = torch.stack([torch.stack([token_words(scene, pair) for pair in pairs]) for scene in scenes])
    return frames, truth


class TokenProbe(nn.Module):
    """Readings of one visual token, which stands for one quadrant in two frames.

    ``shape``, ``colour`` and ``centre`` come through linear layers, for each of the frames. ``words`` are the cosines
    between the token and the words' vectors, on a scale and with an offset that are learnt.
    """

    def __init__(self, width: int, words_WD: torch.Tensor) -> None:
        super().__init__()
        self.shape = nn.Linear(width, 2 * (len(SHAPES) + 1))
        self.colour = nn.Linear(width, 2 * (len(COLOURS) + 1))
        self.centre = nn.Linear(width, 2 * 2)
        self.scale = nn.Parameter(torch.tensor(20.0))
        self.offset = nn.Parameter(torch.tensor(-4.0))
        self.register_buffer("vectors_WD", words_WD)

    def forward(self, tokens_BND: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, T/2 * 4, D) -> values per (B, T, 4 quadrants), and ``words`` per (B, T/2, 4)."""
        slices = tokens_BND.unflatten(1, (-1, QUADRANT_COUNT))
        readings = {"words": self.scale * F.normalize(slices, dim=-1) @ self.vectors_WD.T + self.offset}
        for name in ("shape", "colour", "centre"):
            pairs = getattr(self, name)(slices).unflatten(-1, (2, -1))  # (B, T/2, 4, 2 frames, values)
            readings[name] = pairs.transpose(2, 3).flatten(1, 2)
        return readings


def pretrain_connector(
    encoder: nn.Module,
    connector: nn.Module,
    words_WD: torch.Tensor,
    transform: PixelTransform,
    select_layer: int,
    num_frames: int,
    steps: int = STEPS,
    progress: bool = True,
) -> dict[str, float]:
    """Train ``connector`` in place; the encoder stays as it is.

    The connector must make one token per quadrant and pair of frames (``stc_connector_v35`` on 4 x 4 patches). Its
    RegNet blocks start as identities (zero scale of each block's last norm): on a grid this small, eight random blocks
    mix all quadrants beyond recognition.

    Args:
        words_WD: of :func:`word_vectors`.

    Returns:
        as :func:`pretrain_encoder`, and ``words``: those told and true among those told or true.
    """
    for block in (*connector.s1, *connector.s2):
        nn.init.zeros_(block.conv3.bn.weight)
    probe = TokenProbe(connector.readout[-1].out_features, words_WD)

    def read(pixels_FCHW: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            features = encode_frames(encoder, pixels_FCHW, select_layer)
        return probe(connector(features.unflatten(0, (-1, num_frames))))

    parameters = [*connector.parameters(), *probe.parameters()]
    batches = DrawnBatches(partial(draw_clips, num_frames=num_frames), transform, BATCH, steps)
    reached = fit(parameters, batches, read, "connector", progress, token_loss)
    _scale_tokens(encoder, connector, transform, select_layer, num_frames)
    return reached


@torch.no_grad()
def _scale_tokens(
    encoder: nn.Module, connector: nn.Module, transform: PixelTransform, select_layer: int, num_frames: int
) -> None:
    """Make the tokens as long as words: what the decoder's layers add to far longer ones would not count."""
    frames, _ = draw_clips(0, BATCH, num_frames)
    features = encode_frames(encoder, transform(frames, None), select_layer)
    tokens = connector(features.unflatten(0, (BATCH, num_frames)))
    last = connector.readout[-1]
    for tensor in (last.weight, last.bias):
        tensor *= TOKEN_RMS / tokens.square().mean().sqrt()


def token_loss(readings: dict[str, torch.Tensor], truth: Truth) -> torch.Tensor:
    """:func:`probe_loss` + four times the cross entropy of each word being there or not."""
    return probe_loss(readings, truth) + 4 * F.binary_cross_entropy_with_logits(readings["words"], truth["words"])
