"""A conversation in the terminal with a model of this process."""

from __future__ import annotations

from typing import Any, TextIO

from videollama2.constants import MAX_SEED
from videollama2.inference.engine import Engine
from videollama2.inference.request import media_parts
from videollama2.media.kinds import AUDIO, KINDS, VIDEO
from videollama2.terminal_chat import HELP_WITH_SOUND, TerminalChat


def file_part(kind: str, path: str, video_options: dict[str, Any], audio_only: bool = False) -> dict[str, Any]:
    """The part of a message that names a file.

    Args:
        video_options: how a video is read; other kinds take what of it they know.
        audio_only: of a video, only the sound is heard.
    """
    of_video = {"of_video": True} if kind == VIDEO and audio_only else {}
    kind = AUDIO if of_video else kind
    known = {name: value for name, value in video_options.items() if name in KINDS[kind].options}
    return {"type": kind, "path": path, **known, **of_video}


class Chat(TerminalChat):
    """One conversation.

    Args:
        engine: answers.
        media_options: how videos are read: ``start``, ``end``, ``num_frames``, ``backend``, ``use_audio``.
        audio_only: of videos, only the sound is heard.
        options: of :class:`videollama2.inference.sampling.SamplingOptions`.
        out: where answers and notices go.
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
        """See :class:`TerminalChat`. The engine keeps what was read, so that the answer need not wait for it."""
        part = file_part(kind, path, self.media_options, self.audio_only)
        read = [self.engine.reader.read(medium) for medium in media_parts(part, part["type"], [])]
        said = [f"{medium.frames} frames" for medium in read if medium.kind == VIDEO]
        said += [medium.note or "heard" for medium in read if medium.kind == AUDIO]
        return part, ", ".join(said)

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
