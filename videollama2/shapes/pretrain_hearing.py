"""Pretrains the tiny model's audio encoder and audio projector, as :mod:`.pretrain_connector` does for sight.

Real models start from a BEATs that was trained on hundreds of hours of sound. The built-in world has none, but it
knows what each moment of a soundtrack holds. Encoder and projector are therefore trained together on soundtracks: the
token of a moment must point towards the decoder's embeddings of the words for what is heard then (which tone, which
shape has that tone, a hit and how many there are, a chime, early or late, first).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from videollama2.audio_config import AudioConfig
from videollama2.media.filter_bank import log_filter_bank
from videollama2.model.encoders.beats import BeatsModel
from videollama2.shapes.pretrain_connector import TOKEN_RMS, word_logits
from videollama2.shapes.pretrain_encoder import SCENE_SEED, Truth, WholeBatches, fit
from videollama2.shapes.questions import NUMBERS
from videollama2.shapes.scene import SHAPES, make_scene
from videollama2.shapes.sounds import CHIME, HIT, SECONDS, SHAPE_TONES, TONES, Soundtrack, add_sound, wave

STEPS, BATCH = 500, 48

PROJECTOR = "mlp2x_gelu"

SOUND_FORMS = (
    *((word, f" {word}") for word in (*TONES, *SHAPES, *NUMBERS)),
    *((f" {word}",) for word in (HIT, CHIME, "first", "early", "late")),
)
"""The W words that a token of sound may point to, each with its written forms."""
_WORD_OF = {forms[-1].strip(): number for number, forms in enumerate(SOUND_FORMS)}
_SHAPE_OF = {tone: shape for shape, tone in SHAPE_TONES.items()}

_LEAST_OVERLAP = 0.05
"""Seconds of a sound that must fall into a token's time for the token to tell it."""


def audio_config() -> AudioConfig:
    """Return the shape of the tiny encoder: a whole clip of 2 s is one window, 12 tokens of 0.16 s each."""
    return AudioConfig(
        input_patch_size=32,
        embed_dim=96,
        encoder_layers=3,
        encoder_embed_dim=96,
        encoder_ffn_embed_dim=384,
        encoder_attention_heads=4,
        encoder_layerdrop=0.0,
        layer_wise_gradient_decay_ratio=1.0,
        conv_pos=8,
        conv_pos_groups=4,
        num_buckets=32,
        max_distance=16,
        finetuned_model=False,
        clip_seconds=SECONDS,
        num_windows=1,
        window_seconds=SECONDS,
        num_mel_bins=32,
        frame_shift_ms=5.0,
    )


def moment_words(track: Soundtrack, config: AudioConfig) -> torch.Tensor:
    """Return which words are true of each token of a soundtrack: a tensor (N, W) of 0 and 1."""
    tokens = config.tokens_of(config.clip_frames)
    step = config.input_patch_size * config.frame_shift_ms / 1000
    words = torch.zeros(tokens, len(SOUND_FORMS))
    hits = sum(event.kind == HIT for event in track.events)
    for number, event in enumerate(track.events):
        said = [event.kind]
        if event.kind in TONES:
            said.append(_SHAPE_OF[event.kind])
        if event.kind == HIT:
            said.append(NUMBERS[hits - 1])
        if number == 0 and track.story == "heard_first":
            said.append("first")
        for token in range(tokens):
            overlap = min(event.start + event.seconds, (token + 1) * step) - max(event.start, token * step)
            if overlap >= _LEAST_OVERLAP:
                half = "early" if (token + 0.5) * step < SECONDS / 2 else "late"
                words[token, [_WORD_OF[word] for word in (*said, half)]] = 1
    return words


@dataclass(frozen=True)
class SoundBatches(WholeBatches):
    """A data set whose item ``step`` is a batch of ``size`` soundtracks: ``fbank_BTF`` and the words of each token."""

    config: AudioConfig
    size: int
    steps: int

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[torch.Tensor, Truth]:
        tracks = [add_sound(make_scene(SCENE_SEED, step * self.size + row))[1] for row in range(self.size)]
        config = self.config
        banks = [
            log_filter_bank(
                torch.from_numpy(wave(track)), config.sampling_rate, config.num_mel_bins, config.frame_samples
            )
            for track in tracks
        ]
        return torch.stack(banks), {"words": torch.stack([moment_words(track, config) for track in tracks])}


class SoundProbe(nn.Module):
    """Read words from tokens of sound, see :func:`.pretrain_connector.word_logits`."""

    def __init__(self, words_WD: torch.Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))
        self.offset = nn.Parameter(torch.tensor(-4.0))
        self.vectors_WD: torch.Tensor
        self.register_buffer("vectors_WD", words_WD)

    def forward(self, tokens_BND: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map tokens (B, N, D) to ``words`` (B, N, W)."""
        return {"words": word_logits(tokens_BND, self.vectors_WD, self.scale, self.offset)}


def pretrain_hearing(
    tower: BeatsModel, projector: nn.Module, words_WD: torch.Tensor, steps: int = STEPS, progress: bool = True
) -> dict[str, float]:
    """Train the encoder and the projector in place and scale the tokens to :data:`.pretrain_connector.TOKEN_RMS`.

    Args:
        words_WD: unit vectors of :data:`SOUND_FORMS`.

    Returns:
        ``words``: words read and true, divided by words read or true; the mean over the last 20 batches.
    """
    probe = SoundProbe(words_WD)
    parameters = [*tower.parameters(), *projector.parameters(), *probe.parameters()]
    batches = SoundBatches(tower.config, BATCH, steps)

    def read(fbank_BTF: torch.Tensor) -> dict[str, torch.Tensor]:
        return probe(projector(tower(fbank_BTF).last_hidden_state))

    reached = fit(parameters, batches, read, "hearing", progress, word_loss, agreement)
    with torch.no_grad():
        tokens_BND = projector(tower.eval()(batches[0][0]).last_hidden_state)
        *_, last = projector.children()
        for tensor in last.parameters():
            tensor *= TOKEN_RMS / tokens_BND.square().mean().sqrt()
    return reached


def word_loss(readings: dict[str, torch.Tensor], truth: Truth) -> torch.Tensor:
    """Return the binary cross entropy of the words."""
    return F.binary_cross_entropy_with_logits(readings["words"], truth["words"])


@torch.no_grad()
def agreement(readings: dict[str, Any], truth: Truth) -> dict[str, float]:
    """Return the number of words read and true, divided by the number of words read or true."""
    told, true = readings["words"] > 0, truth["words"] > 0
    return {"words": ((told & true).sum() / (told | true).sum().clamp(min=1)).item()}
