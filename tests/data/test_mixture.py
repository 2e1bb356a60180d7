"""Mixtures by tokens and by ranges of steps: shares, no sample more often than another, the same whenever asked."""

from collections import Counter

import numpy as np
import pytest

from videollama2.data.order.mixture import Mixture, Phase, PhasedDraw, parse_phases
from videollama2.data.order.sampler import MixtureSampler, ModalityLengthSampler
from videollama2.errors import ConfigError

SIZES = [40, 7, 13]
PHASES = parse_phases(["0:1,0,0", "3:2,1,1", "11:0,1,3"], 3)
SET_OF = np.repeat(range(3), SIZES).tolist()


def orders(epochs, batch=4, grouped=False):
    """The sets of the samples of each step, over so many epochs, and how often each sample occurs."""
    draw = PhasedDraw(Mixture(SIZES, phases=PHASES), batch, sum(SIZES), seed=5)
    options = {"sizes": SIZES, "multiple": 2, "seed": 5, "phased": draw}
    lengths = np.arange(sum(SIZES)) % 9
    sampler = ModalityLengthSampler(lengths, lengths > 3, batch, **options) if grouped else MixtureSampler(**options)
    steps, seen = [], Counter()
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert len(order) == len(sampler) == sum(SIZES) and list(sampler) == order
        steps += [[SET_OF[index] for index in order[i : i + batch]] for i in range(0, len(order), batch)]
        seen.update(order)
    return steps, seen


def sets_in(steps):
    return Counter(place for step in steps for place in step)


@pytest.mark.parametrize("grouped", [False, True])
def test_shares_change_at_their_steps(grouped):
    steps, seen = orders(3, grouped=grouped)
    assert sets_in(steps[:3]) == {0: 12}
    assert sets_in(steps[3:11]) == {0: 16, 1: 8, 2: 8}
    last = sets_in(steps[11:])
    assert last[0] == 0 and abs(last[2] - 3 * last[1]) <= 6  # each epoch rounds
    for place in range(3):
        counts = [seen[index] for index in range(sum(SIZES)) if SET_OF[index] == place]
        assert max(counts) - min(counts) <= 1


def test_an_epoch_depends_on_its_number_alone():
    draw = PhasedDraw(Mixture(SIZES, phases=PHASES), 4, sum(SIZES), seed=5)
    sampler = MixtureSampler(SIZES, seed=5, phased=draw)
    sampler.set_epoch(2)
    late = list(sampler)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        again = list(sampler)
    assert again == late
    other = MixtureSampler(SIZES, seed=6, phased=PhasedDraw(draw.mixture, 4, sum(SIZES), seed=6))
    other.set_epoch(2)
    assert list(other) != late


def test_shares_of_tokens():
    lengths = np.concatenate([np.full(size, tokens) for size, tokens in zip(SIZES, (10, 200, 50), strict=True)])
    mixture = Mixture(SIZES, [1, 2, 1]).of_tokens(lengths)
    sampler = MixtureSampler(mixture.sizes, mixture.weights, seed=1)
    tokens = Counter()
    for index in sampler:
        tokens[SET_OF[index]] += int(lengths[index])
    # An epoch has 60 samples, and one sample more or less of the second set is 200 tokens.
    assert [tokens[place] / tokens.total() for place in range(3)] == pytest.approx([0.25, 0.5, 0.25], abs=0.06)
    assert Mixture(SIZES, phases=(Phase(0, (1, 2, 1)),)).of_tokens(lengths).phases[0].weights == tuple(mixture.weights)
    assert mixture.told(["a", "b", "c"]) == ["mixture from step 0: a 76.9%, b 7.7%, c 15.4%"]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["0:1"], "1 weights for 2 annotation files"),
        (["5:1,2"], "the first one is 0"),
        (["0:1,2", "0:2,1"], "steps ascend"),
        (["0:0,0"], "one is positive"),
        (["0:1,-2"], "not negative"),
        (["begin:1,2"], "STEP:WEIGHT"),
    ],
)
def test_values_that_say_nothing(texts, words):
    with pytest.raises(ConfigError, match=words):
        parse_phases(texts, 2)
