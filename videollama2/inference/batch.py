"""Runs the batch of requests: each has a row of the slots, in which it is prefilled and then decoded.

A forward pass computes a contiguous range of rows. Rows in use must therefore have no gap, and the rows of one pass
must be adjacent: rows ``0 .. d-1`` are decoding, and the rows from ``d`` on are being prefilled. A prefill is either
one long prompt over several passes, or several short prompts in a single pass. So between two passes, at most one row
is being prefilled.

With d = 4 and a prompt P being prefilled, this is what happens after the last token of B::

    row                    0  1  2  3  4
    before                 A  B  C  D  P
    D moves into the gap   A  D  C  .  P     the last decoding row is copied, as far as it is filled
    P moves down by one    A  D  C  P  .     the prefilling row closes the gap

When the prefill of P is complete, P is already in row d, so it only needs to be counted as decoding from then on.

Requests that begin alike share work. :meth:`Batch.admit` copies the known beginning of a prompt into the request's row,
so that only the rest is prefilled: from the row of a running request, to the exact token, or from the prefix cache, in
whole blocks. When a row is prefilled, and again when its request leaves, the key-values of the row are copied into the
cache.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from math import isfinite, isnan

import torch

from videollama2.errors import EngineError, VideoLlama2Error
from videollama2.inference.decoder import Decoder
from videollama2.inference.prefix_cache import PrefixCache
from videollama2.inference.sampling import choose
from videollama2.inference.task import Task

_log = logging.getLogger(__name__)

_Ended = tuple[Task, "str | Exception"]


WORTH_WAITING = 64
"""Length in tokens from which a common beginning is computed by one request first, so that another can copy it."""

_CROWD_SAVES = 128
"""Number of tokens from which this is also done for a shorter beginning: what all that wait for it save together."""

_WORTH_COPYING = 8
"""Number of tokens that a request must share itself to wait as one of a crowd."""

_PROMPTS_ON_CPU = 8
"""Number of prompts in one pass on a CPU. There, the time of a pass grows in proportion to its positions once these are
a hundred, so with more prompts each would wait for all others and none would be finished sooner."""

_STRIDE = 64
"""Number of positions compared at once in search of the end of a common beginning."""


class Batch:
    """The tasks in the slots: ``decoding[n]`` has row n, and ``prefilling`` has the rows after them.

    Only the model's thread may use it.

    Args:
        on_end: called for each task that leaves, with the task, its ``finish_reason`` and its error.
    """

    def __init__(
        self,
        decoder: Decoder,
        prefixes: PrefixCache,
        on_end: Callable[[Task, str, VideoLlama2Error | None], None],
    ) -> None:
        self.decoder, self.prefixes, self._on_end = decoder, prefixes, on_end
        self.prefilling: list[Task] = []
        self.decoding: list[Task] = []

    @property
    def tasks(self) -> list[Task]:
        return [*self.decoding, *self.prefilling]

    def admit(self, task: Task) -> None:
        """Prepare the last task of ``prefilling``, whose media are encoded.

        This copies the known beginning of its prompt into its row and embeds the prompt.
        """
        row = len(self.decoding) + len(self.prefilling) - 1
        try:
            # The row of a running request is known to the exact token, the cache only in whole blocks: the longer of
            # the two beginnings is taken.
            length, source = self._running_beginning(task)
            if length > self.prefixes.known(task.prompt_keys):
                self.decoder.slots.move(source, row, length)
            else:
                length = self.prefixes.load(task.prompt_keys, self.decoder.slots, row)
            task.filled = task.cached = length
            task.embed(self.decoder.model)
        except Exception as error:  # noqa: BLE001 - only this request fails
            self.prefilling.pop()
            self.fail(task, error)

    def can_join(self, task: Task, budget: int, waiting: Sequence[Task]) -> bool:
        """Return whether a task's prompt may be computed in the same pass as those being prefilled.

        The pass is as wide as its longest prompt and completes all of them. A task whose prompt begins like one of them
        waits if that saves much: once the first is computed, all others copy what they share with it. If they save
        little (two questions about a cached clip that begin with the same words), an additional pass over the weights
        would take longer than computing that little twice. For sixteen such questions, it is worth it.

        Args:
            waiting: tasks that could run next, this one among them.
        """
        if len(self.prefilling) >= _PROMPTS_ON_CPU and self.decoder.model.device.type == "cpu":
            return False
        known = max(self.prefixes.known(task.prompt_keys), self._running_beginning(task)[0])
        # A pass is a rectangle: every row computes as many positions as its longest prompt needs, each row from its own
        # start. The area must fit into the budget, and no row may be written beyond its end, not even by positions that
        # are computed for nothing.
        longest = max(len(task.input_ids) - known, *(other.remaining for other in self.prefilling))
        furthest = longest + max(known, *(other.filled for other in self.prefilling))
        if (len(self.prefilling) + 1) * longest > budget or furthest > self.decoder.slots.max_length:
            return False
        crowd = [each for each in waiting if each is not task and each not in self.prefilling]
        return not any(self._is_worth_waiting(task, other, known, crowd) for other in self.prefilling)

    def _is_worth_waiting(self, task: Task, other: Task, known: int, crowd: Sequence[Task]) -> bool:
        """Return whether a task, and all of a crowd that begin as it does, save much once another is prefilled.

        Args:
            known: number of positions of the task's prompt that need not be computed anyway.
        """
        own = _beyond(task, other, known)
        if not _WORTH_COPYING <= own < WORTH_WAITING:
            return own >= WORTH_WAITING
        return own + sum(_beyond(each, other, known) for each in crowd) >= _CROWD_SAVES

    def _running_beginning(self, task: Task) -> tuple[int, int]:
        """Return the length of the longest beginning that a running request shares with a prompt, and its row.

        At least the last position of the prompt is left to compute, because a request needs the logits of its last
        token.
        """
        end = len(task.input_ids) - 1
        # Only what is filled already can be copied.
        lengths = [_common(task.identity, other.identity, 0, min(end, other.filled)) for other in self.decoding]
        length = max(lengths, default=0)
        return (length, lengths.index(length)) if length else (0, 0)

    def prefill(self, budget: int) -> int:
        """Compute up to ``budget`` positions of the prompts being prefilled; returns how many were computed."""
        tasks = list(self.prefilling)
        if not tasks:
            return 0
        count = min(budget, max(task.remaining for task in tasks))
        try:
            logits_BV = self.decoder.prefill(len(self.decoding), tasks, count)
        except Exception as error:  # noqa: BLE001 - any error ends these requests, but no others
            self.prefilling.clear()
            for task in tasks:
                self.fail(task, error)
            return count
        # There are logits only once the last positions of the prompts are computed. Until then the tasks stay where
        # they are, and the next call goes on with the following chunk.
        if logits_BV is not None:
            for row, task in enumerate(tasks, len(self.decoding)):
                self._remember(task, row)
                task.drop_embeddings()
            self.prefilling.clear()
            # The rows being prefilled follow the decoding ones, so the tasks have the right rows without a copy.
            self.decoding += tasks
            self._accept(tasks, logits_BV)
        return count * len(tasks)

    def decode(self) -> None:
        """Compute one token of every running request."""
        # A task that was just prefilled already has a token of this round. It is decoded too, in step with the others.
        tasks = list(self.decoding)
        if not tasks:
            return
        try:
            logits_BV = self.decoder.decode(tasks)
        except Exception as error:  # noqa: BLE001 - any error ends these requests, but no others
            if self.prefilling:
                # All decoding rows have failed and leave at once, so the prefilling row becomes row 0.
                self.decoder.slots.move(len(tasks), 0, self.prefilling[0].filled)
            self.decoding.clear()
            for task in tasks:
                self.fail(task, error)
            return
        self._accept(tasks, logits_BV)

    def drop_cancelled(self) -> None:
        """Remove the tasks that were cancelled and free their rows."""
        if self.prefilling and self.prefilling[0].channel.cancelled:
            self.end(self.prefilling.pop(), "cancelled")
        self._leave([(task, "cancelled") for task in self.decoding if task.channel.cancelled])

    def forget(self) -> None:
        """Drop all key-values and fail the running requests, because the weights have changed.

        The rest of their answers would follow neither from the old weights nor from the new ones.
        """
        self.prefixes.clear()
        for task in self.abandon():
            self.fail(task, EngineError("the model's weights were changed while this request was running; ask again"))

    def abandon(self) -> list[Task]:
        """Remove and return all tasks, without computing anything."""
        tasks, self.prefilling, self.decoding = self.tasks, [], []
        return tasks

    def end(self, task: Task, reason: str) -> None:
        """Report the end of a task that has no row, or has just lost it."""
        self._on_end(task, reason, None)

    def fail(self, task: Task, error: BaseException) -> None:
        """Report a task as failed, see :meth:`end`. Errors of other libraries are wrapped in EngineError."""
        if not isinstance(error, VideoLlama2Error):
            wrapped = EngineError(f"the request failed: {type(error).__name__}: {error}")
            wrapped.__cause__ = error
            error = wrapped
        self._on_end(task, "error", error)

    def _accept(self, tasks: list[Task], logits_BV: torch.Tensor) -> None:
        # Rows with NaN logits fail on their own; sampling from them would raise an error for the whole batch. The
        # largest of a row is NaN if any is, and finding it takes a tenth of the time of looking for them.
        largest = logits_BV.amax(-1).tolist()
        broken = [isnan(value) for value in largest]
        finite_BV = logits_BV if all(map(isfinite, largest)) else logits_BV.nan_to_num()
        ids = choose(finite_BV, [task.chooser for task in tasks])
        ended: list[_Ended] = []
        for task, token_id, logits_V, bad in zip(tasks, ids, logits_BV, broken, strict=True):
            try:
                if bad:
                    raise EngineError("the model's logits are not numbers; were its weights made for this type?")
                reason: str | Exception | None = task.accept(token_id, logits_V)
            except Exception as error:  # noqa: BLE001 - only this request fails
                reason = error
            if reason is not None:
                ended.append((task, reason))
        self._leave(ended)

    def _leave(self, ended: Sequence[_Ended]) -> None:
        """Remove tasks from their rows and close the gaps, as shown in the module's docstring."""
        slots = self.decoder.slots
        for task, reason in ended:
            # Earlier rounds of this loop have moved rows, so each task's row is looked up anew.
            row, last = self.decoding.index(task), len(self.decoding) - 1
            # Its key-values are copied to the prefix cache first, because the move below overwrites them.
            self._remember(task, row)
            # The last decoding row fills the gap, and the list of tasks changes in the same way as the rows, so that
            # decoding[n] still has row n. If the task had the last row itself, there is no gap.
            self.decoding[row] = self.decoding[last]
            if row != last:
                slots.move(last, row, self.decoding[last].filled)
            self.decoding.pop()
            if self.prefilling:
                # At most one row is being prefilled here, see the module's docstring. Its filled part moves with it.
                slots.move(last + 1, last, self.prefilling[0].filled)
            if isinstance(reason, Exception):
                self.fail(task, reason)
            else:
                self.end(task, reason)

    def _remember(self, task: Task, row: int) -> None:
        """Copy the key-values of a row to the prefix cache, or empty that cache if memory is short."""
        try:
            self.prefixes.store(task.keys_of(task.filled), self.decoder.slots, row)
        except RuntimeError as error:
            _log.warning("key-values of a prompt could not be kept: %s", error)
            self.prefixes.clear()


def _beyond(task: Task, other: Task, known: int) -> int:
    """Count the positions from ``known`` on that a prompt shares with another, all but its last at most."""
    return _common(task.identity, other.identity, known, len(task.input_ids) - 1)


def _common(one: Sequence[Hashable], other: Sequence[Hashable], known: int, end: int) -> int:
    """Count the equal positions of two sequences from ``known`` to ``end``, if everything before ``known`` is equal."""
    if one[:known] != other[:known]:
        return 0
    start, end = known, min(end, len(other))
    # Slices are compared much faster than their elements are one by one.
    while start + _STRIDE <= end and one[start : start + _STRIDE] == other[start : start + _STRIDE]:
        start += _STRIDE
    while start < end and one[start] == other[start]:
        start += 1
    return start - known
