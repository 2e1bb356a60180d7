"""Measures what a training step costs: samples and tokens per second, waiting for data, memory, and GPU utilisation."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch

from videollama2.config import VideoLlama2Config
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.training.distributed.sharding import weights_of

PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 150e12,
    "L40": 181e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
}
"""Dense 16-bit operations per second from the makers' data sheets; a key is a part of the device's name."""


COUNTS = "counts"
"""Key of a batch that holds its :class:`BatchCounts`."""


@dataclass
class BatchCounts:
    """Sums of one process since its last log line.

    ``silent`` counts videos without a sound track that were heard as silence; ``waited`` is in seconds.
    """

    samples: int = 0
    visual_tokens: int = 0
    sound_tokens: int = 0
    text_tokens: int = 0
    frames: int = 0
    labels: int = 0
    silent: int = 0
    waited: float = 0.0


def count(batch: dict[str, Any], config: VideoLlama2Config) -> BatchCounts:
    """Count what a batch holds.

    Each number is read from a tensor. On a GPU that would be a synchronisation, so :class:`CountingCollator` counts on
    the CPU.
    """
    ids_BL = batch["input_ids"]
    visual_BL = (ids_BL == config.image_token_id) | (ids_BL == config.video_token_id)
    # These are the positions for which logits are computed; the first token has none, since nothing comes before it.
    labelled_BL = batch["labels"][:, 1:] >= 0
    visual, sound = int(visual_BL.sum()), int((ids_BL == config.audio_token_id).sum())
    mask_BL, lengths = batch.get("attention_mask"), batch.get("record_lengths")
    # A packed row has no padding, and several records.
    tokens = ids_BL.numel() if mask_BL is None else int(mask_BL.sum())
    records = [labelled_BL] if lengths is None else (batch["labels"] >= 0).split(lengths, dim=1)
    clips, images = batch.get("pixel_values_videos", ()), batch.get("pixel_values", ())
    return BatchCounts(
        samples=sum(int(labelled.any(dim=1).sum()) for labelled in records),
        visual_tokens=visual,
        sound_tokens=sound,
        text_tokens=tokens - visual - sound,
        frames=len(images) + sum(map(len, clips)),
        labels=int(labelled_BL.sum()),
        silent=batch.pop("silent", 0),
    )


Collate = Callable[[Sequence[Any]], dict[str, Any]]
"""A function that makes a batch of samples."""


@dataclass(frozen=True)
class CountingCollator:
    """A collator that adds the :class:`BatchCounts` of a batch to it, on the CPU of the worker that loads the batch.

    It also removes the attention mask, which is not needed after counting. Batches are padded on the right and
    attention is causal, so no token attends to padding; with a mask, attention on a GPU could not use a fast kernel.
    """

    collate: Collate
    config: VideoLlama2Config

    def __call__(self, samples: Sequence[Any]) -> dict[str, Any]:
        batch = self.collate(samples)
        batch[COUNTS] = count(batch, self.config)
        batch.pop("attention_mask", None)  # a packed batch has none
        return batch


class Meter:
    """Count batches and compute rates from the counts.

    Args:
        model: the model to train; its configuration says which ids are visual, and its parts what a step costs.
    """

    def __init__(self, model: VideoLlama2ForConditionalGeneration) -> None:
        self.config = model.config
        self.flops = FlopCount(model)
        self.begun = False
        self.restart()

    def begin(self) -> None:
        """Start the clock before the first step. The trainer calls this before each step; later calls have no effect.

        The time before the first step, in which engines are built, is not counted.
        """
        if not self.begun:
            self.begun = True
            self.restart()

    def restart(self) -> None:
        """Set counts and clock to zero for a new log line."""
        self.counts = BatchCounts()
        self.started = time.perf_counter()

    def add(self, batch: dict[str, Any]) -> None:
        """Add one micro-batch of this process, with the counts of :class:`CountingCollator` if it has them."""
        more = batch.pop(COUNTS, None) or count(batch, self.config)
        self.counts = BatchCounts(*(a + b for a, b in zip(astuple(self.counts), astuple(more), strict=True)))

    def totals(self, device: torch.device) -> torch.Tensor:
        """Return this process's sums as a tensor (1, 10), to be gathered for :meth:`rates`.

        The values are the fields of :class:`BatchCounts`, the elapsed seconds and the peak memory in bytes.
        """
        c = self.counts
        elapsed = time.perf_counter() - self.started
        values = [*astuple(c), elapsed, peak_memory(device)]
        return torch.tensor([values], dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)

    def rates(self, gathered: torch.Tensor, peak: float | None) -> dict[str, float]:
        """Return the entries of a log line.

        Args:
            gathered: the :meth:`totals` of all processes, (processes, 10).
            peak: operations per second of one process's device, see :func:`peak_flops`, or None for no utilisation.
        """
        *counted, elapsed = gathered[:, :-1].sum(dim=0).tolist()
        counts = BatchCounts(*counted)
        seconds = max(elapsed / len(gathered), 1e-9)
        entries = {
            "samples_per_second": counts.samples / seconds,
            "visual_tokens_per_second": counts.visual_tokens / seconds,
            "text_tokens_per_second": counts.text_tokens / seconds,
            "data_wait_share": counts.waited / max(elapsed, 1e-9),
            "peak_memory_gb": gathered[:, -1].max().item() / 1e9,
        }
        if counts.sound_tokens:
            entries["sound_tokens_per_second"] = counts.sound_tokens / seconds
        if counts.silent:
            entries["silent_videos"] = counts.silent
        if peak is not None:
            entries["model_flops_utilisation"] = self.flops.of_step(counts) / seconds / (peak * len(gathered))
        return {name: float(f"{value:.4g}") for name, value in entries.items()}


class FlopCount:
    """The number of floating-point operations of a training step, by the usual counting rules.

    A weight costs 2 operations per token in the forward pass, 2 in the backward pass if anything below it learns, and 2
    for its own gradient if it learns. Attention costs in proportion to the sequence length. Recomputation is not
    counted (Chowdhery et al. 2022, appendix B), nor are the experts to which a token is not sent and logits that are
    not computed.
    """

    def __init__(self, model: VideoLlama2ForConditionalGeneration) -> None:
        inner, text = model.model, model.config.text_config
        sent_to = getattr(text, "num_experts_per_tok", 1) / getattr(text, "num_local_experts", 1)
        layers: list[tuple[float, bool]] = [
            (weights_of(p) * (sent_to if ".experts." in name else 1), p.requires_grad)
            for name, p in inner.language_model.layers.named_parameters()
        ]
        head: list[tuple[float, bool]] = [(weights_of(p), p.requires_grad) for p in model.lm_head.parameters()]
        encoders = [getattr(tower, "encoder", None) for tower in (inner.vision_tower, inner.audio_tower)]
        seeing, hearing = (
            _encoder_and_connector(*pair)
            for pair in zip(encoders, (inner.mm_projector, inner.mm_projector_a), strict=True)
        )
        # Encoders do not run where their features are given.
        self.tower = 0 if inner.takes_features else seeing[0]
        self.connector = seeing[1]
        # An audio encoder has one output per token.
        self.per_sound_token = hearing[1] if inner.takes_features else sum(hearing[:2])
        below = seeing[2] or hearing[2] or any(trained for _, trained in layers)
        self.decoder, self.head = _per_token(layers, below), _per_token(head, below)
        self.attention = 4 * text.num_hidden_layers * text.hidden_size
        self.patches = model.config.patches_per_side**2 if model.config.sees else 0

    def of_step(self, counts: BatchCounts) -> float:
        """Return the number of operations for the given counts."""
        tokens = counts.visual_tokens + counts.sound_tokens + counts.text_tokens
        length = tokens / max(counts.samples, 1)
        attention = 3 * tokens * self.attention * length / 2
        tower = counts.frames * self.patches * self.tower
        # Weights of the connector's convolutions are used once per output position. This counts one position per visual
        # token; the inner positions are at most twice as many.
        media = tower + counts.visual_tokens * self.connector + counts.sound_tokens * self.per_sound_token
        return tokens * self.decoder + counts.labels * self.head + attention + media


def _encoder_and_connector(
    encoder: torch.nn.Module | None, connector: torch.nn.Module | None
) -> tuple[float, float, bool]:
    """Return the operations per position of an encoder and of its connector, and whether either learns."""
    of_encoder, of_connector = (
        [(weights_of(p), p.requires_grad) for p in ([] if module is None else module.parameters())]
        for module in (encoder, connector)
    )
    encoder_learns, connector_learns = (any(learns for _, learns in part) for part in (of_encoder, of_connector))
    connector_factor = 6 if connector_learns else 4 if encoder_learns else 2
    return (
        _per_token(of_encoder, encoder_learns),
        sum(count for count, _ in of_connector) * connector_factor,
        encoder_learns or connector_learns,
    )


def _per_token(weights: Sequence[tuple[float, bool]], learns_below: bool) -> float:
    """Return the operations for one token.

    Args:
        weights: for each tensor, the number of weights used by a token, and whether they learn.
        learns_below: whether anything below these weights learns.
    """
    every, trained = sum(count for count, _ in weights), sum(count for count, learns in weights if learns)
    return 2 * every + 2 * (every if learns_below else 0) + 2 * trained


def peak_flops(device: torch.device) -> float | None:
    """Return the operations per second of this GPU, or None on a CPU or for a name not in :data:`PEAK_FLOPS`."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)


def peak_memory(device: torch.device) -> float:
    """Return the peak memory of this process in bytes: memory allocated on its GPU, or on a CPU resident memory."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)
