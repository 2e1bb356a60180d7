"""Turns records into training samples: ids with placeholders, labels, pixels and filter banks of sounds."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch.utils.data import Dataset

from videollama2 import __version__
from videollama2.constants import IGNORE_INDEX
from videollama2.data.index import Index
from videollama2.data.record import Record, RecordMedium
from videollama2.data.shards import source_of
from videollama2.errors import ConfigError, DataError, MediaError, PromptError
from videollama2.media.audio import SoundSampling
from videollama2.media.kinds import AUDIO, KINDS, VIDEO
from videollama2.processing import ReadOptions, VideoLlama2Processor, expand_placeholders, media_tokens
from videollama2.prompting import training_ids

_SENTINELS = frozenset(kind.sentinel for kind in KINDS.values())

_TEXTS_AT_ONCE = 1000
"""Number of texts tokenised in one call when only their lengths are needed."""

Sample = dict[str, Any]
_Read = tuple[list[tuple[str, torch.Tensor]], bool]


class VideoInstructionDataset(Dataset):
    """A map-style dataset of ``{"input_ids", "labels", "media"}``.

    ``input_ids`` and ``labels`` are lists of equal length, at most ``max_length``; ``media`` lists ``(kind,
    pixels_TCHW)`` and ``("audio", fbank_1TF)`` in reading order, the sound of a video right behind the video. A video
    without a sound track is heard as silence; ``"silent"`` counts such videos. A file that several records of a batch
    name is read once for all of them.

    The index ``len(dataset)`` returns an empty sample: one token without a label. Samplers fill the last batch with it,
    so that no record is seen twice and every process has the same number of batches. A record that ``skip_bad`` leaves
    out is also replaced by an empty sample, with the reason under ``"bad"``, and never by another record.

    Args:
        records: from :func:`videollama2.data.records.read_records`.
        processor: processor of the model to be trained; its configuration gives frames, connector and image shape.
        max_length: maximum tokens of one sample, including those of media.
        stage: see :func:`videollama2.prompting.training_ids`.
        skip_bad: replace unusable records by empty samples instead of raising an error.
        levels: give frames as uint8 levels, which are normalised by the model
            (:meth:`videollama2.processing.VideoLlama2Processor.read_levels`), instead of as float32 pixels.
        index, contents: where lengths are kept, and names of the content of the records
            (:attr:`videollama2.data.records.PackedRecords.content`).

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
        levels: bool = False,
        index: Index | None = None,
        contents: Sequence[str | None] = (),
    ) -> None:
        if not records:
            raise DataError("the training set has no record")
        self.records = records
        self.processor = processor
        self.max_length = max_length
        self.stage = stage
        self.skip_bad = skip_bad
        self.levels = levels
        self.index = index if contents and None not in contents else None
        self.contents = list(contents)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        """Read and tokenise one record.

        Raises:
            DataError: a file cannot be read, or no labelled token fits into ``max_length``; the message names the
                record.
        """
        return self._item(index, {})

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Return the samples of a batch; the data loader calls this if there is such a method."""
        read: dict[RecordMedium, _Read] = {}
        return [self._item(index, read) for index in indices]

    def _item(self, index: int, read: dict[RecordMedium, _Read]) -> Sample:
        """Return one sample; ``read`` holds the media that the batch has read so far."""
        if index == len(self.records):
            return self._nothing()
        record = self.records[index]
        try:
            return self._sample(record, read)
        except (DataError, MediaError, PromptError) as error:
            message = f"{record.name}: {error}"
            if self.skip_bad:
                return {**self._nothing(), "bad": message}
            raise DataError(message) from error

    def _nothing(self) -> Sample:
        return {"input_ids": [self.processor.pad_token_id], "labels": [IGNORE_INDEX], "media": []}

    def _sample(self, record: Record, read: dict[RecordMedium, _Read]) -> Sample:
        ids, labels, media = self.tokens(record)
        for medium in media:
            if medium not in read:
                read[medium] = self._read(medium)
        values = [part for medium in media for part in read[medium][0]]
        silent = sum(read[medium][1] for medium in media)
        return {"input_ids": ids, "labels": labels, "media": values, **({"silent": silent} if silent else {})}

    def tokens(self, record: Record) -> tuple[list[int], list[int], tuple[RecordMedium, ...]]:
        """Return ids with placeholders, labels, and the media that fit into ``max_length``; no file is read.

        Raises:
            DataError: no labelled token is left.
        """
        config = self.processor.model_config
        ids, labels = training_ids(record.conversations, record.kinds, self.processor.tokenizer, self.stage)
        kept = fit_length(ids, [self._tokens_of(medium) for medium in record.media], self.max_length)
        ids, labels = ids[:kept], labels[:kept]
        media = record.media[: sum(token in _SENTINELS for token in ids)]
        ids, labels = _with_sounds(ids, labels, media)
        counts = [count for medium in media for count in self._counts_of(medium)]
        ids, labels = expand_placeholders(ids, counts, config, labels)
        # Nothing precedes the first token, so it is never predicted and its label does not count.
        if all(label == IGNORE_INDEX for label in labels[1:]):
            raise DataError(f"no labelled token within the {self.max_length} tokens of model_max_length")
        return ids, labels, media

    def _tokens_of(self, medium: RecordMedium) -> int:
        return sum(self._counts_of(medium))

    def _counts_of(self, medium: RecordMedium) -> list[int]:
        """Return the number of tokens of each part of a medium."""
        config = self.processor.model_config
        frames = {VIDEO: medium.num_frames}  # of other kinds, the number is the configuration's
        try:
            return [media_tokens(config, kind, frames.get(kind)) for kind in medium.parts]
        except ConfigError as error:
            raise DataError(f"{medium.path}: 'num_frames' {medium.num_frames}: {error}") from error

    def _read(self, medium: RecordMedium) -> _Read:
        """Return the values of a medium, and whether its sound is the silence that stands for a missing track."""
        values: list[tuple[str, torch.Tensor]] = []
        silent = False
        if medium.kind != AUDIO:
            read = self.processor.read_levels if self.levels else self.processor.read
            options = ReadOptions.of(medium.kind, medium.options)
            values.append((medium.kind, read(medium.kind, source_of(medium.path), options)))
        if AUDIO in medium.parts:
            options = ReadOptions(sound=SoundSampling(medium.start, medium.end), of_video=medium.va)
            fbank_1TF, note = self.processor.hear(source_of(medium.path), options)
            values.append((AUDIO, fbank_1TF))
            silent = note is not None
        return values, silent

    @cached_property
    def media_lengths(self) -> Sequence[int]:
        """Number of tokens of each record's images, videos and sounds."""
        return array("q", (sum(map(self._tokens_of, record.media)) for record in self.records))

    @cached_property
    def lengths(self) -> Sequence[int]:
        """Number of tokens of each record, including those of media, by which batches are grouped.

        The text is counted without the chat template, which adds about the same number to every record.
        """
        return self.kept("lengths", self._lengths)

    def kept(self, name: str, count: Callable[[], Iterable[int]]) -> Sequence[int]:
        """Return a number for each record; it is computed once for the same records, tokenizer and configuration."""
        if self.index is None:
            return array("q", count())
        tokenizer = self.processor.tokenizer
        depends_on = [
            *(name, __version__, self.contents, self.stage, self.max_length, self.skip_bad),
            *(tokenizer.chat_template, hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()),
            self.processor.model_config.to_json_string(use_diff=False),
        ]
        return self.index.numbers(depends_on, count)

    def _lengths(self) -> Iterator[int]:
        lengths = array("q")
        texts = ("\n".join(turn["value"] for turn in record.conversations) for record in self.records)
        while chunk := list(islice(texts, _TEXTS_AT_ONCE)):
            lengths.extend(map(len, self.processor.tokenizer(chunk, add_special_tokens=False).input_ids))
        pairs = zip(self.media_lengths, lengths, strict=True)
        return (min(media + text, self.max_length) for media, text in pairs)


def _with_sounds(
    ids: Sequence[int], labels: Sequence[int], media: Sequence[RecordMedium]
) -> tuple[list[int], list[int]]:
    """Return ids and labels with the sentinel of a sound right behind that of each video that is heard."""
    remaining = iter(media)
    pairs: list[tuple[int, int]] = []
    for token, label in zip(ids, labels, strict=True):
        pairs.append((token, label))
        if token in _SENTINELS and next(remaining).va:
            pairs.append((KINDS[AUDIO].sentinel, IGNORE_INDEX))
    return [token for token, _ in pairs], [label for _, label in pairs]


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
