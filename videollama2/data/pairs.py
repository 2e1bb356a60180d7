"""Pairs answers to the same question about the same media, for preference training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from videollama2.constants import IGNORE_INDEX
from videollama2.data.collator import TrainingCollator
from videollama2.data.dataset import VideoInstructionDataset
from videollama2.data.record import Record
from videollama2.data.samples import TrainingSample
from videollama2.errors import DataError
from videollama2.prompting import checked_turns

PAIRS = "pairs"
"""Key of a batch that holds the number of its pairs."""
REFERENCE = "reference_log_probs"


class PreferencePairs(VideoInstructionDataset):
    """A dataset of pairs: each sample lists two samples, with the better and the worse answer of a record.

    Only these answers have labels; the conversation before them is the same in both. The two samples hold the same
    tensors of media.

    Attributes:
        reference: log-probabilities (records, 2) that the reference model gives to the answers, or None if they are
            not known; set after construction. Each sample then has its own under ``"reference"``.
    """

    reference: torch.Tensor | None = None

    def _sample(self, record: Record, read: Any) -> TrainingSample:
        if record.rejected is None:
            raise DataError("has no 'rejected' answer, which --objective dpo needs")
        worse = {**record.conversations[-1], "value": record.rejected}
        pair = []
        for each in (record, replace(record, conversations=(*record.conversations[:-1], worse))):
            sample = super()._sample(each, read)
            pair.append({**sample, "labels": last_answer(sample["labels"], each)})
        return {PAIRS: pair}

    def _item(self, index: int, read: Any) -> TrainingSample:
        sample = super()._item(index, read)
        if PAIRS in sample and self.reference is not None:
            sample["reference"] = self.reference[index]
        return sample


def last_answer(labels: Sequence[int], record: Record) -> list[int]:
    """Return a record's labels of which only those of its last answer are left.

    Raises:
        DataError: that answer was cut off, so that the last one with labels answers an earlier question.
    """
    # Between two answers there is a question, which has no labels.
    begins = [
        place
        for place, (before, label) in enumerate(zip([IGNORE_INDEX, *labels], labels, strict=False))
        if before == IGNORE_INDEX != label
    ]
    _, turns = checked_turns(record.conversations, len(record.media))
    if len(begins) < len(turns) // 2:
        raise DataError(f"the last answer does not begin within the {len(labels)} tokens of model_max_length")
    kept = [IGNORE_INDEX] * len(labels)
    kept[begins[-1] :] = labels[begins[-1] :]
    return kept


@dataclass(frozen=True)
class PairCollator:
    """Joins samples of :class:`PreferencePairs` into a batch whose even rows have the better answers.

    Row ``2 i + 1`` has the worse answer to the question of row ``2 i``. Media of a pair are in the batch once, see
    ``visual_index`` of the model. A batch has the number of pairs under :data:`PAIRS` and, if it is known, the
    reference's log-probabilities (rows,) under :data:`REFERENCE`. Samples that are no pairs become a row each at the
    end.
    """

    collate: TrainingCollator

    def __call__(self, samples: Sequence[TrainingSample]) -> dict[str, Any]:
        pairs = [sample for sample in samples if PAIRS in sample]
        others = [sample for sample in samples if PAIRS not in sample]
        batch = self.collate([*_rows(pairs), *others])
        batch[PAIRS] = len(pairs)
        if pairs and "reference" in pairs[0]:
            batch[REFERENCE] = torch.cat([sample["reference"] for sample in pairs])
        return batch


def _rows(pairs: Iterable[TrainingSample]) -> Iterable[TrainingSample]:
    for pair in pairs:
        yield from pair[PAIRS]
