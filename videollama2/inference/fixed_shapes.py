"""Runs decode steps with a few fixed shapes, which a GPU can replay as CUDA graphs.

A step of a large model consists of some thousand small kernels. Launching them one by one from Python takes longer than
reading the weights; recording them once and replaying them together does not. A recording is valid for one number of
rows and one number of attended positions, so both are rounded up. Rows without a request write to a position that is
never read, and masks hide everything beyond each row's own positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from videollama2.inference.decoder import Decoder
    from videollama2.inference.task import Task

POSITIONS = 256
"""The number of attended positions is rounded up to a multiple of this."""

_WARM_UP = 2
"""Number of runs before a recording, in which libraries choose kernels and allocate their workspace."""


@dataclass
class _Step:
    """The buffers of one shape: ids and positions (B, 1) are written to them, logits (B, V) are read from them."""

    ids: torch.Tensor
    positions: torch.Tensor
    length: int
    graph: torch.cuda.CUDAGraph | None = None
    logits: torch.Tensor | None = None


class FixedShapes:
    """Runs the decode steps of a :class:`Decoder`.

    Args:
        record: replay CUDA graphs; if False, compute the same steps directly.
    """

    def __init__(self, decoder: Decoder, record: bool) -> None:
        self._decoder, self._record = decoder, record
        self._steps: dict[tuple[int, int], _Step] = {}
        self._pool = None
        self._stream: torch.cuda.Stream | None = None

    def decode(self, tasks: list[Task]) -> torch.Tensor:
        """Return logits (B, V) after each task's last token; they are valid until the next call."""
        slots = self._decoder.slots
        # Powers of two of rows and multiples of 256 positions: a few dozen recordings serve all steps.
        rows = min(1 << (len(tasks) - 1).bit_length(), slots.max_batch)
        length = min(-(-(max(task.filled for task in tasks) + 1) // POSITIONS) * POSITIONS, slots.max_length)
        step = self._steps.get((rows, length))
        if step is None:
            step = self._steps[rows, length] = self._prepare(rows, length)
        empty = rows - len(tasks)
        # No request uses the last position of its slot, because the last token of an answer is never fed back.
        nowhere = slots.max_length - 1
        _fill(step.ids, [task.chooser.chosen[-1] for task in tasks] + [0] * empty)
        _fill(step.positions, [task.filled for task in tasks] + [nowhere] * empty)
        if step.graph is None:
            step.logits = self._compute(step)
        else:
            step.graph.replay()
        assert step.logits is not None  # recording has computed them once
        return step.logits[: len(tasks)]

    def forget(self) -> None:
        """Drop all recordings, because they point at weights that may no longer exist."""
        self._steps.clear()
        self._pool = None

    def _prepare(self, rows: int, length: int) -> _Step:
        device = self._decoder.model.get_input_embeddings().weight.device
        nowhere = self._decoder.slots.max_length - 1
        step = _Step(
            torch.zeros(rows, 1, dtype=torch.long, device=device),
            torch.full((rows, 1), nowhere, dtype=torch.long, device=device),
            length,
        )
        if self._record:
            self._make_graph(step)
        return step

    def _make_graph(self, step: _Step) -> None:
        # Streams belong to a device, and by default to the current one, which need not be the model's.
        with torch.cuda.device(step.ids.device):
            # Recordings that share memory must be made on one stream; warmed up there, libraries keep their workspace.
            stream = self._stream = self._stream or torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    self._compute(step)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads, which may serve another engine, can allocate memory on the GPU meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                step.logits = self._compute(step)
        step.graph = graph
        self._pool = self._pool or graph.pool()

    def _compute(self, step: _Step) -> torch.Tensor:
        self._decoder.slots.select_scattered(step.positions, step.length)
        embeds_B1D = self._decoder.model.get_input_embeddings()(step.ids)
        return self._decoder.run(embeds_B1D, masked=True, last=[0] * len(step.ids))


def _fill(target_B1: torch.Tensor, values: list[int]) -> None:
    target_B1.copy_(torch.tensor(values, dtype=torch.long).unsqueeze(1))
