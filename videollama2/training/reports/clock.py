"""Measures the time that the parts of a training step take: encoders, decoder, optimizer."""

from __future__ import annotations

import time
from functools import wraps
from typing import Any

import torch

from videollama2.model.modeling import VideoLlama2ForConditionalGeneration

PARTS: tuple[str, ...] = ("encoder", "decoder", "optimizer")
"""Encoders with connectors; the decoder with output layer and loss; the optimizer. Forward and backward together."""


class StepClock:
    """Measures how long the parts of training steps take.

    Hooks tell when a part begins. On a GPU, the marks are events in its stream, which are read when totals are asked
    for, so that nothing waits for the GPU in between.

    Args:
        model: the model that is trained.
        device: the device that computes.
    """

    def __init__(self, model: VideoLlama2ForConditionalGeneration, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.running = False
        self._marks: list[tuple[str | None, Any]] = []
        model.register_forward_pre_hook(lambda *_: self._begin_encoding())
        model.model.language_model.register_forward_pre_hook(self._begin_decoding, with_kwargs=True)

    def start(self) -> None:
        """Begin a forward and backward pass."""
        self.running = True
        self.enter("encoder")

    def stop(self) -> None:
        """End it."""
        self.running = False
        self.enter(None)

    def enter(self, part: str | None) -> None:
        """Begin a part, or none of them; the part before it ends."""
        if not self.on_gpu:
            self._marks.append((part, time.perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append((part, event))

    def time_calls(self, owner: Any, name: str, part: str) -> None:
        """Count the time of a method of an object as that of a part."""
        method = getattr(owner, name)

        @wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.enter(part)
            try:
                return method(*args, **kwargs)
            finally:
                self.enter(None)

        setattr(owner, name, timed)

    def totals(self) -> list[float]:
        """Return the seconds of each of :data:`PARTS` since the last call; on a GPU, this waits for it."""
        if self.on_gpu:
            torch.cuda.synchronize()
        seconds = dict.fromkeys(PARTS, 0.0)
        for (part, begin), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            if part is not None:
                seconds[part] += begin.elapsed_time(end) / 1000 if self.on_gpu else end - begin
        self._marks.clear()
        return list(seconds.values())

    def _begin_encoding(self) -> None:
        if self.running:
            self.enter("encoder")

    def _begin_decoding(self, module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if not self.running:
            return
        self.enter("decoder")
        embeds_BLD = kwargs.get("inputs_embeds")
        if torch.is_grad_enabled() and embeds_BLD is not None and embeds_BLD.requires_grad:
            # When the embeddings have their gradient, the decoder's backward pass is over.
            embeds_BLD.register_hook(lambda gradient: self._begin_encoding())
