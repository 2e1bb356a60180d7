"""Affinity keys of requests. Requests with the same key go to the same worker, which may have their media cached."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

from videollama2.serve.long_text import Text, beginning, ending

_ENDS = 1 << 16
"""Number of characters at each end of a long text that enter its key."""


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
    """Return the key of an unvalidated chat request: that of its first media, or else of its first question."""
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if not isinstance(message, dict) or message.get("role") != "user":
            continue
        content = message.get("content")
        if isinstance(content, str):
            return affinity_of([content])
        parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
        fields = [part.get(kind) for part in parts for kind in ("video_url", "image_url")]
        media = [field["url"] for field in fields if isinstance(field, dict) and isinstance(field.get("url"), Text)]
        return affinity_of(media or [part["text"] for part in parts if isinstance(part.get("text"), str)])
    return None
