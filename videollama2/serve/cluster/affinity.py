"""Gives requests an affinity: those with the same key go to the same worker, which may have their media cached."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any

from videollama2.serve.long_text import Text, beginning, ending

_ENDS = 1 << 16
"""Number of characters at each end of a long text that enter its key."""

_MEDIA = ("video_url", "image_url", "audio_url", "input_audio")
"""Fields of a part that hold a medium: its address, or an object with its ``url`` or ``data``."""

SLACK = 4
"""Number of requests above its share that a worker takes for their affinity, because it may have their media cached."""


def affinity_of(texts: Iterable[Text]) -> str | None:
    """Return a key of what a request is about, so that follow-up requests find the worker that has it cached.

    Only the length, the beginning and the end of a text are hashed, since media are long. A collision is harmless: it
    only sends a request to a different worker.
    """
    digest, is_empty = blake2b(digest_size=16), True
    for text in texts:
        is_empty = False
        digest.update(f"{len(text)} {beginning(text, _ENDS)}".encode("utf-8", "replace") + ending(text, _ENDS))
    return None if is_empty else digest.hexdigest()


def affinity_of_chat(body: Mapping[str, Any]) -> str | None:
    """Return the key of an unvalidated request of chat or responses: its first medium, or else its first question."""
    question: str | None = None
    for part in _parts_asked(body):
        medium = next((found for field in _MEDIA if (found := _address(part.get(field))) is not None), None)
        if medium is not None:
            return affinity_of([medium])
        if question is None and isinstance(part.get("text"), str):
            question = part["text"]
    return None if question is None else affinity_of([question])


def _parts_asked(body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the parts of the user's messages."""
    messages = body.get("messages", body.get("input"))
    if isinstance(messages, str):
        yield {"text": messages}
    for message in messages if isinstance(messages, list) else ():
        if not isinstance(message, dict) or message.get("role") != "user":
            continue
        content = message.get("content")
        if isinstance(content, str):
            yield {"text": content}
        elif isinstance(content, list):
            yield from (part for part in content if isinstance(part, dict))


def _address(value: Any) -> Text | None:
    if isinstance(value, dict):
        value = value.get("url", value.get("data"))
    return value if isinstance(value, Text) else None


def favourite(affinity: str, names: Iterable[str]) -> str:
    """Return the preferred worker for a key.

    Every pair of key and worker has a hash, and the highest one wins (rendezvous hashing). When a worker comes or goes,
    only the keys that it wins or won change their worker.
    """
    return max(names, key=lambda name: blake2b(f"{affinity} {name}".encode(), digest_size=8).digest())
