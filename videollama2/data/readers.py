"""The forms of annotation files other than JSON, one row each: how one is recognised, read and identified."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from videollama2.data.shards import is_shard, shard_digest, shard_rows
from videollama2.data.tables import (
    dataset_digest,
    dataset_rows,
    is_dataset_folder,
    is_parquet,
    parquet_digest,
    parquet_rows,
)

AnyPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Reader:
    """One form of annotation files.

    Attributes:
        reads: whether a file has this form, by its name.
        rows: yields the unchecked rows of a file.
        digest: identifies the content of a file, without reading media that lie in it.
    """

    reads: Callable[[AnyPath], bool]
    rows: Callable[[AnyPath], Iterator[Any]]
    digest: Callable[[AnyPath], str]


READERS: dict[str, Reader] = {
    "WebDataset tar shards": Reader(is_shard, shard_rows, shard_digest),
    "Parquet files": Reader(is_parquet, parquet_rows, parquet_digest),
    "folders of Hugging Face datasets": Reader(is_dataset_folder, dataset_rows, dataset_digest),
}


def reader_of(file: AnyPath) -> Reader | None:
    """Return the reader of a file; None for JSON, whose forms :func:`videollama2.data.rows.read_rows` distinguishes."""
    return next((reader for reader in READERS.values() if reader.reads(file)), None)
