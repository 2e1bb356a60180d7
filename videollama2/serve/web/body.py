"""Bodies of requests: bounded while they come, read beside the event loop, and where in them a complaint belongs.

Reading JSON makes an object of every value, and holds all other work up meanwhile. So a body's values are counted as
its bytes arrive, before anything is made of them.
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
"""Values of one body. Media are one long text each."""

MAX_DEPTH = 64
"""Of lists and objects within each other."""

_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_NO_BRACKET = re.compile(rb"[^\[\]{}]+")


class ItemCounter:
    """Counts the values of a JSON text, which comes in pieces, and how deep they are nested."""

    def __init__(self) -> None:
        self.items = self.depth = self._level = 0
        self._is_text = self._is_escaped = False

    def feed(self, data: bytes) -> None:
        """Take in the next piece.

        Raises:
            ApiError: 413, the text holds too many values; 400, it is nested too deeply.
        """
        data = _ESCAPE.sub(b"", b"\\" + data if self._is_escaped else data)
        self._is_escaped = data.endswith(b"\\")  # its letter is in the next piece
        parts = data.split(b'"')  # in turn between texts and within them
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
    """A request whose body is read beside the event loop."""

    async def json(self) -> Any:
        """The body.

        Raises:
            ApiError: it is no JSON.
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
                await request.json()  # here, since FastAPI has words of its own for what it cannot read
            return await handle(request)

        return with_json


def place_of_fault(fault: Mapping[str, Any], body: Any) -> str:
    """Where in a client's body a complaint of pydantic's belongs."""
    location, kind = tuple(fault.get("loc", ())), fault.get("type")
    if kind == "union_tag_not_found":
        return place_in(body, (*location, str(fault["ctx"]["discriminator"]).strip("'")), is_missing=True)
    return place_in(body, location, kind == "missing")


def place_in(body: Any, location: tuple[int | str, ...], is_missing: bool = False) -> str:
    """Where in a client's body a complaint belongs, as ``messages.0.content``.

    Args:
        location: of a validation error; it also names the forms a value was tried as, which the body does not hold.
        is_missing: the last name is that of a field that is not there.
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
    """The one value at this step; none where there is none."""
    if isinstance(step, int):
        return body[step : step + 1] if isinstance(body, list) and step >= 0 else []
    return [body[step]] if isinstance(body, dict) and step in body else []
