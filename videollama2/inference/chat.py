"""A conversation in the terminal: media by command, answers as they come, Ctrl-C for the answer and not the program."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

from videollama2.errors import VideoLlama2Error
from videollama2.inference.engine import Engine
from videollama2.inference.sampling import MAX_SEED

HELP = """\
/video PATH   ask about a video      /clear   forget the conversation
/image PATH   ask about a picture    /quit    leave (or Ctrl-D)
Ctrl-C stops an answer. Anything else is a question; media go with the next one."""


class Chat:
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
        self.engine, self.media_options, self.options = engine, media_options, options
        self.out = out or sys.stdout
        self.messages: list[dict[str, Any]] = []
        self._media: list[dict[str, Any]] = []

    def run(self, read: Callable[[str], str] = input) -> None:
        """Read lines until ``/quit`` or the end of input."""
        with suppress(ImportError):
            import readline  # noqa: F401 - lines can be edited and called back where the system has it
        self._say(HELP)
        while True:
            try:
                line = read("\n> ").strip()
            except EOFError:
                self._say("")
                return
            except KeyboardInterrupt:
                self._say("\n(/quit leaves)")
                continue
            if line in ("/quit", "/exit"):
                return
            if line:
                try:
                    self.handle(line)
                except KeyboardInterrupt:
                    self._say("\n(stopped)")

    def handle(self, line: str) -> None:
        """One command or question. Errors are told, and the conversation goes on."""
        command, _, rest = line.partition(" ")
        try:
            if command in ("/video", "/image"):
                self._attach(command[1:], rest.strip())
            elif command == "/clear":
                self.messages, self._media = [], []
                self._say("(a new conversation)")
            elif command == "/help":
                self._say(HELP)
            elif command.startswith("/") and "/" not in command[1:]:
                self._say(f"no command {command}\n{HELP}")
            else:
                self._ask(line)
        except VideoLlama2Error as error:
            self._say(f"error: {error}")

    def _attach(self, kind: str, path: str) -> None:
        path = path.strip("'\"")
        options = self.media_options if kind == "video" else {}
        # Read now: a wrong path is best told at once, and the answer then need not wait for it.
        medium = self.engine.media.read(kind, path, options)
        self._media.append({"type": kind, "path": path, **options})
        frames = f", {medium.frames} frames" if kind == "video" else ""
        self._say(f"({kind} {path}{frames})")

    def _ask(self, question: str) -> None:
        content = [*self._media, {"type": "text", "text": question}] if self._media else question
        messages = [*self.messages, {"role": "user", "content": content}]
        options = dict(self.options)
        if options.get("seed") is not None:
            # Repeatable as a whole, yet no two turns draw the same numbers.
            options["seed"] = (options["seed"] + len(messages) // 2) % MAX_SEED
        answer = self.engine.submit(messages, **options)
        try:
            for delta in answer:
                self.out.write(delta)
                self.out.flush()
            note = ""
        except KeyboardInterrupt:
            answer.cancel()
            note = " (stopped)"
        result = answer.result()
        self._say(note)
        # What was said stays said, also where it was cut short; without a word, the question is taken back.
        if result.text.strip():
            self.messages = [*messages, {"role": "assistant", "content": result.text}]
            self._media = []

    def _say(self, text: str) -> None:
        print(text, file=self.out, flush=True)
