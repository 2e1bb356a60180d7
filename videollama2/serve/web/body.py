"""Request bodies: limits that apply while they arrive, parsing outside the event loop, and paths to faulty fields.

Parsing JSON creates an object for every value and blocks all other work meanwhile. A body's values are therefore
counted as its bytes arrive, before anything is parsed.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from videollama2.serve.web.errors import ApiError

MAX_ITEMS = 1 << 15
"""Maximum number of values in one body. Each medium is a single long text."""

MAX_DEPTH = 64
"""Maximum nesting depth of lists and objects."""

_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_NO_BRACKET = re.compile(rb"[^\[\]{}]+")


class ItemCounter:
    """Counts the values of a JSON text that arrives in pieces, and measures how deeply they are nested."""

    def __init__(self) -> None:
        self.items = self.depth = self._level = 0
        self._is_text = self._is_escaped = False

    def feed(self, data: bytes) -> None:
        """Count the next piece.

        Raises:
            ApiError: 413, the text has too many values; 400, it is nested too deeply.
        """
        # Without escape sequences, every remaining quote begins or ends a string, and the commas and brackets outside
        # of strings give the number of values and their depth.
        data = _ESCAPE.sub(b"", b"\\" + data if self._is_escaped else data)
        self._is_escaped = data.endswith(b"\\")  # the escaped character is in the next piece
        parts = data.split(b'"')  # alternately outside and inside of strings
        self._count(b"".join(parts[self._is_text :: 2]))
        self._is_text ^= len(parts) % 2 == 0

    def _count(self, data: bytes) -> None:
        self.items += data.count(b",") + data.count(b"[") + data.count(b"{")
        if self.items > MAX_ITEMS:
            raise ApiError(413, "the body holds too many values", code="request_too_large")
        for bracket in _NO_BRACKET.sub(b"", data):
            self._level += 1 if bracket in b"[{" else -1
            self.depth = max(self.depth, self._level)
        if self.depth > MAX_DEPTH:
            raise ApiError(400, "the body is nested too deeply", code="invalid_json")


class JSONRequest(Request):
    """A request whose body is parsed in a thread, outside the event loop."""

    async def json(self) -> Any:
        """Return the parsed body.

        Raises:
            ApiError: the body is not JSON.
        """
        if not hasattr(self, "_json"):
            body = await self.body()
            try:
                self._json = await asyncio.to_thread(json.loads, body)
            except (ValueError, RecursionError):
                raise ApiError(400, "the body is not valid JSON", code="invalid_json") from None
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
