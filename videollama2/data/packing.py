"""Packs records into rows of nearly equal length, so that no computation is spent on padding."""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from videollama2.commands import hides_bar
from videollama2.data.dataset import VideoInstructionDataset
from videollama2.data.samples import TrainingSample
from videollama2.errors import DataError

WINDOW = 10_000
"""Number of records that are packed together. More means fuller rows, but less randomness and more time."""
NEARLY_FULL = 0.95
"""Share of a row from which it is not packed again."""


class PackedRows(Dataset):
    """A map-style dataset of rows, each a list of samples of ``dataset`` that have at most ``size`` tokens together.

    The index ``len(rows)`` returns a row with one empty sample, which fills the last batch. Rows are the same in every
    epoch; the sampler shuffles them.

    Args:
        dataset: the samples; none may have more than ``size`` tokens.
        sizes: number of records of each set, if sets are to be mixed by weight: a row then has records of one set.
        size: maximum tokens of a row.
        seed: decides which records share a row.
        progress: show a progress bar while texts are tokenised, if this takes longer than a few seconds.

    Attributes:
        sizes: number of rows of each set.
        fill: share of the rows' tokens that are used.
    """

    def __init__(
        self, dataset: VideoInstructionDataset, sizes: Sequence[int], size: int, seed: int = 0, progress: bool = False
    ) -> None:
        self.dataset = dataset
        self.sizes: list[int] = []
        self._records, self._starts = array("q"), array("q", [0])
        # Lengths must be exact here, since a row has no room for one token more. Batches by length get along with
        # estimates.
        lengths = dataset.kept("token counts", partial(token_counts, dataset, progress))
        generator = torch.Generator().manual_seed(seed)
        first = 0
        for count in sizes:
            before = len(self)
            # All rows lie in one array, and a second one has where each begins: lists of lists would take a hundred
            # bytes for each record.
            for row in pack_rows(lengths[first : first + count], size, generator):
                self._records.extend(first + index for index in row)
                self._starts.append(len(self._records))
            self.sizes.append(len(self) - before)
            first += count
        self.fill = sum(lengths) / (size * len(self))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> list[TrainingSample]:
        """Read the records of a row; see :meth:`VideoInstructionDataset.__getitem__` for the errors raised."""
        if index == len(self):
            return [self.dataset[len(self.dataset)]]
        return self.dataset.__getitems__(self.row(index))

    def row(self, index: int) -> Sequence[int]:
        """Return the indices of the records in a row."""
        return self._records[self._starts[index] : self._starts[index + 1]]


def token_counts(dataset: VideoInstructionDataset, progress: bool = False) -> Sequence[int]:
    """Return the exact number of tokens of each sample; 1 for records that are left out.

    Raises:
        DataError: a record cannot be used, and the dataset leaves none out; the message names it.
    """
    counts = array("q")
    for record in tqdm(dataset.records, desc="counting tokens", unit=" records", delay=2, disable=hides_bar(progress)):
        try:
            counts.append(len(dataset.tokens(record)[0]))
        except DataError as error:
            if not dataset.skip_bad:
                raise DataError(f"{record.name}: {error}") from error
            counts.append(1)
    return counts


def pack_rows(lengths: Sequence[int], size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Yield rows of indices into ``lengths`` such that the lengths of a row sum to at most ``size``.

    Records are shuffled and cut into windows of :data:`WINDOW`. In each, every record is put, longest first, into the
    fullest row that has room for it (best fit decreasing, which needs at most 11/9 of the fewest rows possible plus a
    constant; Johnson et al. 1974, SIAM J. Comput. 3). Rows that are not nearly full are packed again with the next
    window.
    """
    # Without the shuffle, rows would hold neighbours of the file, which are often about one source. Windows bound the
    # time, and let chance and not length alone decide which records meet.
    order = torch.randperm(len(lengths), generator=generator).tolist()
    left: list[int] = []
    for start in range(0, len(order), WINDOW):
        rows = _best_fit([*left, *order[start : start + WINDOW]], lengths, size)
        left = []
        is_last = start + WINDOW >= len(order)
        for row in rows:
            used = sum(lengths[index] for index in row)
            # Rows with much room are opened again, and their records tried with those of the next window. The bound
            # keeps a set of awkward lengths (all just above half a row) from being packed again and again.
            if is_last or used >= NEARLY_FULL * size or len(left) >= WINDOW:
                yield row
            else:
                left += row


def _best_fit(records: Sequence[int], lengths: Sequence[int], size: int) -> list[list[int]]:
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # the room in each row and the row's number, in ascending order
    for record in sorted(records, key=lambda index: -lengths[index]):
        length = lengths[record]
        # The first row in ascending order that has room is the fullest one, and binary search finds it in a list of
        # thousands.
        place = bisect_left(rooms, (length, 0))
        if place < len(rooms):
            room, number = rooms.pop(place)
        else:
            room, number = size, len(rows)
            rows.append([])
        rows[number].append(record)
        insort(rooms, (room - length, number))
    return rows
