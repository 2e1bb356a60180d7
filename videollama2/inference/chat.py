"""Chats in the terminal with a model that runs in this process."""

from __future__ import annotations

from typing import Any, TextIO

from videollama2.constants import MAX_SEED
from videollama2.inference.engine import Engine
from videollama2.inference.request import media_parts
from videollama2.media.kinds import AUDIO, KINDS, VIDEO
from videollama2.terminal_chat import HELP_WITH_SOUND, TerminalChat


def file_part(kind: str, path: str, video_options: dict[str, Any], audio_only: bool = False) -> dict[str, Any]:
    """Return the message part that refers to a file.

    Args:
        video_options: options for reading videos; those that also apply to another kind are used for it too.
        audio_only: use only the sound of a video.
    """
    of_video = {"of_video": True} if kind == VIDEO and audio_only else {}
    kind = AUDIO if of_video else kind
    known = {name: value for name, value in video_options.items() if name in KINDS[kind].options}
    return {"type": kind, "path": path, **known, **of_video}


class Chat(TerminalChat):
    """A conversation with an engine of this process.

    Each turn submits the whole conversation again. The engine's prefix cache still holds the key-values of the previous
    turns, so little more than the new question is prefilled.

    Args:
        engine: the engine that answers.
        media_options: options for reading videos: ``start``, ``end``, ``num_frames``, ``backend``, ``use_audio``.
        audio_only: use only the sound of videos.
        options: options of :class:`videollama2.inference.sampling.SamplingOptions`.
        out: stream to which answers and notices are written.
    """

    def __init__(
        self,
        engine: Engine,
        media_options: dict[str, Any],
        options: dict[str, Any],
        out: TextIO | None = None,
        audio_only: bool = False,
    ) -> None:
        super().__init__(out)
        self.engine, self.media_options, self.options = engine, media_options, options
        self.audio_only = audio_only
        if engine.model.config.hears:
            self.kinds = (*self.kinds, AUDIO)
            self.help = self.greeting = HELP_WITH_SOUND

    def read_medium(self, kind: str, path: str) -> tuple[dict[str, Any], str]:
        """See :class:`TerminalChat`. The medium is read at once to report errors and its number of frames.

        The answer reads it again, unless the engine already has its tokens in the cache.
        """
        part = file_part(kind, path, self.media_options, self.audio_only)
        read = [self.engine.reader.read(medium) for medium in media_parts(part, part["type"], [])]
        said = [f"{medium.frames} frames" for medium in read if medium.kind == VIDEO]
        said += [medium.note or "heard" for medium in read if medium.kind == AUDIO]
        return part, ", ".join(said)

    def stream(self, messages: list[dict[str, Any]], pieces: list[str]) -> None:
        """See :class:`TerminalChat`."""
        options = dict(self.options)
        if options.get("seed") is not None:
            # A chat with a seed is reproducible as a whole, but each turn uses different random numbers.
            options["seed"] = (options["seed"] + len(messages) // 2) % MAX_SEED
        answer = self.engine.submit(messages, **options)
        try:
            for delta in answer:
                self.show(delta)
                pieces.append(delta)
        except KeyboardInterrupt:
            answer.cancel()
            pieces[:] = [answer.result().text]  # includes text generated between the last delta and cancel
            raise
