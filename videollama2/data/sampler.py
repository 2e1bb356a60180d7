"""Order of samples in an epoch: sets mixed by weight, batches of one modality and similar lengths.

Every order is a function of the seed and the epoch, so a resumed run goes on with the same one; and of nothing else, so
that it does not depend on how a batch is split over processes and accumulation steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

WINDOW = 50
"""Batches that are sorted by length together: larger means less padding and less randomness."""


class InOrderSampler(Sampler[int]):
    """Each sample once, in order, filled up to a multiple of ``multiple``.

    The index ``size`` fills: nothing, see :class:`videollama2.data.dataset.VideoInstructionDataset`. Without it
    accelerate would show some samples twice to give every process as many batches.
    """

    def __init__(self, size: int, multiple: int = 1) -> None:
        self.size = size
        self.multiple = multiple

    def __len__(self) -> int:
        return -(-self.size // self.multiple) * self.multiple

    def __iter__(self) -> Iterator[int]:
        yield from self._order()
        yield from [self.size] * (len(self) - self.size)

    def _order(self) -> Sequence[int]:
        return range(self.size)


class MixtureSampler(InOrderSampler):
    """Random order of one or several sets.

    Args:
        sizes: samples of each set; the sets lie behind each other.
        weights: share of each set in an epoch, in any unit; None: every sample once. An epoch has as many samples as
            all sets together. A set whose share exceeds its size is gone through several times, no sample more often
            than another by more than one; of a smaller share a random part is taken, another one in each epoch.
        multiple: see :class:`InOrderSampler`.
    """

    def __init__(
        self, sizes: Sequence[int], weights: Sequence[float] | None = None, multiple: int = 1, seed: int = 0
    ) -> None:
        super().__init__(sum(sizes), multiple)
        self.sizes = list(sizes)
        self.weights = None if weights is None else list(weights)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the loader before each epoch."""
        self.epoch = epoch

    def _order(self) -> Sequence[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return self._arrange(self._draw(generator), generator)

    def _draw(self, generator: torch.Generator) -> list[int]:
        if self.weights is None:
            return list(range(self.size))
        drawn: list[int] = []
        start = 0
        for size, share in zip(self.sizes, shares(self.size, self.weights), strict=True):
            drawn += [start + i for i in range(size)] * (share // size)
            drawn += [start + i for i in torch.randperm(size, generator=generator).tolist()[: share % size]]
            start += size
        return drawn

    def _arrange(self, drawn: list[int], generator: torch.Generator) -> Sequence[int]:
        return [drawn[i] for i in torch.randperm(len(drawn), generator=generator).tolist()]


class ModalityLengthSampler(MixtureSampler):
    """Random order, grouped: text-only and visual samples in separate batches, each batch of similar lengths.

    Args:
        lengths: tokens per sample.
        visual: per sample, whether it has an image or a video.
        batch_size: samples of one step over all processes and accumulation steps.
        others: see :class:`MixtureSampler`; ``sizes`` is one set by default.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        visual: Sequence[bool],
        batch_size: int,
        seed: int = 0,
        multiple: int = 1,
        sizes: Sequence[int] | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(sizes or [len(lengths)], weights, multiple, seed)
        self.lengths = lengths
        self.visual = visual
        self.batch_size = batch_size

    def _arrange(self, drawn: list[int], generator: torch.Generator) -> Sequence[int]:
        whole: list[list[int]] = []
        left_over: list[int] = []
        for wanted in (True, False):
            group = [i for i in drawn if bool(self.visual[i]) is wanted]
            for batch in self._batches(group, generator):
                if len(batch) == self.batch_size:
                    whole.append(batch)
                else:
                    left_over += batch
        order = [whole[i] for i in torch.randperm(len(whole), generator=generator).tolist()]
        # Only the incomplete batches of both groups are mixed; at the end they shift no other batch.
        return [i for batch in [*order, left_over] for i in batch]

    def _batches(self, group: Sequence[int], generator: torch.Generator) -> list[list[int]]:
        shuffled = [group[i] for i in torch.randperm(len(group), generator=generator).tolist()]
        window = WINDOW * self.batch_size
        batches = []
        for start in range(0, len(shuffled), window):
            ordered = sorted(shuffled[start : start + window], key=lambda i: self.lengths[i])
            batches += [ordered[i : i + self.batch_size] for i in range(0, len(ordered), self.batch_size)]
        return batches


def shares(total: int, weights: Sequence[float]) -> list[int]:
    """``total`` split in the proportions of ``weights``; what rounding leaves goes to the largest remainders."""
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts
