"""Turns records into training samples: ids with placeholders, labels, pixels and filter banks of sounds."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from itertools import islice
from typing import Any

import av
import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from videollama2 import __version__
from videollama2.commands import hides_bar
from videollama2.constants import IGNORE_INDEX
from videollama2.data.contents import source_of
from videollama2.data.index import Index
from videollama2.data.media_cache import MediaCache
from videollama2.data.record import Record, RecordMedium
from videollama2.data.records import PackedRecords
from videollama2.errors import ConfigError, DataError, MediaError, PromptError
from videollama2.media.audio import SoundSampling
from videollama2.media.frames import FrameSampling
from videollama2.media.kinds import AUDIO, KINDS, VIDEO
from videollama2.media.video import count_frames
from videollama2.processing import ReadOptions, VideoLlama2Processor, expand_placeholders, media_tokens
from videollama2.prompting import training_ids

_SENTINELS = frozenset(kind.sentinel for kind in KINDS.values())

_TEXTS_AT_ONCE = 1000
"""Number of texts tokenised in one call when only their lengths are needed."""
_EXACT, _MEASURED = 200_000, 20_000
"""Number of records of a set up to which all are tokenised for their lengths, and how many are of a larger one."""

Sample = dict[str, Any]
_Read = tuple[list[tuple[str, torch.Tensor]], bool]


class SampleReader:
    """Makes samples ``{"input_ids", "labels", "media"}`` of records.

    ``input_ids`` and ``labels`` are lists of equal length, at most ``max_length``; ``media`` lists ``(kind,
    pixels_TCHW)`` and ``("audio", fbank_1TF)`` in reading order, the sound of a video right behind the video. A video
    without a sound track is heard as silence; ``"silent"`` counts such videos. A file that several records of a batch
    name is read once for all of them.

    Args:
        processor: processor of the model to be trained; its configuration gives frames, connector and image shape.
        max_length: maximum tokens of one sample, including those of media.
        stage: see :func:`videollama2.prompting.training_ids`.
        skip_bad: replace unusable records by empty samples, with the reason under ``"bad"``, instead of raising an
            error. A record is never replaced by another one.
        levels: give frames as uint8 levels, which are normalised by the model
            (:meth:`videollama2.processing.VideoLlama2Processor.read_levels`), instead of as float32 pixels.
        sampling: the choice of a video's frames; by default as many as the model has, evenly spread.
        media_cache: where the levels of decoded videos are kept.
    """

    def __init__(
        self,
        processor: VideoLlama2Processor,
        max_length: int,
        stage: str = "finetune",
        skip_bad: bool = False,
        levels: bool = False,
        sampling: FrameSampling | None = None,
        media_cache: MediaCache | None = None,
    ) -> None:
        self.media_cache = media_cache if levels else None
        self.sampling = FrameSampling() if sampling is None else sampling
        self.processor = processor
        self.max_length = max_length
        self.stage = stage
        self.skip_bad = skip_bad
        self.levels = levels

    def samples(self, records: Sequence[Record]) -> list[Sample]:
        """Return the samples of a batch; see :meth:`sample`."""
        read: dict[RecordMedium, _Read] = {}
        return [self.sample(record, read) for record in records]

    def sample(self, record: Record | None, read: dict[RecordMedium, _Read]) -> Sample:
        """Read and tokenise one record; None becomes an empty sample, one token without a label.

        Args:
            read: the media that the batch has read so far.

        Raises:
            DataError: a file cannot be read, or no labelled token fits into ``max_length``; the message names the
                record.
        """
        if record is None:
            return self._nothing()
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
        frames = {VIDEO: self._frames(medium)}  # of other kinds, the number is the configuration's
        try:
            return [media_tokens(config, kind, frames.get(kind)) for kind in medium.parts]
        except ConfigError as error:
            number = f"'num_frames' {medium.num_frames}" if medium.num_frames else f"{self.sampling.fps or 1:g} fps"
            raise DataError(f"{medium.path}: {number}: {error}") from error

    def _frames(self, medium: RecordMedium) -> int | None:
        """Return the number of a video's frames; None if it is the model's."""
        if medium.num_frames is not None or medium.kind != VIDEO or not self.sampling.by_rate:
            return medium.num_frames
        if medium.counted is not None:
            return medium.counted
        return count_frames(source_of(medium.path), medium.sampling(self.sampling))

    def _pixels(self, medium: RecordMedium) -> torch.Tensor:
        source, options = source_of(medium.path), ReadOptions(medium.sampling(self.sampling))
        read = self.processor.read_levels if self.levels else self.processor.read
        decode = partial(read, medium.kind, source, options)
        if self.media_cache is None or medium.kind != VIDEO:
            return decode()
        assert self.processor.transform is not None  # otherwise there would be no levels
        sampling = options.sampling.for_model(self.processor.model_config.num_frames)
        resized = [asdict(self.processor.first_resize()), self.processor.transform.crop_size]
        return self.media_cache.frames(source, [av.__version__, asdict(sampling), resized], decode)

    def _read(self, medium: RecordMedium) -> _Read:
        """Return the values of a medium, and whether its sound is the silence that stands for a missing track."""
        values: list[tuple[str, torch.Tensor]] = []
        silent = False
        if medium.kind != AUDIO:
            pixels_TCHW = self._pixels(medium)
            if medium.counted not in (None, len(pixels_TCHW)):
                raise DataError(f"{medium.path}: has changed: {len(pixels_TCHW)} frames, {medium.counted} when counted")
            values.append((medium.kind, pixels_TCHW))
        if AUDIO in medium.parts:
            options = ReadOptions(sound=SoundSampling(medium.start, medium.end), of_video=medium.va)
            fbank_1TF, note = self.processor.hear(source_of(medium.path), options)
            values.append((AUDIO, fbank_1TF))
            silent = note is not None
        return values, silent


class VideoInstructionDataset(SampleReader, Dataset):
    """A map-style dataset of the samples of a :class:`SampleReader`.

    The index ``len(dataset)`` returns an empty sample. Samplers fill the last batch with it, so that no record is seen
    twice and every process has the same number of batches.

    Args:
        records: from :func:`videollama2.data.records.read_records`.
        index, contents: where lengths are kept, and names of the content of the records
            (:attr:`videollama2.data.records.PackedRecords.content`).
        progress: show a progress bar while texts are tokenised, if this takes longer than a few seconds.
        others: see :class:`SampleReader`.

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
        sampling: FrameSampling | None = None,
        media_cache: MediaCache | None = None,
        progress: bool = False,
    ) -> None:
        super().__init__(processor, max_length, stage, skip_bad, levels, sampling, media_cache)
        self.progress = progress
        if not records:
            raise DataError("the training set has no record")
        self.records = records
        self.index = index if contents and None not in contents else None
        self.contents = list(contents)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        """Read and tokenise one record; see :meth:`SampleReader.sample` for the errors raised."""
        return self._item(index, {})

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Return the samples of a batch; the data loader calls this if there is such a method."""
        read: dict[RecordMedium, _Read] = {}
        return [self._item(index, read) for index in indices]

    def _item(self, index: int, read: dict[RecordMedium, _Read]) -> Sample:
        return self.sample(None if index == len(self.records) else self.records[index], read)

    @cached_property
    def media_lengths(self) -> Sequence[int]:
        """Number of tokens of each record's images, videos and sounds."""
        counts = array("q")
        for part in getattr(self.records, "datasets", [self.records]):
            counts.frombytes(self._media_lengths(part).tobytes())
        return counts

    def _media_lengths(self, records: Sequence[Record]) -> np.ndarray:
        shapes, shape_of = records.shapes if isinstance(records, PackedRecords) else ([], ())
        try:
            of_shape = [
                sum(
                    self._tokens_of(RecordMedium(kind, "", va=va, num_frames=frames, counted=counted))
                    for kind, va, frames, counted in shape
                )
                for shape in shapes
            ]
        except (DataError, MediaError):
            # The model takes no such medium, or the frames of a file must be counted: this needs the record.
            of_shape = []
        if of_shape:
            return np.array(of_shape, np.int64)[np.asarray(shape_of)]
        return np.array([sum(map(self._tokens_of, record.media)) for record in records], np.int64)

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

    def _lengths(self) -> np.ndarray:
        parts = getattr(self.records, "datasets", [self.records])
        texts = np.concatenate([self._text_lengths(part) for part in parts])
        return np.minimum(np.asarray(self.media_lengths) + texts, self.max_length)

    def _text_lengths(self, records: Sequence[Record]) -> np.ndarray:
        """Return the number of text tokens of each record, of large sets as estimated from the records' sizes.

        A million texts take a tokenizer minutes. Batches are grouped as well by a linear fit of tokens to sizes, with
        an offset for each shape of media, over :data:`_MEASURED` records that lie evenly in the set.
        """
        if not isinstance(records, PackedRecords) or len(records) <= _EXACT:
            return self._tokenised(records, range(len(records)))
        places = np.linspace(0, len(records) - 1, _MEASURED).astype(int)
        tokens = self._tokenised(records, places)
        sizes, shape_of = records.sizes, np.asarray(records.shapes[1])
        shapes, rank = np.unique(shape_of[places], return_inverse=True)
        design = np.concatenate([sizes[places, None], np.eye(len(shapes))[rank]], axis=1)
        slope, *offsets = np.linalg.lstsq(design, tokens, rcond=None)[0]
        of_shape = np.full(int(shape_of.max()) + 1, np.mean(offsets))
        of_shape[shapes] = offsets
        return np.maximum(np.rint(slope * sizes + of_shape[shape_of]), 1).astype(np.int64)

    def _tokenised(self, records: Sequence[Record], places: Iterable[int]) -> np.ndarray:
        lengths = array("q")
        shown = tqdm(places, desc="counting tokens", unit=" records", delay=2, disable=hides_bar(self.progress))
        texts = ("\n".join(turn["value"] for turn in records[int(place)].conversations) for place in shown)
        while chunk := list(islice(texts, _TEXTS_AT_ONCE)):
            lengths.extend(map(len, self.processor.tokenizer(chunk, add_special_tokens=False).input_ids))
        return np.array(lengths)


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
