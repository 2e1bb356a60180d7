"""Sorts records for joint training: which are heard, seen or both, and in which ratio batches hold them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from videollama2.data.order.sampler import PUBLISHED_RATIO, SOUNDING
from videollama2.data.record import Record
from videollama2.errors import ConfigError
from videollama2.media.kinds import AUDIO
from videollama2.training.flags.data import DataArguments
from videollama2.training.flags.run import TrainingArguments
from videollama2.training.rules.data import own_order


@dataclass(frozen=True)
class Joint:
    """The groups of records in joint training, in the order of :data:`~videollama2.data.order.sampler.SOUNDING`.

    Attributes:
        groups: indices of the records of each group.
        ratio: how many records of each group are together in a batch.
    """

    groups: Sequence[Sequence[int]]
    ratio: Sequence[int]


def joint_of(
    sets: Sequence[Sequence[Record]], data_args: DataArguments, training_args: TrainingArguments
) -> Joint | None:
    """Return the groups of the training records, or None if the flags ask for another order.

    Args:
        sets: records of each annotation file.

    Raises:
        ConfigError: ``--joint_ratio`` gives a share to a group without records.
    """
    ratio = data_args.joint_ratio
    if ratio is None and (own_order(data_args, training_args) or not any(data_args.heard)):
        return None
    groups = [array("q") for _ in SOUNDING]
    for index, record in enumerate(record for records in sets for record in records):
        groups[_group(record)].append(index)
    if ratio is None:
        return Joint(groups, PUBLISHED_RATIO) if all(groups) else None
    for name, group, share in zip(SOUNDING, groups, ratio, strict=True):
        if share and not group:
            raise ConfigError(f"--joint_ratio {' '.join(map(str, ratio))}: the data holds no {name} record")
        if group and not share:
            raise ConfigError(f"--joint_ratio {' '.join(map(str, ratio))} leaves out {len(group)} {name} record(s)")
    return Joint(groups, ratio)


def _group(record: Record) -> int:
    if any(medium.va for medium in record.media):
        return 0
    return 1 if AUDIO in record.kinds else 2
