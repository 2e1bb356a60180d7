"""Runs the loop of a chat in the terminal: commands, questions and Ctrl-C. Subclasses generate the answers."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

from videollama2.errors import VideoLlama2Error
from videollama2.media.kinds import IMAGE, VIDEO

_HELP = """\
/video PATH   ask about a video      /clear   forget the conversation
/image PATH   ask about a picture    /quit    leave (or Ctrl-D)
{audio}Ctrl-C stops an answer. Anything else is a question; media go with the next one."""

HELP = _HELP.format(audio="")
HELP_WITH_SOUND = _HELP.format(audio="/audio PATH   ask about a sound\n")


class TerminalChat(ABC):
    """A conversation in the terminal.

    Args:
        out: stream for answers and notices; None for standard output.
    """

    help = greeting = HELP
    kinds: tuple[str, ...] = (VIDEO, IMAGE)
    """Kinds of media that questions can be about."""
    errors: tuple[type[Exception], ...] = (VideoLlama2Error,)
    """Errors that are reported on one line, after which the conversation continues."""

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = out or sys.stdout
        self.messages: list[dict[str, Any]] = []
        """The conversation so far, in OpenAI's form."""
        self._media: list[dict[str, Any]] = []

    @abstractmethod
    def read_medium(self, kind: str, path: str) -> tuple[dict[str, Any], str]:
        """Open a file immediately, so that a wrong path is reported before the user writes a question.

        Args:
            kind: one of :attr:`kinds`.

        Returns:
            The file as a part of a message, and a text about it for the user.
        """

    @abstractmethod
    def stream(self, messages: list[dict[str, Any]], pieces: list[str]) -> None:
        """Answer ``messages``: :meth:`show` each piece of text and add it to ``pieces`` as it arrives.

        Raises:
            KeyboardInterrupt: the user stopped the answer; no more text will come, and ``pieces`` is complete.
        """

    def run(self, read: Callable[[str], str] = input) -> None:
        """Read lines until ``/quit`` or the end of input."""
        with suppress(ImportError):
            import readline  # noqa: F401 - it adds line editing and history, if available
        self.say(self.greeting)
        while True:
            try:
                line = read("\n> ").strip()
            except EOFError:
                self.say("")
                return
            except KeyboardInterrupt:
                self.say("\n(/quit leaves)")
                continue
            if line in ("/quit", "/exit"):
                return
            if line:
                try:
                    self.handle(line)
                except KeyboardInterrupt:
                    self.say("\n(stopped)")

    def handle(self, line: str) -> None:
        """Handle one command or question. Errors are reported, and the conversation continues."""
        command, _, rest = line.partition(" ")
        try:
            if command[1:] in self.kinds and command[0] == "/":
                self.attach(command[1:], rest.strip().strip("'\""))
            elif command == "/clear":
                self.messages, self._media = [], []
                self.say("(a new conversation)")
            elif command == "/help":
                self.say(self.help)
            elif command.startswith("/") and "/" not in command[1:]:
                self.say(f"no command {command}\n{self.help}")
            else:
                self._ask(line)
        except self.errors as error:
            self.say(f"error: {error}")

    def attach(self, kind: str, path: str) -> None:
        """Attach a file to the next question.

        Raises:
            VideoLlama2Error: the file cannot be read.
        """
        part, note = self.read_medium(kind, path)
        self._media.append(part)
        self.say(f"({kind} {path}, {note})" if note else f"({kind} {path})")

    def show(self, text: str) -> None:
        """Print a piece of an answer."""
        self.out.write(text)
        self.out.flush()

    def say(self, text: str) -> None:
        """Print a line for the user."""
        print(text, file=self.out, flush=True)

    def _ask(self, question: str) -> None:
        content = [*self._media, {"type": "text", "text": question}] if self._media else question
        messages = [*self.messages, {"role": "user", "content": content}]
        pieces: list[str] = []
        note = ""
        try:
            self.stream(messages, pieces)
        except KeyboardInterrupt:
            note = " (stopped)"
        finally:
            # An answer that was cut short stays in the conversation; a question without any answer text is removed.
            text = "".join(pieces)
            if text.strip():
                self.messages = [*messages, {"role": "assistant", "content": text}]
                self._media = []
        self.say(note)
