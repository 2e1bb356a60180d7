"""Joins training samples into a batch: rows padded on the right, or one packed row without padding."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from videollama2.constants import IGNORE_INDEX
from videollama2.media.kinds import AUDIO
from videollama2.model.packed_attention import packed_inputs
from videollama2.processing import collate


@dataclass(frozen=True)
class TrainingCollator:
    """Joins samples of :class:`videollama2.data.dataset.VideoInstructionDataset`.

    Lists of samples, the rows of :class:`videollama2.data.packing.PackedRows`, are joined into a single row (1, L), and
    :func:`videollama2.model.packed_attention.packed_inputs` in place of the mask separate its records.

    For the shapes see :func:`videollama2.processing.collate`. ``pad_token_id`` may be any id, since padding is masked.
    If several samples have the same sound, ``input_features`` has it once, and ``audio_index`` lists for each sound of
    the batch its place there. Images and videos are joined in this way only if ``shared`` has their kinds, with
    ``visual_index``. ``silent`` counts the videos without a sound track that are heard as silence.
    ``bad_samples`` is present only if records were skipped, and lists the reasons; it is removed before the batch
    reaches the model.
    """

    pad_token_id: int
    shared: tuple[str, ...] = (AUDIO,)

    def __call__(self, samples: Sequence[dict[str, Any]] | Sequence[list[dict[str, Any]]]) -> dict[str, Any]:
        rows = [row for row in samples if isinstance(row, list)]
        return self._packed([sample for row in rows for sample in row]) if rows else self._padded(samples)

    def _padded(self, samples: Sequence[Any]) -> dict[str, Any]:
        media, index = distinct_media([sample["media"] for sample in samples], self.shared)
        batch = collate(
            rows=[sample["input_ids"] for sample in samples],
            media=media,
            pad_token_id=self.pad_token_id,
            side="right",
            labels=[sample["labels"] for sample in samples],
        )
        bad = [sample["bad"] for sample in samples if "bad" in sample]
        silent = sum(sample.get("silent", 0) for sample in samples)
        audio_index = index.pop(AUDIO, None)
        more = {"bad_samples": bad, "silent": silent, "audio_index": audio_index, "visual_index": index}
        return {**batch, **{name: value for name, value in more.items() if value}}

    def _packed(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        joined = {
            "input_ids": [token for sample in samples for token in sample["input_ids"]],
            # The token before a record's first one belongs to another record and must not predict it.
            "labels": [label for sample in samples for label in (IGNORE_INDEX, *sample["labels"][1:])],
            "media": [medium for sample in samples for medium in sample["media"]],
            "silent": sum(sample.get("silent", 0) for sample in samples),
        }
        # What is left is one row of a batch without padding, so the mask says nothing. The model gets the boundaries of
        # the records instead.
        batch = self._padded([joined])
        del batch["attention_mask"]
        bad = [sample["bad"] for sample in samples if "bad" in sample]
        batch |= packed_inputs([len(sample["input_ids"]) for sample in samples])
        return {**batch, "bad_samples": bad} if bad else batch


_Media = list[list[tuple[str, torch.Tensor]]]


def distinct_media(media: _Media, kinds: Collection[str]) -> tuple[_Media, dict[str, list[int]]]:
    """Take repeated media out of a batch.

    Media are the same if they are one tensor: the dataset reads a file once for all records of a batch that name it.

    Args:
        media: for each sample ``(kind, values)`` in reading order.
        kinds: the kinds of which repeated media are taken out.

    Returns:
        the media without repeated ones; and for each kind of which some are repeated, the place of each medium of the
        batch among those that are left.
    """
    places: dict[str, dict[int, int]] = {kind: {} for kind in kinds}
    index: dict[str, list[int]] = {kind: [] for kind in kinds}
    kept: _Media = []
    for sample in media:
        own = []
        for kind, values in sample:
            if kind in places:
                # By identity, not by value: comparing pixels would cost more than it saves, and the dataset gives equal
                # media as one tensor.
                of_kind = places[kind]
                is_new = id(values) not in of_kind
                index[kind].append(of_kind.setdefault(id(values), len(of_kind)))
                if not is_new:
                    continue
            own.append((kind, values))
        # A sample whose media were all seen before keeps an empty list, so that samples and lists still correspond.
        kept.append(own)
    return kept, {kind: found for kind, found in index.items() if len(places[kind]) < len(found)}
