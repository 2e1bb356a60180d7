"""Joint batches: their ratio, that every record is used, and that the order depends on seed and epoch alone."""

import json
from collections import Counter

import pytest

from tests.conftest import golden_audio_dir
from videollama2.data.order.sampler import JointSampler


def groups_of(*sizes):
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]


def published_cases():
    cases = json.loads((golden_audio_dir() / "mix_sampler.json").read_text())
    assert cases
    return [(case["av"], case["audio"], case["video"], case["order"]) for case in cases]


@pytest.mark.parametrize(("av", "audio", "video", "published"), published_cases())
def test_every_record_is_used_in_the_published_ratio(av, audio, video, published):
    groups = groups_of(av, audio, video)
    sampler = JointSampler(groups, (2, 1, 1), av + audio + video, seed=3)
    order = list(sampler)
    assert len(order) == len(sampler) >= len(published)
    assert set(order) == set(range(av + audio + video))
    which = {index: number for number, group in enumerate(groups) for index in group}
    rounds = [[which[index] for index in order[i : i + 4]] for i in range(0, len(order), 4)]
    assert all(kinds == [0, 0, 1, 2] for kinds in rounds)
    times = Counter(order)
    for group in groups:
        assert max(times[index] for index in group) - min(times[index] for index in group) <= 1


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch=0):
        sampler = JointSampler(groups_of(8, 3, 5), (2, 1, 1), 16, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1) == order(1)
    assert order(1, epoch=2) == order(1, epoch=2)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) >= 3


def test_other_ratios_and_padding():
    sampler = JointSampler(groups_of(4, 6), (1, 3), 10, multiple=5)
    order = list(sampler)
    assert len(order) == len(sampler) == 20
    assert order[16:] == [10] * 4  # empty samples fill the last batch
    assert set(order[:16]) == set(range(10))
