"""Writes and reads server-sent events in the form of OpenAI's streams."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from videollama2.serve.web.errors import ApiError

CONTENT_TYPE = "text/event-stream"
SEPARATOR = b"\n\n"
DONE = b"data: [DONE]" + SEPARATOR
"""The last event of a stream of chat completions."""

KEEP_ALIVE = b": keep-alive" + SEPARATOR
"""A comment, which clients skip."""

_LONGEST_LINE = 64 << 20


def event(content: dict[str, Any], name: str | None = None) -> bytes:
    """Return one event.

    Args:
        name: type of the event, for clients that distinguish events by type (``/v1/responses``).
    """
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    # An error may quote half a surrogate pair sent by the client, which UTF-8 cannot encode.
    head = b"" if name is None else b"event: " + name.encode("ascii") + b"\n"
    return head + b"data: " + text.encode("utf-8", "replace") + SEPARATOR


async def read_events(chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the JSON objects of a stream of events, up to ``[DONE]``. Chunks may be split at any point.

    Raises:
        ApiError: an event is not a JSON object, or the stream reports an error.
    """
    buffer = b""
    async with aclosing(chunks):
        async for chunk in chunks:
            buffer += chunk
            *lines, buffer = buffer.split(b"\n")
            if len(buffer) > _LONGEST_LINE:
                raise _broken()
            for data in (line.strip()[5:].strip() for line in lines if line.strip().startswith(b"data:")):
                if data == b"[DONE]":
                    return
                yield _read_event(data)


def _read_event(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except ValueError as error:
        raise _broken() from error
    if not isinstance(content, dict):
        raise _broken()
    if "error" in content:
        raise ApiError.of_body(500, content)
    return content


def _broken() -> ApiError:
    return ApiError(502, "the worker sent a broken answer", type="server_error", code="worker_failed")
