"""Chats in the terminal with a model behind a controller.

    python -m videollama2.serve.cli --controller http://localhost:10000 clip.mp4

This process loads no model: media are sent to the worker with each question.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import sys
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO
from uuid import uuid4

from videollama2.commands import add_debug_flag, run_command
from videollama2.errors import ConfigError, VideoLlama2Error
from videollama2.flags import (
    AnswerFlags,
    add_answer_flags,
    add_bounds_flags,
    add_num_frames_flag,
    add_sampling_flag,
    frame_options,
)
from videollama2.media.frames import FrameSampling
from videollama2.media.kinds import AUDIO, KINDS, VIDEO, mime_type
from videollama2.media.sources import kind_of_path
from videollama2.serve.part_flags import add_controller_flag, part_parser
from videollama2.serve.settings import API_KEY_VARIABLE, read_keys
from videollama2.serve.web.errors import ApiError
from videollama2.terminal_chat import HELP_WITH_SOUND, TerminalChat

_OF_SOUND = ("start", "end")


class RemoteChat(TerminalChat):
    """A conversation in the terminal.

    Args:
        controller: address of the controller.
        model: name of the model; None takes the only one.
        credential: API key.
        media_options: options for videos: ``num_frames``, ``start``, ``end``, ``sampling``, ``use_audio_in_video``. The
            bounds apply to sounds too.
        options: fields of the chat request, e.g. ``temperature``.
        out: stream for answers and notices.
    """

    errors = (VideoLlama2Error, ApiError)
    help = HELP_WITH_SOUND
    kinds = tuple(KINDS)

    def __init__(
        self,
        controller: str,
        model: str | None = None,
        credential: str | None = None,
        media_options: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
        out: TextIO | None = None,
    ) -> None:
        super().__init__(out)
        self.controller, self.model, self._credential = controller, model, credential
        self.media_options, self.options = media_options or {}, options or {}

    def choose_model(self, read: Callable[[str], str] | None = None) -> str:
        """Return the model to use.

        Args:
            read: prompts the user, if there are several models and none was named.

        Raises:
            ConfigError: there is no model of this name, or there are several and none was named.
            ApiError: the controller cannot be reached.
        """
        models = asyncio.run(self._models())
        if self.model is None and len(models) == 1:
            self.model = models[0]
        if self.model is None and models:
            self.model = self._pick(models, read)
        if self.model not in models:
            known = ", ".join(models) or "none"
            raise ConfigError(f"--model must be one of those at {self.controller} ({known}), got {self.model}")
        return self.model

    def _pick(self, models: Sequence[str], read: Callable[[str], str] | None) -> str:
        if read is None:
            known = ", ".join(models)
            raise ConfigError(f"there are several models at {self.controller}: name one with --model ({known})")
        for place, name in enumerate(models, 1):
            self.say(f"{place:3}  {name}")
        while True:
            try:
                given = read("which model? ").strip()
            except EOFError:
                raise ConfigError("no model was chosen") from None
            if given in models:
                return given
            if given.isdecimal() and 1 <= int(given) <= len(models):
                return models[int(given) - 1]

    @property
    def greeting(self) -> str:
        """Return a text that names the model and explains how to chat with it."""
        return f"{self.model}\n{self.help}"

    def read_medium(self, kind: str, path: str) -> tuple[dict[str, Any], str]:
        """See :class:`TerminalChat`. The file is sent with every question of the conversation."""
        file = Path(path).expanduser()
        try:
            content = file.read_bytes()
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read ({error.strerror})") from error
        url = f"data:{mime_type(kind, file)};base64,{base64.b64encode(content).decode('ascii')}"
        part: dict[str, Any] = {"type": f"{kind}_url", f"{kind}_url": {"url": url}}
        options = {name: value for name, value in self.media_options.items() if kind == VIDEO or name in _OF_SOUND}
        if kind in (VIDEO, AUDIO) and options:
            part["mm_processor_kwargs"] = options
        return part, f"{len(content) / 1024:.0f} kB"

    def stream(self, messages: list[dict[str, Any]], pieces: list[str]) -> None:
        """See :class:`TerminalChat`."""
        body = {"model": self.model, "messages": messages, "stream": True, **self.options}
        asyncio.run(self._stream(body, pieces))

    async def _stream(self, body: dict[str, Any], pieces: list[str]) -> None:
        from videollama2.serve.web.sse import read_events

        client = self._client()
        try:
            async with (
                client.open_chat(body, uuid4().hex) as stream,
                aclosing(read_events(aiter(stream))) as events,
            ):
                async for event in events:
                    self._show(event, pieces)
        finally:
            await client.aclose()

    def _show(self, event: dict[str, Any], pieces: list[str]) -> None:
        for choice in event.get("choices", ()):
            text = choice.get("delta", {}).get("content")
            if text:
                pieces.append(text)
                self.show(text)

    async def _models(self) -> list[str]:
        client = self._client()
        try:
            return await client.models()
        finally:
            await client.aclose()

    def _client(self) -> Any:
        # Each question has a client and an event loop of its own, so that Ctrl-C ends only the answer.
        from videollama2.serve.cluster.client import ControllerClient

        return ControllerClient(self.controller, self._credential)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = part_parser("cli", __doc__)
    parser.add_argument("media", nargs="*", help="videos, images and sounds to begin with")
    add_controller_flag(parser)
    parser.add_argument(
        "--model",
        "--model-name",
        dest="model",
        metavar="NAME",
        help="model to ask (default: the only one; if there are several, they are listed to choose from)",
    )
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help=f"first line: the key (also: {API_KEY_VARIABLE})"
    )
    media = parser.add_argument_group("video")
    add_bounds_flags(media)
    add_num_frames_flag(media)
    add_sampling_flag(media)
    media.add_argument("--use-audio", action="store_true", help="hear the sound of videos too")
    add_answer_flags(parser.add_argument_group("answer"))
    add_debug_flag(parser)
    return parser


def _open(args: argparse.Namespace) -> RemoteChat:
    keys = read_keys(args.api_key_file)
    media = frame_options(args)
    FrameSampling(**media)
    if args.use_audio:
        media["use_audio_in_video"] = True
    options = asdict(AnswerFlags.of(args))
    options["max_completion_tokens"] = options.pop("max_new_tokens")
    options = {name: value for name, value in options.items() if value is not None}
    chat = RemoteChat(args.controller, args.model, keys[0] if keys else None, media, options)
    chat.choose_model(input if sys.stdin.isatty() else None)
    for path in args.media:
        chat.attach(kind_of_path(path), path)
    return chat


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    args = build_parser().parse_args(arguments)
    return run_command(lambda: _open(args).run(), "cli", args.debug, RemoteChat.errors)


if __name__ == "__main__":
    sys.exit(main())
