"""Logs votes and flags, with one JSON object per line. Nothing else that visitors say or show is stored.

Schema of a line, version 1::

    version       1
    time          time of the vote, ISO 8601 in UTC
    kind          "up", "down" or "flag"
    conversation  random id, the same for all votes on one conversation; it does not identify the visitor
    turn          index of the answer in the conversation, from 0
    model         name of the model that answered
    options       temperature, top_p and max_new_tokens of the answer
    outcome       "done" or "stopped"
    messages      the conversation up to and including that answer: {"role", "text", "media"}
    media         media of a user's message: {"kind", "sha256", "bytes", "num_frames", "start", "end"}; the last
                  three only if they were given. Neither the file nor its name is written.

The visitor's address, cookies and headers are not written.
"""

from __future__ import annotations

import hashlib
import json
import os
from datetime import datetime, timezone
from pathlib import Path
from threading import Lock
from typing import Any

from videollama2.errors import ConfigError, VideoLlama2Error
from videollama2.serve.page.conversation import Conversation, Medium

VOTES = ("up", "down", "flag")

MAX_BYTES = 1 << 30
"""Size at which the log takes no more votes, so that visitors cannot fill the disk."""


class LogFullError(VideoLlama2Error):
    """Raised when the vote log has reached its maximum size."""


class VoteLog:
    """Appends votes to a file.

    Args:
        path: path of the JSONL file, whose folder is created if necessary.
        max_bytes: size beyond which no more votes are taken.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, path: str | Path, max_bytes: int = MAX_BYTES) -> None:
        self.path, self.max_bytes = Path(path), max_bytes
        self._lock = Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.open("a", encoding="utf-8").close()
        except OSError as error:
            raise ConfigError(f"{self.path}: the log of votes cannot be written ({error.strerror})") from error

    def write(self, kind: str, conversation: Conversation, turn: int) -> None:
        """Write one vote. It is on disk when this method returns.

        Raises:
            LogFullError: the log has reached its maximum size. OSError: the log cannot be written.
        """
        line = json.dumps(record(kind, conversation, turn), ensure_ascii=False) + "\n"
        data = line.encode("utf-8", errors="replace")
        with self._lock:
            # A single write to a file opened for appending keeps the lines of several processes apart.
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                if os.fstat(handle).st_size + len(data) > self.max_bytes:
                    raise LogFullError(f"{self.path}: the log of votes has its full size of {self.max_bytes} bytes")
                os.write(handle, data)
                os.fsync(handle)
            finally:
                os.close(handle)


def record(kind: str, conversation: Conversation, turn: int) -> dict[str, Any]:
    """Return one vote in the schema of this module."""
    voted = conversation.turns[turn]
    return {
        "version": 1,
        "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "kind": kind,
        "conversation": conversation.id,
        "turn": turn,
        "model": voted.model,
        "options": voted.options,
        "outcome": voted.outcome,
        "messages": _messages(conversation, turn),
    }


def _messages(conversation: Conversation, turn: int) -> list[dict[str, Any]]:
    messages = []
    for number, each in enumerate(conversation.turns[: turn + 1]):
        if not each.counts and number != turn:
            continue
        media = [_medium(medium) for medium in each.media]
        messages.append({"role": "user", "text": each.question, "media": media})
        messages.append({"role": "assistant", "text": each.answer})
    return messages


def _medium(medium: Medium) -> dict[str, Any]:
    """Return what identifies a medium, without its content."""
    digest, size = hashlib.sha256(), 0
    try:
        with open(medium.path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                size += len(block)
    except OSError:
        return {"kind": medium.kind, "sha256": None, "bytes": None, **medium.options}
    return {"kind": medium.kind, "sha256": digest.hexdigest(), "bytes": size, **medium.options}
