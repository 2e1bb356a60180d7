"""Order of samples in which a batch has one modality and similar lengths, so that little of it is padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

WINDOW = 50
"""Batches that are sorted by length together: larger means less padding and less randomness."""


class ModalityLengthSampler(Sampler[int]):
    """Random order, grouped: text-only and visual samples in separate batches, each batch of similar lengths.

    The order is a function of ``seed`` and the epoch, so a resumed run goes on with the same one.

    Args:
        lengths: tokens per sample.
        visual: per sample, whether it has an image or a video.
        batch_size: samples of one step over all processes and accumulation steps.
    """

    def __init__(
        self, lengths: Sequence[int], visual: Sequence[bool], batch_size: int, seed: int = 0
    ) -> None:
        self.lengths = lengths
        self.groups = [[i for i, flag in enumerate(visual) if flag is wanted] for wanted in (True, False)]
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the loader before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        whole: list[list[int]] = []
        left_over: list[int] = []
        for group in self.groups:
            for batch in self._batches(group, generator):
                if len(batch) == self.batch_size:
                    whole.append(batch)
                else:
                    left_over += batch
        for i in torch.randperm(len(whole), generator=generator).tolist():
            yield from whole[i]
        # Only the incomplete batches of both groups are mixed; at the end they shift no other batch.
        yield from left_over

    def _batches(self, group: Sequence[int], generator: torch.Generator) -> list[list[int]]:
        shuffled = [group[i] for i in torch.randperm(len(group), generator=generator).tolist()]
        window = WINDOW * self.batch_size
        batches = []
        for start in range(0, len(shuffled), window):
            ordered = sorted(shuffled[start : start + window], key=lambda i: self.lengths[i])
            batches += [ordered[i : i + self.batch_size] for i in range(0, len(ordered), self.batch_size)]
        return batches
