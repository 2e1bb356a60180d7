"""What a request is about, as a word: requests with one word go to one worker, which may have its media cached."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

_ENDS = 1 << 16
"""Characters at either end of a long text that count."""


def affinity_of(texts: Iterable[str]) -> str | None:
    """A word for what a request is about, so that its follow-up finds the worker that has it cached.

    Long texts (media) count by length, beginning and end: the worst that a chance hit does is another place.
    """
    digest, is_empty = blake2b(digest_size=16), True
    for text in texts:
        is_empty = False
        digest.update(f"{len(text)} {text[:_ENDS]}{text[-_ENDS:]}".encode("utf-8", "replace"))
    return None if is_empty else digest.hexdigest()


def affinity_of_chat(body: Mapping[str, Any]) -> str | None:
    """:func:`affinity_of` a chat request: its first media, else its first question. Nothing is known of its shape."""
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if not isinstance(message, dict) or message.get("role") != "user":
            continue
        content = message.get("content")
        if isinstance(content, str):
            return affinity_of([content])
        parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
        fields = [part.get(kind) for part in parts for kind in ("video_url", "image_url")]
        media = [field["url"] for field in fields if isinstance(field, dict) and isinstance(field.get("url"), str)]
        return affinity_of(media or [part["text"] for part in parts if isinstance(part.get("text"), str)])
    return None
