"""Pretrains the tiny model's connector, so that visual tokens resemble word embeddings.

Connectors of real models are first trained on hundreds of thousands of captions, until a visual token lies near the
embeddings of the words for what it shows. The built-in world knows what each token shows, so this module trains for
that directly. A token must point towards the embeddings of its words (colour, shape, place, direction and pace of
motion, appearing, vanishing), and one linear layer must be able to read from it what is in each of its two frames and
where.

A decoder that starts with such tokens learns to read them in minutes. With random tokens it had not begun to after an
hour. With tokens that hold the same facts in arbitrary directions it learnt colours, but neither shapes nor motions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from transformers import PreTrainedModel

from videollama2.media.frames import uniform_indices
from videollama2.media.kinds import VIDEO
from videollama2.media.pixels import PixelTransform
from videollama2.model.connectors.base import Connector
from videollama2.model.connectors.stc import RegNetBlock, StcConnector
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
from videollama2.shapes.scene import COLOURS, FRAMES, QUADRANTS, SHAPES, ObjectState, Scene, make_scene, render_scene

STEPS, BATCH = 900, 32

TOKEN_RMS = 0.1
"""Root mean square of the entries of a finished token.

It is that of the sum of four word embeddings, whose entries have a standard deviation of 0.05.
"""

PLACES = ("top", "bottom", "left", "right")
PACES = ("slowly", "fast")
EVENTS = ("appears", "disappears")
# 'left' and 'right' name both places and directions, but as different tokens, because the tokenizer makes a leading
# space part of the word. As a direction the word begins an answer, without a space; in a place ('top left') it has one.
WORD_FORMS = (
    *((word, f" {word}") for word in (*COLOURS, *SHAPES, *PACES, *EVENTS)),
    *((f" {word}",) for word in PLACES),
    *((word,) for word in DIRECTIONS),
)
"""The W words that a token may point to, each with its written forms; a word's vector is the mean over its forms."""
_WORD_OF = {forms[0]: number for number, forms in enumerate(WORD_FORMS)}

_MOVING, _FAST = 2.0, 5.0
"""Motion between the two frames of a token, in pixels: below ``_MOVING`` an object rests, above ``_FAST`` it is fast.

Slow objects move by 3.25 pixels, fast ones by 6.5 or more.
"""


def word_vectors(
    tokenizer: Any, embeddings_VD: torch.Tensor, words: Sequence[tuple[str, ...]] = WORD_FORMS
) -> torch.Tensor:
    """Return the unit vectors (W, D) of words in their written forms, made from a decoder's embeddings (V, D)."""
    vectors = [
        torch.stack([embeddings_VD[tokenizer(form).input_ids].mean(0) for form in forms]).mean(0) for forms in words
    ]
    return F.normalize(torch.stack(vectors).detach().float(), dim=-1)


def word_logits(
    tokens_ND: torch.Tensor, words_WD: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor
) -> torch.Tensor:
    """Return the cosines between tokens (..., D) and unit vectors of words, times a scale, plus an offset."""
    return scale * F.normalize(tokens_ND, dim=-1) @ words_WD.T + offset


def token_words(scene: Scene, frames: tuple[int, int]) -> torch.Tensor:
    """Return which words are true of each quadrant in a pair of frames: a tensor (4, W) of 0 and 1."""
    words = torch.zeros(QUADRANT_COUNT, len(WORD_FORMS))
    for item in scene.objects:
        before, after = item.state(frames[0]), item.state(frames[1])
        said = [word for state in (before, after) if state is not None for word in (state.colour, state.shape)]
        if said:
            said += [f" {word}" for word in QUADRANTS[item.quadrant].split()]
        said += _happening(before, after)
        words[item.quadrant, [_WORD_OF[word] for word in said]] = 1
    return words


def _happening(before: ObjectState | None, after: ObjectState | None) -> list[str]:
    if before is None or after is None:
        return [] if before is after else ["appears" if before is None else "disappears"]
    step = {"x": after.x - before.x, "y": after.y - before.y}
    axis = max(step, key=lambda name: abs(step[name]))
    if abs(step[axis]) < _MOVING:
        return []
    back, forth = ("left", "right") if axis == "x" else ("up", "down")
    return [forth if step[axis] > 0 else back, "fast" if abs(step[axis]) > _FAST else "slowly"]


def draw_clips(first: int, count: int, num_frames: int) -> tuple[np.ndarray, Truth]:
    """Draw ``count`` (B) clips of :data:`SCENE_SEED` and return their sampled frames and what these show.

    The frames have shape (B * T, 128, 128, 3), where T is ``num_frames``. The truth holds :func:`quadrant_truth` of
    every frame, with shapes (B, T, 4, ...), and ``words`` (B, T/2, 4, W).
    """
    indices = uniform_indices(FRAMES, num_frames)
    pairs = list(zip(indices[::2], indices[1::2], strict=True))
    scenes = [make_scene(SCENE_SEED, first + row, VIDEO) for row in range(count)]
    frames = np.concatenate([render_scene(scene, indices) for scene in scenes])
    truth = stack([stack([quadrant_truth(scene, i) for i in indices]) for scene in scenes])
    truth["words"] = torch.stack([torch.stack([token_words(scene, pair) for pair in pairs]) for scene in scenes])
    return frames, truth


class TokenProbe(nn.Module):
    """Read facts from a visual token, which represents one quadrant in two frames.

    Linear layers read ``shape``, ``colour`` and ``centre`` for each of the two frames. ``words`` are the cosines
    between the token and the words' vectors, multiplied by a learnt scale and shifted by a learnt offset.
    """

    def __init__(self, width: int, words_WD: torch.Tensor) -> None:
        super().__init__()
        self.shape = nn.Linear(width, 2 * (len(SHAPES) + 1))
        self.colour = nn.Linear(width, 2 * (len(COLOURS) + 1))
        self.centre = nn.Linear(width, 2 * 2)
        self.scale = nn.Parameter(torch.tensor(20.0))
        self.offset = nn.Parameter(torch.tensor(-4.0))
        self.vectors_WD: torch.Tensor
        self.register_buffer("vectors_WD", words_WD)

    def forward(self, tokens_BND: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map tokens (B, T/2 * 4, D) to readings (B, T, 4 quadrants, values), and to ``words`` (B, T/2, 4, W)."""
        slices = rearrange(tokens_BND, "b (t q) d -> b t q d", q=QUADRANT_COUNT)
        readings = {"words": word_logits(slices, self.vectors_WD, self.scale, self.offset)}
        for name in ("shape", "colour", "centre"):
            # A token reads both frames of its time slice.
            readings[name] = rearrange(getattr(self, name)(slices), "b t q (f v) -> b (t f) q v", f=2)
        return readings


def pretrain_connector(
    encoder: PreTrainedModel,
    connector: Connector,
    words_WD: torch.Tensor,
    transform: PixelTransform,
    select_layer: int,
    num_frames: int,
    steps: int = STEPS,
    progress: bool = True,
) -> dict[str, float]:
    """Train ``connector`` in place; the encoder is not changed.

    The connector must make one token per quadrant and pair of frames, as ``stc_connector_v35`` does on 4 x 4 patches.
    Its RegNet blocks start as identities (the scale of each block's last norm is zero), because on such a small grid
    eight random blocks mix the quadrants beyond recognition.

    Args:
        words_WD: the vectors that :func:`word_vectors` returns.

    Returns:
        The measurements of :func:`.pretrain_encoder.measure`, with ``words``, averaged over the last 20 batches.
    """
    for block in connector.modules():
        if isinstance(block, RegNetBlock):
            nn.init.zeros_(block.conv3.bn.weight)
    probe = TokenProbe(_last_layer(connector).out_features, words_WD)

    def read(pixels_FCHW: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            features = encode_frames(encoder, pixels_FCHW, select_layer)
        return probe(connector(features.unflatten(0, (-1, num_frames))))

    parameters = [*connector.parameters(), *probe.parameters()]
    batches = DrawnBatches(partial(draw_clips, num_frames=num_frames), transform, BATCH, steps)
    reached = fit(parameters, batches, read, "connector", progress, token_loss)
    _scale_tokens(encoder, connector, transform, select_layer, num_frames)
    return reached


def _last_layer(connector: Connector) -> nn.Linear:
    assert isinstance(connector, StcConnector)
    layer = connector.readout[-1]
    assert isinstance(layer, nn.Linear)
    return layer


@torch.no_grad()
def _scale_tokens(
    encoder: PreTrainedModel, connector: Connector, transform: PixelTransform, select_layer: int, num_frames: int
) -> None:
    """Scale the connector's last layer in place, so that its tokens have the root mean square :data:`TOKEN_RMS`.

    In the residual stream of the decoder, the outputs of its layers would be negligible beside much longer tokens.
    """
    frames, _ = draw_clips(0, BATCH, num_frames)
    features = encode_frames(encoder, transform(frames, None), select_layer)
    tokens = connector(features.unflatten(0, (BATCH, num_frames)))
    last = _last_layer(connector)
    for tensor in (last.weight, last.bias):
        tensor *= TOKEN_RMS / tokens.square().mean().sqrt()


def token_loss(readings: dict[str, torch.Tensor], truth: Truth) -> torch.Tensor:
    """Return :func:`probe_loss` plus four times the binary cross entropy of the words."""
    return probe_loss(readings, truth) + 4 * F.binary_cross_entropy_with_logits(readings["words"], truth["words"])
