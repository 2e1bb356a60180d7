"""Reads request bodies: limits that apply while they arrive, parsing in small steps, and paths to faulty fields.

Parsing JSON creates an object for every value, and blocks all other work meanwhile, even from another thread. A body's
values are therefore counted as its bytes arrive, before anything is parsed, and its long strings are kept apart.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from videollama2.serve.long_text import LONG_BYTES, LongText
from videollama2.serve.web.errors import ApiError

MAX_ITEMS = 1 << 15
"""Maximum number of values in one body. Each medium is a single long text."""

MAX_DEPTH = 64
"""Maximum nesting depth of lists and objects."""

MAX_TEXT_BYTES = 2 << 20
"""Maximum number of bytes of one body outside of media."""

MEDIA_FIELDS = frozenset({"messages", "input", "images"})
"""Top-level fields of bodies that hold media."""

MEDIA_NAMES = frozenset({"url", "image_url", "video_url", "audio_url", "data", "images"})
"""Fields in them whose long strings stay a :class:`~videollama2.serve.long_text.LongText`."""

LONG_SPANS = "long_spans"
"""Key of a request's state: beginnings and ends of the long strings in its body."""

_SLICE = LONG_BYTES
_NO_BRACKET = re.compile(rb"[^\[\]{}]+")


class BodyScanner:
    """Looks through a JSON text that arrives in pieces.

    Attributes:
        items: number of its values.
        depth: maximum nesting depth.
        size: number of bytes so far.
        long_spans: beginning and end of each long string, without the quotes.
    """

    def __init__(self) -> None:
        self.items = self.depth = self.size = self._level = 0
        self.long_spans: list[tuple[int, int]] = []
        self._is_text = self._is_escaped = False
        self._text_start = self._long_bytes = 0

    def feed(self, data: bytes) -> None:
        """Look through the next piece.

        Raises:
            ApiError: 413, the text has too many values, or too many bytes besides long strings; 400, it is nested too
                deeply.
        """
        for at in range(0, len(data), _SLICE):
            self._feed(data[at : at + _SLICE])

    def _feed(self, data: bytes) -> None:
        # Without escaped quotes and backslashes, every quote begins or ends a string, and the commas and brackets
        # outside of strings give the number of values and their depth. A filler keeps the positions as they are.
        plain = data
        if self._is_escaped:
            plain = b"_" + plain[1:]
        plain = plain.replace(b"\\\\", b"__").replace(b'\\"', b"__")
        self._is_escaped = plain.endswith(b"\\")  # the escaped character is in the next piece
        parts = plain.split(b'"')  # alternately outside and inside of strings
        self._find_long(parts)
        self._count(b"".join(parts[self._is_text :: 2]))
        self._is_text ^= len(parts) % 2 == 0
        self.size += len(data)
        open_bytes = self.size - self._text_start if self._is_text else 0
        if self.size - self._long_bytes - (open_bytes if open_bytes > LONG_BYTES else 0) > MAX_TEXT_BYTES:
            raise too_much_text()

    def _find_long(self, parts: Sequence[bytes]) -> None:
        """Note the string that ends in this piece if it is long, and the beginning of the one that goes on behind it.

        A piece is no longer than :data:`LONG_BYTES`, so that no string within it is long.
        """
        if len(parts) == 1:
            return
        if self._is_text:
            end = self.size + len(parts[0])
            if end - self._text_start > LONG_BYTES:
                self.long_spans.append((self._text_start, end))
                self._long_bytes += end - self._text_start
        self._text_start = self.size + sum(map(len, parts)) + len(parts) - 1 - len(parts[-1])

    def _count(self, data: bytes) -> None:
        self.items += data.count(b",") + data.count(b"[") + data.count(b"{")
        if self.items > MAX_ITEMS:
            raise ApiError(413, "the body holds too many values", code="request_too_large")
        for bracket in _NO_BRACKET.sub(b"", data):
            self._level += 1 if bracket in b"[{" else -1
            self.depth = max(self.depth, self._level)
        if self.depth > MAX_DEPTH:
            raise ApiError(400, "the body is nested too deeply", code="invalid_json")


def too_much_text() -> ApiError:
    """Return the error of a body with too much text."""
    message = f"the body holds more than {MAX_TEXT_BYTES} bytes outside of media"
    return ApiError(413, message, code="request_too_large")


def parse(body: bytes, long_spans: Sequence[tuple[int, int]] = ()) -> Any:
    """Parse a body.

    Args:
        long_spans: as :class:`BodyScanner` found them.

    Returns:
        The value, in which long strings of media are :class:`~videollama2.serve.long_text.LongText`.

    Raises:
        ApiError: the body is not JSON, or its texts are too long.
    """
    try:
        if not long_spans:
            return json.loads(body)
        # Random names, which no client knows, stand for the long strings until the rest is parsed.
        names = [secrets.token_hex(16) for _ in long_spans]
        bounds = [0, *(at for span in long_spans for at in span), len(body)]
        kept = [body[start:end] for start, end in zip(bounds[::2], bounds[1::2], strict=True)]
        rest = b"".join(part + name.encode() for part, name in zip(kept, [*names, ""], strict=True))
        texts = {name: LongText(body, *span) for name, span in zip(names, long_spans, strict=True)}
        return _Filler(texts, len(rest)).filled(json.loads(rest), "", False)
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is not valid JSON", code="invalid_json") from None


class _Filler:
    """Puts long strings back into their places.

    Args:
        texts: the strings by the names that stand for them.
        size: bytes of text so far.
    """

    def __init__(self, texts: Mapping[str, LongText], size: int) -> None:
        self._texts, self._size = texts, size

    def filled(self, value: Any, name: str, is_medium: bool) -> Any:
        """Return a value with its long strings.

        Args:
            name: name of the nearest field that holds the value.
            is_medium: whether the value is in one of :data:`MEDIA_FIELDS`.
        """
        if isinstance(value, dict):
            if not self._texts.keys().isdisjoint(value):
                raise too_much_text()
            return {
                key: self.filled(each, key, is_medium or not name and key in MEDIA_FIELDS)
                for key, each in value.items()
            }
        if isinstance(value, list):
            return [self.filled(each, name, is_medium) for each in value]
        text = self._texts.get(value) if isinstance(value, str) else None
        if text is None or is_medium and name in MEDIA_NAMES:
            return value if text is None else text
        self._size += len(text)
        if self._size > MAX_TEXT_BYTES:
            raise too_much_text()
        return "".join(text.pieces())


class JSONRequest(Request):
    """A request whose body is parsed in a thread, outside the event loop."""

    async def body(self) -> bytes:
        """Return the body without a copy, which Starlette makes."""
        if not hasattr(self, "_body"):
            chunks = [chunk async for chunk in self.stream() if chunk]
            self._body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        return self._body

    async def json(self) -> Any:
        """Return the parsed body; see :func:`parse`.

        Raises:
            ApiError: the body is not JSON, or its texts are too long.
        """
        if not hasattr(self, "_json"):
            spans = self.scope.get("state", {}).get(LONG_SPANS, ())
            self._json = await asyncio.to_thread(parse, await self.body(), spans)
        return self._json


class JSONRoute(APIRoute):
    """A route whose requests are :class:`JSONRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def with_json(request: Request) -> Response:
            request = JSONRequest(request.scope, request.receive)
            if request.method == "POST" and await request.body():
                await request.json()  # parsed here because FastAPI's own errors look different
            return await handle(request)

        return with_json


def place_of_fault(fault: Mapping[str, Any], body: Any) -> str:
    """Return the path of the field in a client's body that a pydantic error is about."""
    location, kind = tuple(fault.get("loc", ())), fault.get("type")
    if kind == "union_tag_not_found":
        return place_in(body, (*location, str(fault["ctx"]["discriminator"]).strip("'")), is_missing=True)
    return place_in(body, location, kind == "missing")


def place_in(body: Any, location: tuple[int | str, ...], is_missing: bool = False) -> str:
    """Return the path of a faulty field in a client's body, such as ``messages.0.content``.

    Args:
        location: location of a validation error, which also names the union members that were tried; these are not in
            the body and are left out.
        is_missing: whether the last name is that of a missing field.
    """
    found: list[str] = []
    for number, step in enumerate(location, 1):
        inner = _inner(body, step)
        if inner:
            body = inner[0]
        elif not (is_missing and number == len(location)):
            continue
        found.append(str(step))
    return ".".join(found)


def _inner(body: Any, step: int | str) -> list[Any]:
    """Return a list of the one value at this step, or an empty list if there is none."""
    if isinstance(step, int):
        return body[step : step + 1] if isinstance(body, list) and step >= 0 else []
    return [body[step]] if isinstance(body, dict) and step in body else []
