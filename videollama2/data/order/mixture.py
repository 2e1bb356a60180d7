"""Mixes annotation files: by weights of records or tokens, the same for a whole run or by ranges of steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from videollama2.errors import ConfigError


@dataclass(frozen=True)
class Phase:
    """The weights of all files from a step on, until the next phase."""

    step: int
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Mixture:
    """The sets that a run is trained on.

    Attributes:
        sizes: number of samples of each set.
        weights: share of each set, in any unit; None takes every sample once per epoch.
        phases: shares that change during the run, in place of ``weights``.
    """

    sizes: list[int]
    weights: list[float] | None = None
    phases: tuple[Phase, ...] = ()

    def of_tokens(self, lengths: Sequence[int]) -> Mixture:
        """Return the mixture of samples in which each set has its weight as its share of tokens.

        Args:
            lengths: number of tokens of each sample of all sets, one set after the other.
        """
        ends = np.cumsum(self.sizes)
        # The sampler draws records. A set of long records gets its share of tokens from fewer of them: the weight of a
        # set is divided by the mean length of its records.
        means = [float(part.mean()) for part in np.split(np.asarray(lengths), ends[:-1])]

        def per_sample(weights: Sequence[float]) -> tuple[float, ...]:
            return tuple(weight / mean for weight, mean in zip(weights, means, strict=True))

        weights = None if self.weights is None else list(per_sample(self.weights))
        phases = tuple(Phase(phase.step, per_sample(phase.weights)) for phase in self.phases)
        return replace(self, weights=weights, phases=phases)

    def told(self, names: Sequence[str]) -> list[str]:
        """Return a line for each range of steps with the share of each set among the samples."""
        lines = []
        for phase in self.phases or ((Phase(0, tuple(self.weights)),) if self.weights else ()):
            total = sum(phase.weights)
            each = (f"{name} {weight / total:.1%}" for name, weight in zip(names, phase.weights, strict=True))
            lines.append(f"mixture from step {phase.step}: {', '.join(each)}")
        return lines


def parse_phases(texts: Sequence[str], files: int) -> tuple[Phase, ...]:
    """Read the values of ``--data_curriculum``, each ``STEP:WEIGHT,WEIGHT,...`` with a weight for each file.

    Raises:
        ConfigError: a value does not have this form, or the steps do not ascend from 0.
    """
    phases: list[Phase] = []
    for text in texts:
        step, _, weights = text.partition(":")
        try:
            phase = Phase(int(step), tuple(map(float, weights.split(","))))
        except ValueError as error:
            raise ConfigError(f"--data_curriculum {text}: must be STEP:WEIGHT,WEIGHT,...") from error
        if len(phase.weights) != files:
            raise ConfigError(f"--data_curriculum {text} has {len(phase.weights)} weights for {files} annotation files")
        if not all(0 <= weight < float("inf") for weight in phase.weights) or not sum(phase.weights):
            raise ConfigError(f"--data_curriculum {text}: weights are not negative, and one is positive")
        if (phase.step != 0) if not phases else (phase.step <= phases[-1].step):
            raise ConfigError(f"--data_curriculum {text}: steps ascend, and the first one is 0")
        phases.append(phase)
    return tuple(phases)


@dataclass(frozen=True)
class PhasedDraw:
    """Draws the samples of a run whose shares change during it.

    Each set is shuffled again and again, and goes on where it was left, so that over the whole run no sample of a set
    occurs more often than another one by more than one. What an epoch draws depends on its number alone.

    Args:
        mixture: the sets and phases.
        batch_size: number of samples of one step over all processes and accumulation steps.
        samples: number of samples of an epoch.
        seed: decides the order in each set.
    """

    mixture: Mixture
    batch_size: int
    samples: int
    seed: int

    def epoch(self, number: int) -> Iterator[np.ndarray]:
        """Yield, for each phase within an epoch, the indices of its samples in the order of the sets."""
        # An epoch continues where the one before it left each set. What the earlier ones took is counted anew, which
        # costs a sum for each, so that a resumed run needs nothing but the number of the epoch.
        taken = [0] * len(self.mixture.sizes)
        for each in range(number + 1):
            for counts in self._counts(each):
                if each == number:
                    yield self._next(taken, counts)
                taken = [before + count for before, count in zip(taken, counts, strict=True)]

    def _counts(self, epoch: int) -> Iterator[list[int]]:
        """Yield how many samples of each set an epoch has in each phase."""
        # Phases are given in steps of the run. Here they become places within this epoch; a phase that lies before or
        # after it begins and ends at the same place, and has no samples.
        first = epoch * -(-self.samples // self.batch_size)
        phases = self.mixture.phases
        begins = [min(max((phase.step - first) * self.batch_size, 0), self.samples) for phase in phases]
        for phase, begin, end in zip(phases, begins, [*begins[1:], self.samples], strict=True):
            if end > begin:
                yield shares(end - begin, phase.weights)

    def _next(self, taken: Sequence[int], counts: Sequence[int]) -> np.ndarray:
        parts, start = [], 0
        for place, (size, begin, count) in enumerate(zip(self.mixture.sizes, taken, counts, strict=True)):
            if count:
                # The endless order of a set is a row of passes, each with its own seed. Only the passes that hold the
                # wanted part are drawn.
                passes = range(begin // size, (begin + count - 1) // size + 1)
                order = np.concatenate([self._pass(place, size, each) for each in passes])
                parts.append(start + order[begin % size : begin % size + count])
            start += size
        return np.concatenate(parts)

    def _pass(self, place: int, size: int, number: int) -> np.ndarray:
        seed = np.random.SeedSequence([self.seed, place, number]).generate_state(1)[0]
        return torch.randperm(size, generator=torch.Generator().manual_seed(int(seed))).numpy()


def shares(total: int, weights: Sequence[float]) -> list[int]:
    """Split ``total`` in proportion to ``weights``; the rest after rounding goes to the largest remainders."""
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [int(value) for value in exact]
    # Every count was rounded down, so a few are missing; they go to the sets that lost most.
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts
