"""Work for a client that may leave: it ends when the client does, not with the next byte that cannot be sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")


class ClientGoneError(Exception):
    """The client has closed the connection."""


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do work whose result goes to this client; the body of the request must have been read.

    Raises:
        ClientGoneError: the client left; the work was cancelled.
    """
    return await _first(work, request.receive)


class EventStream(Response):
    """Server-sent events.

    Args:
        first: the first event.
        events: the others; closed in the end, also when the client leaves.
    """

    media_type = "text/event-stream"

    def __init__(self, first: bytes, events: AsyncIterator[bytes]) -> None:
        self.status_code, self.background, self.body = 200, None, b""
        self._first, self._events = first, events
        # Proxies (nginx) would hold small events back.
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientGoneError, OSError):
            await _first(self._send(send), receive)

    async def _send(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": self._first, "more_body": True})
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _first(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_departure(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError("the client has left")
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        # Until the work has cleaned up: what it holds is free when this returns.
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
