"""Compares what the nodes of a run must have in common: files, weights, flags, and the records that they use.

Each node may have a copy of its own of every file. Processes that read different records would learn from a mixture
that was not asked for, or wait for each other for ever, so they compare what they have before anything is learnt.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object

from videollama2.errors import ConfigError, DataError, VideoLlama2Error
from videollama2.training.data import Outline, RunData
from videollama2.training.flags.data import DataArguments
from videollama2.training.flags.model import ModelArguments
from videollama2.training.flags.run import TrainingArguments
from videollama2.training.run.identity import RunIdentity
from videollama2.training.run.stopping import StoppedElsewhereError, message_of

T = TypeVar("T")


def common_identity(
    model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments
) -> RunIdentity:
    """Return the identity of a run (collective); the first process of each node reads its own files.

    Raises:
        ConfigError: a node has other files, weights or flags than the first one.
        DataError, CheckpointNotFoundError: see :meth:`RunIdentity.of`.
        StoppedElsewhereError: another process raises one of these.
    """
    # All processes of a node read the same files, and to read them once takes long enough. Without a launcher that
    # numbers the processes of a node, each is taken for the first one.
    reads = training_args.local_process_index <= 0
    own = _together(lambda: RunIdentity.of(model_args, data_args, training_args) if reads else None)
    return _checked_alike(own, _other_identity)


def common_data(data_args: DataArguments, training_args: TrainingArguments) -> RunData:
    """Return the data of a run as this process reads them (collective).

    Raises:
        ConfigError: a process has found other records than the first one, as where media are missing on a node.
        DataError: see :class:`RunData`. StoppedElsewhereError: another process raises one of these.
    """
    data = _together(lambda: RunData(data_args, training_args))
    _checked_alike(data.outline, _other_records)
    return data


def _other_identity(own: RunIdentity, first: RunIdentity) -> str | None:
    # Media may lie elsewhere on each node.
    flags = {**own.flags, "data_folder": first.flags.get("data_folder")}
    return next(iter(replace(own, flags=flags).differences(first, was="process 0:")), None)


def _other_records(own: Outline, first: Outline) -> str | None:
    if own.left_out != first.left_out:
        # Both are in the order of the records, so of the first two that differ, one is missing on the other side.
        for mine, its in zip_longest(own.problems, first.problems):
            if mine != its:
                is_own = mine is not None and mine not in first.problems
                return f"it alone leaves out {mine}" if is_own else f"process 0 alone leaves out {its}"
        count, of_first = own.left_out[0], first.left_out[0]
        return f"it leaves out {count} records, but process 0 leaves out {of_first} records, or other ones"
    pairs = zip(own.media, first.media, strict=True)  # of files of the same content, whatever their names
    differing = (file for (file, mine), (_, its) in pairs if mine != its)
    return next((f"{file}: its media have other kinds or numbers of frames" for file in differing), None)


def _together(call: Callable[[], T]) -> T:
    """Return what ``call`` returns on this process, if it raises no VideoLlama2Error on any (collective).

    Raises:
        VideoLlama2Error: on the first process of those on which it was raised; a message of another one than process 0
            begins with where this was. StoppedElsewhereError: on all other processes.
    """
    found: list[T] = []
    error = None
    try:
        found = [call()]
    except VideoLlama2Error as caught:
        error = caught
    # Nothing is raised before this, or the other processes would wait here for ever.
    failed = gather_object([error is not None])
    if error is None and not any(failed):
        return found[0]
    rank = PartialState().process_index
    if error is None or failed.index(True) != rank:
        raise StoppedElsewhereError
    if rank == 0:
        raise error
    raise DataError(f"{_here()}: {message_of(error)}") from error


def _checked_alike(own: T | None, difference: Callable[[T, T], str | None]) -> T:
    """Return the value of process 0, after a comparison with those of all processes that have one (collective).

    Raises:
        ConfigError: on process 0, if one differs from its own. StoppedElsewhereError: on the others, in that case.
    """
    places, values = zip(*gather_object([(_here(), own)]), strict=True)
    first = values[0]
    for place, value in zip(places, values, strict=True):
        if value is not None and (told := difference(value, first)):
            if PartialState().process_index:
                raise StoppedElsewhereError
            raise ConfigError(
                f"{place} has other data or flags than {places[0]}: {told}. Give all nodes the same files and flags"
            )
    return first


def _here() -> str:
    return f"process {PartialState().process_index} on {socket.gethostname()}"
