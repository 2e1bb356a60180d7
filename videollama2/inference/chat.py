"""A conversation in the terminal with a model of this process."""

from __future__ import annotations

from typing import Any, TextIO

from videollama2.constants import MAX_SEED
from videollama2.inference.engine import Engine
from videollama2.inference.request import MediaPart
from videollama2.media.kinds import VIDEO
from videollama2.processing.read_options import ReadOptions
from videollama2.terminal_chat import TerminalChat


class Chat(TerminalChat):
    """One conversation.

    Args:
        engine: answers.
        media_options: how videos are read: ``start``, ``end``, ``num_frames``, ``backend``.
        options: of :class:`videollama2.inference.sampling.SamplingOptions`.
        out: where answers and notices go.
    """

    def __init__(
        self, engine: Engine, media_options: dict[str, Any], options: dict[str, Any], out: TextIO | None = None
    ) -> None:
        super().__init__(out)
        self.engine, self.media_options, self.options = engine, media_options, options

    def read_medium(self, kind: str, path: str) -> tuple[dict[str, Any], str]:
        """See :class:`TerminalChat`. The engine keeps what was read, so that the answer need not wait for it."""
        options = self.media_options if kind == VIDEO else {}
        medium = self.engine.reader.read(MediaPart(kind, path, ReadOptions.of(kind, options)))
        return {"type": kind, "path": path, **options}, f"{medium.frames} frames" if kind == VIDEO else ""

    def stream(self, messages: list[dict[str, Any]], pieces: list[str]) -> None:
        """See :class:`TerminalChat`."""
        options = dict(self.options)
        if options.get("seed") is not None:
            # Repeatable as a whole, yet no two turns draw the same numbers.
            options["seed"] = (options["seed"] + len(messages) // 2) % MAX_SEED
        answer = self.engine.submit(messages, **options)
        try:
            for delta in answer:
                self.show(delta)
                pieces.append(delta)
        except KeyboardInterrupt:
            answer.cancel()
            pieces[:] = [answer.result().text]  # also what came between the last piece and the cancelling
            raise
