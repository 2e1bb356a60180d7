"""Turns records into training samples: ids with placeholders, labels and pixels."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch.utils.data import Dataset

from videollama2.constants import IGNORE_INDEX
from videollama2.data.records import Medium, Record
from videollama2.errors import DataError, MediaError, PromptError
from videollama2.media.kinds import KINDS
from videollama2.processing import VideoLlama2Processor, expand_placeholders, media_tokens
from videollama2.prompting import training_ids

_SENTINELS = frozenset(kind.sentinel for kind in KINDS.values())

_TEXTS_AT_ONCE = 1000
"""Number of texts tokenised in one call when only their lengths are needed."""

Sample = dict[str, Any]


class VideoInstructionDataset(Dataset):
    """A map-style dataset of ``{"input_ids", "labels", "media"}``.

    ``input_ids`` and ``labels`` are lists of equal length, at most ``max_length``; ``media`` lists ``(kind,
    pixels_TCHW)`` in reading order.

    The index ``len(dataset)`` returns an empty sample: one token without a label. Samplers fill the last batch with it,
    so that no record is seen twice and every process has the same number of batches. A record that ``skip_bad`` leaves
    out is also replaced by an empty sample, with the reason under ``"bad"``, and never by another record.

    Args:
        records: from :func:`videollama2.data.records.read_records`.
        processor: processor of the model to be trained; its configuration gives frames, connector and image shape.
        max_length: maximum tokens of one sample, including visual ones.
        stage: see :func:`videollama2.prompting.training_ids`.
        skip_bad: replace unusable records by empty samples instead of raising an error.

    Raises:
        DataError: there are no records.
    """

    def __init__(
        self,
        records: Sequence[Record],
        processor: VideoLlama2Processor,
        max_length: int,
        stage: str = "finetune",
        skip_bad: bool = False,
    ) -> None:
        if not records:
            raise DataError("the training set has no record")
        self.records = records
        self.processor = processor
        self.max_length = max_length
        self.stage = stage
        self.skip_bad = skip_bad

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        """Read and tokenise one record.

        Raises:
            DataError: a file cannot be read, or no labelled token fits into ``max_length``; the message names the
                record.
        """
        if index == len(self.records):
            return self._nothing()
        record = self.records[index]
        try:
            return self._sample(record)
        except (DataError, MediaError, PromptError) as error:
            message = f"{record.name}: {error}"
            if self.skip_bad:
                return {**self._nothing(), "bad": message}
            raise DataError(message) from error

    def _nothing(self) -> Sample:
        return {"input_ids": [self.processor.pad_token_id], "labels": [IGNORE_INDEX], "media": []}

    def _sample(self, record: Record) -> Sample:
        ids, labels, media = self.tokens(record)
        return {"input_ids": ids, "labels": labels, "media": [(m.kind, self._pixels(m)) for m in media]}

    def tokens(self, record: Record) -> tuple[list[int], list[int], tuple[Medium, ...]]:
        """Return ids with placeholders, labels, and the media that fit into ``max_length``; no file is read.

        Raises:
            DataError: no labelled token is left.
        """
        config = self.processor.model_config
        ids, labels = training_ids(record.conversations, record.kinds, self.processor.tokenizer, self.stage)
        counts = [media_tokens(config, kind) for kind in record.kinds]
        kept = fit_length(ids, counts, self.max_length)
        ids, labels = ids[:kept], labels[:kept]
        media = record.media[: sum(token in _SENTINELS for token in ids)]
        ids, labels = expand_placeholders(ids, counts[: len(media)], config, labels)
        # Nothing precedes the first token, so it is never predicted and its label does not count.
        if all(label == IGNORE_INDEX for label in labels[1:]):
            raise DataError(f"no labelled token within the {self.max_length} tokens of model_max_length")
        return ids, labels, media

    def _pixels(self, medium: Medium) -> torch.Tensor:
        return self.processor[medium.kind](medium.path, **medium.options)

    @cached_property
    def visual_lengths(self) -> Sequence[int]:
        """Number of visual tokens of each record."""
        config = self.processor.model_config
        return array("q", (sum(media_tokens(config, kind) for kind in record.kinds) for record in self.records))

    @cached_property
    def lengths(self) -> Sequence[int]:
        """Number of tokens of each record, including visual ones, by which batches are grouped.

        The text is counted without the chat template, which adds about the same number to every record.
        """
        lengths = array("q")
        texts = ("\n".join(turn["value"] for turn in record.conversations) for record in self.records)
        while chunk := list(islice(texts, _TEXTS_AT_ONCE)):
            lengths.extend(map(len, self.processor.tokenizer(chunk, add_special_tokens=False).input_ids))
        pairs = zip(self.visual_lengths, lengths, strict=True)
        return array("q", (min(visual + text, self.max_length) for visual, text in pairs))


def fit_length(ids: Sequence[int], counts: Sequence[int], max_length: int) -> int:
    """Return how many of ``ids`` fit into ``max_length`` without cutting through a medium.

    Media are sentinels in ``ids``, which will expand to ``counts`` tokens each.
    """
    remaining = iter(counts)
    length = 0
    for position, token in enumerate(ids):
        length += next(remaining) if token in _SENTINELS else 1
        if length > max_length:
            return position
    return len(ids)
