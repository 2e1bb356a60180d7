"""Orders the samples of an epoch: sets mixed by weight, batches of one modality and similar lengths, joint batches.

Every order depends only on the seed and the epoch. A resumed run therefore continues with the same order, and the order
does not depend on how a batch is divided among processes and accumulation steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

from videollama2.data.order.mixture import PhasedDraw, shares

WINDOW = 50
"""Number of batches whose samples are sorted by length together. More means less padding, but also less randomness."""


class InOrderSampler(Sampler[int]):
    """Yields each sample once, in order, padded to a multiple of ``multiple``.

    The padding is the index ``size``, an empty sample (see :class:`videollama2.data.dataset.VideoInstructionDataset`).
    Without it, accelerate would repeat some samples to give every process the same number of batches.
    """

    def __init__(self, size: int, multiple: int = 1) -> None:
        self.size = size
        self.multiple = multiple

    @property
    def drawn(self) -> int:
        """Number of samples in an epoch, without padding."""
        return self.size

    def __len__(self) -> int:
        return -(-self.drawn // self.multiple) * self.multiple

    def __iter__(self) -> Iterator[int]:
        yield from map(int, self._order())
        yield from [self.size] * (len(self) - self.drawn)

    def _order(self) -> Iterable[int]:
        return range(self.size)


class MixtureSampler(InOrderSampler):
    """Yields one or several sets in random order.

    Args:
        sizes: number of samples of each set; the sets are concatenated.
        weights: share of each set in an epoch, in any unit; None takes every sample once. An epoch has as many samples
            as all sets together. A set whose share exceeds its size is repeated, so that no sample occurs more often
            than another by more than one. From a set with a smaller share, each epoch takes a different random part.
        multiple: see :class:`InOrderSampler`.
        phased: draws samples whose shares change during the run, in place of ``weights``; each phase of an epoch is
            arranged by itself.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float] | None = None,
        multiple: int = 1,
        seed: int = 0,
        phased: PhasedDraw | None = None,
    ) -> None:
        super().__init__(sum(sizes), multiple)
        self.phased = phased
        self.sizes = list(sizes)
        self.weights = None if weights is None else list(weights)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch. The data loader calls this before each one."""
        self.epoch = epoch

    # Orders are arrays: lists of millions of Python numbers would take several times the memory, in each process.
    def _order(self) -> Iterable[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        if self.phased is None:
            return self._arrange(self._draw(generator), generator)
        return np.concatenate([self._arrange(drawn, generator) for drawn in self.phased.epoch(self.epoch)])

    def _draw(self, generator: torch.Generator) -> np.ndarray:
        if self.weights is None:
            return np.arange(self.size)
        drawn = []
        start = 0
        for size, share in zip(self.sizes, shares(self.size, self.weights), strict=True):
            # Each sample is taken as often as the whole set fits into the share, and some random ones once more.
            drawn.append(np.tile(np.arange(start, start + size), share // size))
            drawn.append(start + _random_order(size, generator)[: share % size])
            start += size
        return np.concatenate(drawn)

    def _arrange(self, drawn: np.ndarray, generator: torch.Generator) -> np.ndarray:
        return drawn[_random_order(len(drawn), generator)]


def _random_order(count: int, generator: torch.Generator) -> np.ndarray:
    return torch.randperm(count, generator=generator).numpy()


SOUNDING = ("audio-video", "audio", "other")
"""The groups that a :class:`JointSampler` mixes: videos that are heard, sounds alone, and records without sound."""

PUBLISHED_RATIO = (2, 1, 1)


class JointSampler(MixtureSampler):
    """Yields groups of samples in a fixed ratio: with 2 1 1, two of the first, one of the second, one of the third.

    Each group is shuffled anew in every epoch. An epoch is as long as it takes to use every sample; samples of smaller
    groups are repeated, none of them more often than another by more than one. (The published sampler steps through
    the second and third group by twos, so that it never uses half of a group of even size.)

    Args:
        groups: indices of each group.
        ratio: samples of each group in one round, with 0 for a group that is not used.
        others: see :class:`MixtureSampler`.
    """

    def __init__(
        self, groups: Sequence[Sequence[int]], ratio: Sequence[int], size: int, multiple: int = 1, seed: int = 0
    ) -> None:
        super().__init__([size], None, multiple, seed)
        self.groups = [(list(group), share) for group, share in zip(groups, ratio, strict=True) if group and share]
        self.rounds = max(-(-len(group) // share) for group, share in self.groups)

    @property
    def drawn(self) -> int:
        return self.rounds * sum(share for _, share in self.groups)

    def _order(self) -> Iterable[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        queues = [(iter(self._repeated(group, share, generator)), share) for group, share in self.groups]
        return [next(queue) for _ in range(self.rounds) for queue, share in queues for _ in range(share)]

    def _repeated(self, group: list[int], share: int, generator: torch.Generator) -> list[int]:
        order: list[int] = []
        while len(order) < self.rounds * share:
            # Whole passes, each in an order of its own, cut where the epoch ends: no sample is used more often than
            # another by more than one.
            order += [group[i] for i in torch.randperm(len(group), generator=generator).tolist()]
        return order[: self.rounds * share]


class ModalityLengthSampler(MixtureSampler):
    """Yields samples in random order, with text-only and visual ones in separate batches of similar lengths.

    Each group is shuffled and cut into windows of :data:`WINDOW` batches. A window is sorted by length and split into
    batches, and finally the batches of all windows and both groups are shuffled.

    Args:
        lengths: number of tokens of each sample.
        visual: whether each sample has an image or a video.
        batch_size: number of samples of one step over all processes and accumulation steps.
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
        phased: PhasedDraw | None = None,
    ) -> None:
        super().__init__(sizes or [len(lengths)], weights, multiple, seed, phased)
        self.lengths = np.asarray(lengths)
        self.visual = np.asarray(visual, bool)
        self.batch_size = batch_size

    def _arrange(self, drawn: np.ndarray, generator: torch.Generator) -> np.ndarray:
        whole: list[np.ndarray] = []
        left_over: list[np.ndarray] = []
        for wanted in (True, False):
            ordered = self._by_length(drawn[self.visual[drawn] == wanted], generator)
            # Only whole batches are shuffled. A batch of one modality stays one whatever comes before it, on any number
            # of processes, because batch_size counts a whole step.
            end = len(ordered) - len(ordered) % self.batch_size
            whole.append(ordered[:end].reshape(-1, self.batch_size))
            left_over.append(ordered[end:])
        batches = np.concatenate(whole)
        batches = batches[_random_order(len(batches), generator)]
        # The incomplete batches of both groups come last, and only they are mixed, so that they shift no other batch.
        return np.concatenate([batches.reshape(-1), *left_over])

    def _by_length(self, group: np.ndarray, generator: torch.Generator) -> np.ndarray:
        """Return the group in random order, in which each window of batches is sorted by length."""
        shuffled = group[_random_order(len(group), generator)]
        for start in range(0, len(shuffled), WINDOW * self.batch_size):
            window = shuffled[start : start + WINDOW * self.batch_size]
            window[:] = window[np.argsort(self.lengths[window], kind="stable")]
        return shuffled
