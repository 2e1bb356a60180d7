"""The running requests: rows of the slots, prefilled and then decoded together.

A forward pass works on neighbouring rows, so the rows in use must have no gap and those of one pass must lie together.
That gives the order: rows ``0 .. d-1`` decode, the rows from ``d`` on are being prefilled. Being prefilled is either
one long prompt, over several passes, or several short ones in a single pass; so between two passes there is one at
most.

With d = 4 and one prompt P being prefilled, this is what happens when B has had its last token::

    row                    0  1  2  3  4
    before                 A  B  C  D  P
    D moves into the gap   A  D  C  .  P     the last decoding row is copied, as far as it is filled
    P moves down by one    A  D  C  P  .     the prefilling row closes up behind

When P's prompt is computed, row d is where it lies already: it only counts as decoding from then on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence

import torch

from videollama2.errors import EngineError, VideoLlama2Error
from videollama2.inference.decoder import Decoder
from videollama2.inference.prefix_cache import BLOCK, PrefixCache
from videollama2.inference.sampling import choose
from videollama2.inference.task import Task

_log = logging.getLogger(__name__)

_Ended = tuple[Task, "str | Exception"]


WORTH_WAITING = 2 * BLOCK
"""Tokens of a common beginning from which it is computed once, for the others to take over."""


class Batch:
    """The tasks in the slots: ``decoding[n]`` has row n, and ``prefilling`` the rows behind. Used by the model's thread
    alone.

    Args:
        on_end: called with each task that left, its ``finish_reason`` and its error.
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
        """Prepare the last task of ``prefilling``, whose media are encoded: copy the known beginning of its prompt into
        its row, and embed the prompt."""
        row = len(self.decoding) + len(self.prefilling) - 1
        try:
            task.filled = task.cached = self.prefixes.load(task.identity, self.decoder.slots, row)
            task.embed(self.decoder.model)
        except Exception as error:  # noqa: BLE001 - a fault of this request alone
            self.prefilling.pop()
            self.fail(task, error)

    def can_join(self, task: Task, budget: int) -> bool:
        """Whether a task's prompt may be computed in one pass with those being prefilled.

        The pass is as wide as its longest prompt and ends all of them. A task that begins like one of them waits where
        that saves much: once the first is known, only the rest is left. Where they have little in common that is not
        known yet (two questions about a known clip that begin with the same words), another pass over the weights
        would take longer than computing that little twice.
        """
        known = self.prefixes.known(task.identity)
        longest = max(len(task.input_ids) - known, *(other.remaining for other in self.prefilling))
        furthest = longest + max(known, *(other.filled for other in self.prefilling))
        if (len(self.prefilling) + 1) * longest > budget or furthest > self.decoder.slots.max_length:
            return False
        return all(_common(task.identity, other.identity, known) < WORTH_WAITING for other in self.prefilling)

    def prefill(self, budget: int) -> int:
        """Compute up to ``budget`` prompt positions of those being prefilled; returns how many it took."""
        tasks = list(self.prefilling)
        if not tasks:
            return 0
        count = min(budget, max(task.remaining for task in tasks))
        try:
            logits_BV = self.decoder.prefill(len(self.decoding), tasks, count)
        except Exception as error:  # noqa: BLE001 - whatever went wrong ends these requests and no others
            self.prefilling.clear()
            for task in tasks:
                self.fail(task, error)
            return count
        if logits_BV is not None:
            for row, task in enumerate(tasks, len(self.decoding)):
                self._remember(task, row)
                task.drop_embeddings()
            self.prefilling.clear()
            self.decoding += tasks
            self._accept(tasks, logits_BV)
        return count * len(tasks)

    def decode(self) -> None:
        """Compute one token of every running request."""
        # One that has just been prefilled has its token of this round; decoding it too keeps all in step.
        tasks = list(self.decoding)
        if not tasks:
            return
        try:
            logits_BV = self.decoder.decode(tasks)
        except Exception as error:  # noqa: BLE001 - whatever went wrong ends these requests and no others
            if self.prefilling:
                # All decoding rows go at once: the prefilling one becomes row 0.
                self.decoder.slots.move(len(tasks), 0, self.prefilling[0].filled)
            self.decoding.clear()
            for task in tasks:
                self.fail(task, error)
            return
        self._accept(tasks, logits_BV)

    def drop_cancelled(self) -> None:
        """Give up the slots of those that were cancelled."""
        if self.prefilling and self.prefilling[0].channel.cancelled:
            self.end(self.prefilling.pop(), "cancelled")
        self._leave([(task, "cancelled") for task in self.decoding if task.channel.cancelled])

    def abandon(self) -> list[Task]:
        """Forget all tasks, which are returned; nothing is computed."""
        tasks, self.prefilling, self.decoding = self.tasks, [], []
        return tasks

    def end(self, task: Task, reason: str) -> None:
        """Report the end of a task that holds no row, or whose row was just taken from it."""
        self._on_end(task, reason, None)

    def fail(self, task: Task, error: BaseException) -> None:
        """Report that a task failed, as :meth:`end` does. An error of another library is wrapped in EngineError."""
        if not isinstance(error, VideoLlama2Error):
            wrapped = EngineError(f"the request failed: {type(error).__name__}: {error}")
            wrapped.__cause__ = error
            error = wrapped
        self._on_end(task, "error", error)

    def _accept(self, tasks: list[Task], logits_BV: torch.Tensor) -> None:
        # Not a number is no logit: sampling from it would be a fault of the whole batch.
        broken = logits_BV.isnan().any(-1).tolist()
        ids = choose(logits_BV.nan_to_num(), [task.chooser for task in tasks])
        ended: list[_Ended] = []
        for task, token_id, logits_V, bad in zip(tasks, ids, logits_BV, broken, strict=True):
            try:
                if bad:
                    raise EngineError("the model's logits are not numbers; were its weights made for this type?")
                reason: str | Exception | None = task.accept(token_id, logits_V)
            except Exception as error:  # noqa: BLE001 - a fault of this request alone
                reason = error
            if reason is not None:
                ended.append((task, reason))
        self._leave(ended)

    def _leave(self, ended: Sequence[_Ended]) -> None:
        """Take tasks out of their rows and close the gaps, as the module's head shows."""
        slots = self.decoder.slots
        for task, reason in ended:
            # Rows of earlier rounds of this loop have moved, so each task is looked up anew.
            row, last = self.decoding.index(task), len(self.decoding) - 1
            # Its key-values are copied out first: the next line but one writes over them.
            self._remember(task, row)
            self.decoding[row] = self.decoding[last]
            if row != last:
                slots.move(last, row, self.decoding[last].filled)
            self.decoding.pop()
            if self.prefilling:
                # There is one at most, see above; what it has filled so far goes with it.
                slots.move(last + 1, last, self.prefilling[0].filled)
            if isinstance(reason, Exception):
                self.fail(task, reason)
            else:
                self.end(task, reason)

    def _remember(self, task: Task, row: int) -> None:
        """Keep the key-values of a row for requests that begin alike, or drop all of them where memory is short."""
        try:
            self.prefixes.store(task.identity[: task.filled], self.decoder.slots, row)
        except RuntimeError as error:
            _log.warning("key-values of a prompt could not be kept: %s", error)
            self.prefixes.clear()


def _common(one: Sequence[Hashable], other: Sequence[Hashable], known: int) -> int:
    """Count the tokens that two sequences have in common behind the first ``known``, in whole blocks."""
    if one[:known] != other[:known]:
        return 0
    end = known
    while end + BLOCK < len(one) and one[end : end + BLOCK] == other[end : end + BLOCK]:
        end += BLOCK
    return end - known
