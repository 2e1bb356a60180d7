"""Lists the formats of annotation files other than JSON, one row each: how one is recognised, read and identified."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from videollama2.data.formats.shards import is_shard, shard_digest, shard_rows
from videollama2.data.formats.tables import (
    dataset_digest,
    dataset_rows,
    is_dataset_folder,
    is_parquet,
    parquet_digest,
    parquet_rows,
)

AnyPath = str | os.PathLike[str]


@dataclass(frozen=True)
class AnnotationFormat:
    """One format of annotation files.

    Attributes:
        reads: whether a file has this format, by its name.
        rows: yields the unchecked rows of a file.
        digest: identifies the content of a file, without reading media that lie in it.
    """

    reads: Callable[[AnyPath], bool]
    rows: Callable[[AnyPath], Iterator[Any]]
    digest: Callable[[AnyPath], str]


ANNOTATION_FORMATS: dict[str, AnnotationFormat] = {
    "WebDataset tar shards": AnnotationFormat(is_shard, shard_rows, shard_digest),
    "Parquet files": AnnotationFormat(is_parquet, parquet_rows, parquet_digest),
    "folders of Hugging Face datasets": AnnotationFormat(is_dataset_folder, dataset_rows, dataset_digest),
}


def format_of(file: AnyPath) -> AnnotationFormat | None:
    """Return the format of a file; None for JSON, which :func:`~videollama2.data.formats.rows.read_rows` knows."""
    return next((each for each in ANNOTATION_FORMATS.values() if each.reads(file)), None)
