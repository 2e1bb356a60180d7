"""Replies that are sent while they are made, to clients that may leave: the work ends when its client does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from videollama2.serve.web import sse
from videollama2.serve.web.errors import ApiError

T = TypeVar("T")

CLIENT_GONE = 499
"""Status (nginx's) of a request whose client left. Nobody receives it, but logs and metrics show it."""

KEEP_ALIVE_S = 15.0
"""Longest silence of a stream of events; after it, a comment is sent, because proxies cut connections that are idle."""


class ClientGoneError(Exception):
    """The client has closed the connection."""


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do work whose result goes to this client; the body of the request must have been read.

    Raises:
        ClientGoneError: the client left; the work was cancelled.
    """
    return await _first(work, request.receive)


class Stream(Response):
    """A reply that is sent piece by piece. :meth:`begin` makes one.

    Args:
        pending: the piece that comes next, or has come.
        pieces: the others; closed in the end, also when the client leaves.
    """

    keep_alive: bytes | None = None
    """What is sent after each :data:`KEEP_ALIVE_S` of silence; None: nothing."""

    def __init__(self, pending: asyncio.Task[bytes | None], pieces: AsyncGenerator[bytes, None]) -> None:
        self.status_code, self.background, self.body = 200, None, b""
        self._pending, self._pieces = pending, pieces
        # Proxies (nginx) would hold small pieces back.
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]

    @classmethod
    async def begin(cls, pieces: AsyncGenerator[bytes, None], patience_s: float | None = None) -> Stream:
        """The reply, once its first piece is there: what goes wrong before it still has a status of its own.

        A stream that can keep its connection alive begins without its first piece after :data:`KEEP_ALIVE_S`.

        Args:
            patience_s: in place of :data:`KEEP_ALIVE_S`.

        Raises:
            Exception: what making the first piece raised.
        """
        pending = asyncio.ensure_future(anext(pieces, None))
        timeout = None if cls.keep_alive is None else patience_s or KEEP_ALIVE_S
        try:
            await asyncio.wait({pending}, timeout=timeout)
            if pending.done():
                pending.result()
        except BaseException:
            await _end(pending, pieces)
            raise
        return cls(pending, pieces)

    @staticmethod
    def render_error(error: ApiError) -> bytes:
        """The last piece of a stream that broke off after it had begun."""
        raise NotImplementedError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientGoneError, OSError):
            await _first(self._send(send), receive)

    async def _send(self, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with aclosing(self._all()) as pieces:
                async for piece in pieces:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await _end(self._pending, self._pieces)

    async def _all(self) -> AsyncGenerator[bytes, None]:
        timeout = None if self.keep_alive is None else KEEP_ALIVE_S
        try:
            while True:
                while self.keep_alive and not self._pending.done():
                    yield self.keep_alive
                    await asyncio.wait({self._pending}, timeout=timeout)
                piece = await self._pending
                if piece is None:
                    return
                yield piece
                self._pending = asyncio.ensure_future(anext(self._pieces, None))
                await asyncio.wait({self._pending}, timeout=timeout)
        except ApiError as error:
            yield self.render_error(error)


class EventStream(Stream):
    """Server-sent events. An error after the first is sent as an event."""

    media_type = sse.CONTENT_TYPE
    keep_alive = sse.KEEP_ALIVE

    @staticmethod
    def render_error(error: ApiError) -> bytes:
        return sse.event(error.body())


async def _end(pending: asyncio.Task[bytes | None], pieces: AsyncGenerator[bytes, None]) -> None:
    """End what makes the pieces, wherever it is."""
    pending.cancel()
    await asyncio.gather(pending, return_exceptions=True)
    await pieces.aclose()


class Splitter:
    """Cuts a byte stream at a separator, whatever pieces it comes in.

    Args:
        limit: of one part.
    """

    def __init__(self, separator: bytes, limit: int = 64 << 20) -> None:
        self._separator, self._limit = separator, limit
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Parts that are complete now, without the separator.

        Raises:
            ApiError: a part is longer than the limit.
        """
        # Only the new bytes, and what could be a separator's beginning before them, are searched.
        start = max(0, len(self._rest) - len(self._separator) + 1)
        self._rest += data
        begin = 0
        while (end := self._rest.find(self._separator, max(start, begin))) >= 0:
            yield bytes(self._rest[begin:end])
            begin = end + len(self._separator)
        del self._rest[:begin]
        if len(self._rest) > self._limit:
            raise ApiError(502, "the worker sent a broken answer", type="server_error", code="worker_failed")

    @property
    def rest(self) -> bytes:
        """What has not been ended."""
        return bytes(self._rest)


async def whole_parts(chunks: AsyncGenerator[bytes, None], separator: bytes) -> AsyncGenerator[bytes, None]:
    """The stream in pieces that each end with a separator, so that an error that follows never runs into half a part.

    Raises:
        ApiError: a part is longer than a part can be.
    """
    splitter = Splitter(separator)
    async with aclosing(chunks):
        async for chunk in chunks:
            whole = b"".join(part + separator for part in splitter.feed(chunk))
            if whole:
                yield whole


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
