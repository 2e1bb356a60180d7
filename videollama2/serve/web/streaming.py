"""Sends replies while they are generated. The work stops when its client disconnects."""

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
"""Status of a request whose client disconnected (nginx's number). It is never received, but appears in logs and
metrics."""

KEEP_ALIVE_S = 15.0
"""Seconds of silence after which a comment is sent in a stream of events, because proxies close idle connections."""


class ClientGoneError(Exception):
    """Raised when the client has closed the connection."""


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do work for a client, whose request body must have been read already, and return the result.

    Raises:
        ClientGoneError: the client disconnected, and the work was cancelled.
    """
    return await _first(work, request.receive)


class Stream(Response):
    """A reply that is sent piece by piece. Use :meth:`begin` to create one.

    Args:
        pending: the task that produces the next piece.
        pieces: the following pieces. The generator is closed at the end, or when the client disconnects.
    """

    keep_alive: bytes | None = None
    """Bytes sent after each :data:`KEEP_ALIVE_S` of silence; None sends nothing."""

    def __init__(self, pending: asyncio.Task[bytes | None], pieces: AsyncGenerator[bytes, None]) -> None:
        self.status_code, self.background, self.body = 200, None, b""
        self._pending, self._pieces = pending, pieces
        # Without this header, proxies (nginx) would buffer small pieces.
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]

    @classmethod
    async def begin(cls, pieces: AsyncGenerator[bytes, None], patience_s: float | None = None) -> Stream:
        """Return the reply once its first piece is available, so that earlier errors still get a status of their own.

        A stream with keep-alive comments begins without its first piece after :data:`KEEP_ALIVE_S`.

        Args:
            patience_s: seconds to wait in place of :data:`KEEP_ALIVE_S`.

        Raises:
            Exception: any error raised while the first piece was produced.
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
        """Return the last piece of a stream that failed after it had begun."""
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
            # The next piece is already being made while one is sent. asyncio.wait() leaves it running when its time is
            # up, and a comment is sent instead.
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
    """A stream of server-sent events. An error after the first event is sent as an event."""

    media_type = sse.CONTENT_TYPE
    keep_alive = sse.KEEP_ALIVE

    @staticmethod
    def render_error(error: ApiError) -> bytes:
        return sse.event(error.body())


async def _end(pending: asyncio.Task[bytes | None], pieces: AsyncGenerator[bytes, None]) -> None:
    """Stop the generator of the pieces, whatever it is doing."""
    pending.cancel()
    await asyncio.gather(pending, return_exceptions=True)
    await pieces.aclose()


class Splitter:
    """Splits a byte stream at a separator, however it is divided into chunks.

    Args:
        limit: maximum number of bytes of one part.
    """

    def __init__(self, separator: bytes, limit: int = 64 << 20) -> None:
        self._separator, self._limit = separator, limit
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the parts that are now complete, without the separator.

        Raises:
            ApiError: a part is longer than the limit.
        """
        # Only the new bytes are searched, together with the end of the old ones, where a separator may have begun.
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
        """The bytes after the last separator."""
        return bytes(self._rest)


async def whole_parts(chunks: AsyncGenerator[bytes, None], separator: bytes) -> AsyncGenerator[bytes, None]:
    """Yield the stream in pieces that each end with a separator, so that an error message never follows half a part.

    Raises:
        ApiError: a part is longer than the limit.
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
        # Wait for the cleanup of the work, so that its resources are free when this function returns.
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
