"""Makes training samples of records: ids with placeholders, labels, and pixels, filter banks or features of media."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import av
import torch

from videollama2.constants import IGNORE_INDEX
from videollama2.data.caches.features import FeatureStore
from videollama2.data.caches.media_cache import FrameCache
from videollama2.data.formats.contents import source_of
from videollama2.data.record import Record, RecordMedium
from videollama2.errors import ConfigError, DataError, MediaError, PromptError
from videollama2.media.audio import SoundSampling
from videollama2.media.frames import FrameSampling, frames_or_own
from videollama2.media.kinds import AUDIO, KINDS, VIDEO
from videollama2.media.video import count_frames
from videollama2.processing import ReadOptions, VideoLlama2Processor, expand_placeholders, media_tokens
from videollama2.prompting import training_ids

_SENTINELS = frozenset(kind.sentinel for kind in KINDS.values())

TrainingSample = dict[str, Any]
ReadParts = tuple[list[tuple[str, torch.Tensor]], bool]
"""The values of a medium's parts, and whether its sound is silence in place of a missing track."""


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
        features: where the features of media are, which take the place of pixels (T, patches, D) and filter banks
            (1, N, D); nothing is decoded then.
    """

    def __init__(
        self,
        processor: VideoLlama2Processor,
        max_length: int,
        stage: str = "finetune",
        skip_bad: bool = False,
        levels: bool = False,
        sampling: FrameSampling | None = None,
        media_cache: FrameCache | None = None,
        features: FeatureStore | None = None,
    ) -> None:
        self.media_cache = media_cache if levels else None
        self.features = features
        self.sampling = FrameSampling() if sampling is None else sampling
        self.processor = processor
        self.max_length = max_length
        self.stage = stage
        self.skip_bad = skip_bad
        self.levels = levels

    def samples(self, records: Sequence[Record | DataError]) -> list[TrainingSample]:
        """Return the samples of a batch; see :meth:`sample`."""
        read: dict[RecordMedium, ReadParts] = {}
        return [self.sample(record, read) for record in records]

    def sample(self, record: Record | DataError | None, read: dict[RecordMedium, ReadParts]) -> TrainingSample:
        """Read and tokenise one record; None becomes an empty sample, one token without a label.

        An error in the place of a record is raised, or replaced by an empty sample with its message.

        Args:
            read: the media that the batch has read so far.

        Raises:
            DataError: a file cannot be read, or no labelled token fits into ``max_length``; the message names the
                record.
        """
        if record is None:
            return self._nothing()
        try:
            if isinstance(record, DataError):
                raise record
            return self._sample(record, read)
        except (DataError, MediaError, PromptError) as error:
            message = str(error) if isinstance(record, DataError) else f"{record.name}: {error}"
            if self.skip_bad:
                return {**self._nothing(), "bad": message}
            raise DataError(message) from error

    def _nothing(self) -> TrainingSample:
        return {"input_ids": [self.processor.pad_token_id], "labels": [IGNORE_INDEX], "media": []}

    def _sample(self, record: Record, read: dict[RecordMedium, ReadParts]) -> TrainingSample:
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
        # In these ids a medium is one sentinel, as in the published code. Text is cut in this form, where a medium is
        # either there or not; only then do sentinels become placeholders.
        ids, labels = training_ids(record.conversations, record.kinds, self.processor.tokenizer, self.stage)
        kept = fit_length(ids, [self._tokens_of(medium) for medium in record.media], self.max_length)
        ids, labels = ids[:kept], labels[:kept]
        # What was cut off took its tags along, and media whose tags are gone are not read.
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
        frames = {VIDEO: self.frames(medium)} if medium.kind == VIDEO else {}
        try:
            return [media_tokens(config, kind, frames.get(kind)) for kind in medium.parts]
        except ConfigError as error:
            # A connector may need more frames than a short video has; the message names the flag or field that gave so
            # few.
            number = f"'num_frames' {medium.num_frames}" if medium.num_frames else f"{self.sampling.fps or 1:g} fps"
            raise DataError(f"{medium.path}: {number}: {error}") from error

    def frames(self, medium: RecordMedium) -> int:
        """Return the number of a video's frames that the model looks at."""
        if medium.num_frames is not None or not self.sampling.by_rate:
            return frames_or_own(medium.num_frames, self.processor.model_config.num_frames)
        if medium.counted is not None:
            return medium.counted
        return count_frames(source_of(medium.path), medium.sampling(self.sampling))

    def look(self, medium: RecordMedium, part: str) -> list[Any]:
        """Return, as a JSON value, how a part of a medium is read: its kind, and what the record says about it."""
        if part == AUDIO:
            return [AUDIO, medium.bounds, medium.va]
        return [part, asdict(self._clip(medium))] if part == VIDEO else [part]

    def _clip(self, medium: RecordMedium) -> FrameSampling:
        return medium.sampling(self.sampling).for_model(self.processor.model_config.num_frames)

    def _pixels(self, medium: RecordMedium) -> torch.Tensor:
        source, options = source_of(medium.path), ReadOptions(medium.sampling(self.sampling))
        read = self.processor.read_levels if self.levels else self.processor.read
        decode = partial(read, medium.kind, source, options)
        if self.media_cache is None or medium.kind != VIDEO:
            return decode()
        assert self.processor.transform is not None  # otherwise there would be no levels
        resized = [asdict(self.processor.first_resize()), self.processor.transform.crop_size]
        return self.media_cache.frames(source, [av.__version__, asdict(self._clip(medium)), resized], decode)

    def _read(self, medium: RecordMedium) -> ReadParts:
        """Return the values of a medium, and whether its sound is the silence that stands for a missing track."""
        read = self.read_part if self.features is None else self._kept_part
        parts = [read(medium, part) for part in medium.parts]
        return list(zip(medium.parts, (values for values, _ in parts), strict=True)), any(silent for _, silent in parts)

    def read_part(self, medium: RecordMedium, part: str) -> tuple[torch.Tensor, bool]:
        """Decode a part of a medium; return pixels or the filter bank, and whether that is of silence."""
        if part == AUDIO:
            options = ReadOptions(sound=SoundSampling(medium.start, medium.end), of_video=medium.va)
            fbank_1TF, note = self.processor.hear(source_of(medium.path), options)
            return fbank_1TF, note is not None
        return _of_counted_frames(self._pixels(medium), medium), False

    def _kept_part(self, medium: RecordMedium, part: str) -> tuple[torch.Tensor, bool]:
        assert self.features is not None  # the caller has looked
        features, silent = self.features.load(source_of(medium.path), self.look(medium, part))
        return features if part == AUDIO else _of_counted_frames(features, medium), silent


def _of_counted_frames(values: torch.Tensor, medium: RecordMedium) -> torch.Tensor:
    if medium.counted not in (None, len(values)):
        raise DataError(f"{medium.path}: has changed: {len(values)} frames, {medium.counted} when counted")
    return values


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
