"""Checks whether the files named by records can be read. Each file is opened once, however many records name it."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import wait

from tqdm import tqdm

from videollama2.commands import hides_bar
from videollama2.data.formats.contents import source_of
from videollama2.data.record import RecordMedium
from videollama2.errors import DataError, MediaError
from videollama2.media.kinds import AUDIO
from videollama2.media.probe import check_decodes, check_opens, check_sound

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
        sounds: for media that are heard, the length of their sound in seconds; None for a video without a track.
        count: number of files that were checked.
        seconds: time that this took.
    """

    problems: dict[RecordMedium, str] = field(default_factory=dict)
    remarks: dict[RecordMedium, str] = field(default_factory=dict)
    sounds: dict[RecordMedium, float | None] = field(default_factory=dict)
    count: int = 0
    seconds: float = 0.0


def check_media_files(
    media: Iterable[RecordMedium], decode: bool, workers: int, progress: bool = False
) -> FilesChecked:
    """Open or decode each medium once.

    Args:
        media: the media; repeated ones are checked once.
        decode: also decode the first and last frame and the whole sound, in ``workers`` processes; otherwise files
            are only opened, in threads.
        progress: show a progress bar if this takes longer than a few seconds.

    Raises:
        DataError: a decoding process died.
    """
    distinct = list(dict.fromkeys(media if decode else map(without_bounds, media)))
    checked, begin = FilesChecked(count=len(distinct)), time.perf_counter()
    if not distinct:
        return checked
    work: Callable[[RecordMedium], tuple[RecordMedium, _Finding]] = partial(_look_at, decode=decode)
    words = "decoding" if decode else "opening"
    progress_bar = tqdm(desc=f"{words} files", total=len(distinct), unit=" files", delay=2, disable=hides_bar(progress))
    with _executor(decode, workers) as executor, progress_bar as bar:
        try:
            for medium, found in executor.map(work, distinct, chunksize=_FILES_EACH if decode else 1):
                bar.update()
                if found.problem is not None:
                    checked.problems[medium] = found.problem
                    continue
                if found.remarks:
                    checked.remarks[medium] = "; ".join(found.remarks)
                if AUDIO in medium.parts:
                    checked.sounds[medium] = found.seconds
        except BrokenProcessPool as error:
            near = distinct[bar.n // _FILES_EACH * _FILES_EACH].path
            raise DataError(f"{near}, or a file named soon after it: the process that decoded it died") from error
    checked.seconds = time.perf_counter() - begin
    return checked


def without_bounds(medium: RecordMedium) -> RecordMedium:
    """Return the medium as one whole file, which is what opening it is about."""
    return RecordMedium(medium.kind, medium.path, va=medium.va)


@dataclass
class _Finding:
    """The finding about one file: why it cannot be used, what is unusual about it, and the length of its sound."""

    problem: str | None = None
    remarks: list[str] = field(default_factory=list)
    seconds: float | None = None


def _executor(decode: bool, workers: int) -> Executor:
    if decode:
        # The processes are spawned: a fork would copy the locks of this process's threads in their current state.
        return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=end_with_parent)
    return ThreadPoolExecutor(_OPENERS)


def end_with_parent() -> None:
    """Let this process end when the one that began it does; a killed command would leave it waiting for work."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # it is one of a pool

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _look_at(medium: RecordMedium, decode: bool) -> tuple[RecordMedium, _Finding]:
    remarks: list[str] = []
    seconds = None
    try:
        source = source_of(medium.path)
        if medium.kind != AUDIO and decode:
            remarks += check_decodes(source, medium.kind, medium.start, medium.end)
        elif medium.kind != AUDIO:
            check_opens(source, medium.kind)
        if AUDIO in medium.parts:
            seconds, told = check_sound(source, decode, is_optional=medium.va)
            remarks += told
    except MediaError as error:
        return medium, _Finding(str(error))
    return medium, _Finding(None, remarks, seconds)
