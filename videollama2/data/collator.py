"""Joins training samples into a batch that is padded on the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from videollama2.processing import collate


@dataclass(frozen=True)
class TrainingCollator:
    """Joins samples of :class:`videollama2.data.dataset.VideoInstructionDataset`.

    For the shapes see :func:`videollama2.processing.collate`. ``pad_token_id`` may be any id, since padding is masked.
    ``bad_samples`` is present only if records were skipped, and lists the reasons; it is removed before the batch
    reaches the model.
    """

    pad_token_id: int

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch = collate(
            rows=[sample["input_ids"] for sample in samples],
            media=[sample["media"] for sample in samples],
            pad_token_id=self.pad_token_id,
            side="right",
            labels=[sample["labels"] for sample in samples],
        )
        bad = [sample["bad"] for sample in samples if "bad" in sample]
        return {**batch, "bad_samples": bad} if bad else batch
