"""Offers training samples as a map-style dataset, with their lengths."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import islice

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from videollama2 import __version__
from videollama2.commands import hides_bar
from videollama2.data.caches.features import FeatureStore
from videollama2.data.caches.index import Index
from videollama2.data.caches.media_cache import FrameCache
from videollama2.data.record import Record, RecordMedium
from videollama2.data.records import PackedRecords
from videollama2.data.samples import ReadParts, SampleReader, TrainingSample
from videollama2.errors import DataError, MediaError
from videollama2.media.frames import FrameSampling
from videollama2.processing import VideoLlama2Processor

_TEXTS_AT_ONCE = 1000
"""Number of texts tokenised in one call when only their lengths are needed."""
_EXACT, _MEASURED = 200_000, 20_000
"""Number of records of a set up to which all are tokenised for their lengths, and how many are of a larger one."""


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
        media_cache: FrameCache | None = None,
        features: FeatureStore | None = None,
        progress: bool = False,
    ) -> None:
        super().__init__(processor, max_length, stage, skip_bad, levels, sampling, media_cache, features)
        self.progress = progress
        if not records:
            raise DataError("the training set has no record")
        self.records = records
        self.index = index if contents and None not in contents else None
        self.contents = list(contents)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> TrainingSample:
        """Read and tokenise one record; see :meth:`SampleReader.sample` for the errors raised."""
        return self._item(index, {})

    def __getitems__(self, indices: Sequence[int]) -> list[TrainingSample]:
        """Return the samples of a batch; the data loader calls this if there is such a method."""
        read: dict[RecordMedium, ReadParts] = {}
        return [self._item(index, read) for index in indices]

    def _item(self, index: int, read: dict[RecordMedium, ReadParts]) -> TrainingSample:
        return self.sample(None if index == len(self.records) else self.records[index], read)

    @cached_property
    def media_lengths(self) -> Sequence[int]:
        """Number of tokens of each record's images, videos and sounds."""
        counts = array("q")
        for part in getattr(self.records, "datasets", [self.records]):
            counts.frombytes(self._media_lengths(part).tobytes())
        return counts

    def _media_lengths(self, records: Sequence[Record]) -> np.ndarray:
        # A set of a million records has a handful of shapes (kinds of media, sound, frames), so tokens are counted once
        # for each and then looked up.
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
        # The entry is named by all that a length depends on. A new tokenizer, template, connector or number of frames
        # gives another name, and the length of the old ones is not read.
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
        # Least squares for tokens = slope * size + offset of the shape. Shapes that were not measured get the mean
        # offset.
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
