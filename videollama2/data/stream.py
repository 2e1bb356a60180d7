"""Streams records: they are read while a run uses them, so that neither their number nor all of them need to be known.

The order is drawn where the records are read, by a sampler that yields records themselves; the loader's workers only
read their media. Batches therefore depend on neither the number of workers nor that of processes, and a resumed run
reads the records of the steps it has done, but none of their media.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset, Sampler

from videollama2.data.formats.rows import read_rows
from videollama2.data.formats.storage import folder_of
from videollama2.data.record import Record, parse_record
from videollama2.data.records import no_records
from videollama2.data.samples import SampleReader, TrainingSample
from videollama2.errors import DataError, MediaError

Streamed = Record | DataError
"""A record, or why its media cannot be read."""


@dataclass(frozen=True)
class RecordFiles:
    """Annotation files to be read one record after the other; for the arguments see ``read_sets``."""

    files: Sequence[str]
    data_folder: str | None = None
    va: Sequence[bool] = (False,)

    def records(self, number: int, problem: Callable[[str], None] | None = None) -> Iterator[Streamed]:
        """Yield the records of one file in order; of a file without any row, none.

        Args:
            number: place of the file among ``files``.
            problem: called with each rule that a record breaks, which is then left out. Where its media cannot be read,
                the error is yielded in its place: media may be missing on one machine only, and all processes must
                have the same records at the same places.

        Raises:
            DataError: the file cannot be read, or has rows and no usable record; or, without ``problem``, a record
                breaks a rule.
        """
        file = self.files[number]
        folder = folder_of(file) if self.data_folder is None else os.fspath(self.data_folder)
        heard = self.va[number % len(self.va)]
        found, place = False, -1
        for place, raw in enumerate(read_rows(file)):
            try:
                record = parse_record(raw, place, file, folder, heard)
            except DataError as error:
                if problem is None:
                    raise
                if isinstance(error.__cause__, MediaError):
                    yield error
                else:
                    problem(str(error))
                continue
            found = True
            yield record
        if place >= 0 and not found:
            raise DataError(f"{file}: there is no usable record in this file")

    def empty(self, problem: Callable[[str], None] | None = None) -> list[str]:
        """Return the files without any row, after reading the first record of each file; see :meth:`records`."""
        return [file for number, file in enumerate(self.files) if next(self.records(number, problem), None) is None]


class StreamOrder(Sampler[Any]):
    """Yields records without end, in an order that depends on the seed alone.

    Without weights, a pass takes the files in random order and every record once. With weights, each record comes from
    a file that is drawn by weight, and each file begins anew when it ends. In either case a buffer is filled, and each
    record that is read takes the place of a random one of the buffer, which is used. Files without any row are passed
    over. Iterating raises a DataError if a pass finds no record at all, or if a file with a weight has none.

    Args:
        source: the files.
        weights: share of each file, in any unit; None takes every record once per pass.
        buffer: number of records among which the next one is drawn; 1 keeps the order of the files.
        seed: decides the order.
        problem: see :meth:`RecordFiles.records`.
    """

    def __init__(
        self,
        source: RecordFiles,
        weights: Sequence[float] | None = None,
        buffer: int = 1000,
        seed: int = 0,
        problem: Callable[[str], None] | None = None,
    ) -> None:
        self.source, self.weights, self.buffer, self.seed, self.problem = source, weights, buffer, seed, problem

    def __iter__(self) -> Iterator[Streamed]:
        draw = random.Random(self.seed)
        if self.weights is not None:
            yield from self._shuffled(self._mixed(self.weights, random.Random(draw.random())), draw)
        while True:
            # The buffer is emptied at the end of a pass, so every record is used once before any comes again.
            records = _some(self._pass(random.Random(draw.random())), self.source.files)
            yield from self._shuffled(records, draw)

    def _pass(self, draw: random.Random) -> Iterator[Streamed]:
        numbers = list(range(len(self.source.files)))
        if self.buffer > 1:
            draw.shuffle(numbers)
        for number in numbers:
            yield from self.source.records(number, self.problem)

    def _mixed(self, weights: Sequence[float], draw: random.Random) -> Iterator[Streamed]:
        numbers = range(len(self.source.files))
        # A file is opened when its first record is drawn and goes on from there; the weights alone decide how often.
        endless = [self._again_and_again(number) for number in numbers]
        while True:
            yield next(endless[draw.choices(numbers, weights)[0]])

    def _again_and_again(self, number: int) -> Iterator[Streamed]:
        while True:
            yield from _some(self.source.records(number, self.problem), [self.source.files[number]])

    def _shuffled(self, records: Iterator[Streamed], draw: random.Random) -> Iterator[Streamed]:
        kept: list[Streamed] = []
        for record in records:
            if len(kept) < self.buffer:
                kept.append(record)
                continue
            # The new record and a random one of the buffer change places; a record may wait long, but all are used in
            # the end.
            place = draw.randrange(self.buffer)
            kept[place], record = record, kept[place]
            yield record
        draw.shuffle(kept)
        yield from kept


def _some(records: Iterator[Streamed], files: Sequence[str]) -> Iterator[Streamed]:
    """Yield the records of files; raise a DataError if there are none, since repeating them would never end."""
    found = False
    for record in records:
        found = True
        yield record
    if not found:
        raise no_records(files)


class StreamedRecords(SampleReader, Dataset):
    """A dataset whose indices are the records themselves, as :class:`StreamOrder` yields them; it has no length.

    Args:
        order: the records and their order.
        args, kwargs: see :class:`~videollama2.data.samples.SampleReader`.
    """

    def __init__(self, order: StreamOrder, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.order = order

    def __getitem__(self, record: Streamed) -> TrainingSample:
        """Read and tokenise a record; see :meth:`~videollama2.data.samples.SampleReader.sample` for the errors."""
        return self.sample(record, {})

    def __getitems__(self, records: Sequence[Streamed]) -> list[TrainingSample]:
        """Return the samples of a batch; the data loader calls this if there is such a method."""
        return self.samples(records)
