"""Checks whether the files named by records can be read. Each file is opened once, however many records name it."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial

from tqdm import tqdm

from videollama2.commands import hides_bar
from videollama2.data.records import Medium
from videollama2.errors import DataError, MediaError
from videollama2.media.probe import check_decodes, check_opens

_OPENERS = 16
"""Number of threads that open files, which consists mostly of waiting."""
_FILES_EACH = 16
"""Number of files that one task decodes."""


@dataclass
class FilesChecked:
    """The result of opening or decoding files.

    Attributes:
        problems: unusable media, each with the reason.
        remarks: damaged but usable media, each with a description.
        count: number of files that were checked.
        seconds: time that this took.
    """

    problems: dict[Medium, str] = field(default_factory=dict)
    remarks: dict[Medium, str] = field(default_factory=dict)
    count: int = 0
    seconds: float = 0.0


def check_media_files(media: Iterable[Medium], decode: bool, workers: int, progress: bool = False) -> FilesChecked:
    """Open or decode each medium once.

    Args:
        media: the media; repeated ones are checked once.
        decode: also decode the first and last frame, in ``workers`` processes; otherwise files are only opened, in
            threads.
        progress: show a progress bar if this takes longer than a few seconds.

    Raises:
        DataError: a decoding process died.
    """
    distinct = list(dict.fromkeys(media if decode else (Medium(medium.kind, medium.path) for medium in media)))
    checked, begin = FilesChecked(count=len(distinct)), time.perf_counter()
    if not distinct:
        return checked
    work: Callable[[Medium], _Finding] = partial(_look_at, decode=decode)
    words = "decoding" if decode else "opening"
    with (
        _executor(decode, workers) as executor,
        tqdm(desc=f"{words} files", total=len(distinct), unit=" files", delay=2, disable=hides_bar(progress))
        as bar,
    ):  # fmt: skip
        try:
            for medium, problem, remarks in executor.map(work, distinct, chunksize=_FILES_EACH if decode else 1):
                bar.update()
                if problem is not None:
                    checked.problems[medium] = problem
                elif remarks:
                    checked.remarks[medium] = "; ".join(remarks)
        except BrokenProcessPool as error:
            near = distinct[bar.n // _FILES_EACH * _FILES_EACH].path
            raise DataError(f"{near}, or a file named soon after it: the process that decoded it died") from error
    checked.seconds = time.perf_counter() - begin
    return checked


_Finding = tuple[Medium, str | None, list[str]]


def _executor(decode: bool, workers: int) -> Executor:
    if decode:
        # The processes are spawned: a fork would copy the locks of this process's threads in their current state.
        return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    return ThreadPoolExecutor(_OPENERS)


def _look_at(medium: Medium, decode: bool) -> _Finding:
    try:
        if decode:
            return medium, None, check_decodes(medium.path, medium.kind, medium.start, medium.end)
        check_opens(medium.path, medium.kind)
        return medium, None, []
    except MediaError as error:
        return medium, str(error), []
