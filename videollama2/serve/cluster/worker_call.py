"""Sends a request to a worker and watches it: a slow worker is waited for, a dead or hanging one is given up.

While a worker sends nothing, its ``/health`` is asked at intervals. A worker that answers there is only slow, and is
given more time, up to a limit. One that misses two checks in a row counts as lost.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import httpx

from videollama2.serve.long_text import PIECE
from videollama2.serve.web import sse
from videollama2.serve.web.errors import ApiError, worker_timeout

T = TypeVar("T")

_log = logging.getLogger(__name__)

RETRY_STATUSES = (401, 403, 429, 502, 503, 504)
"""Statuses after which another worker is tried: this one is full, shutting down, or not set up for this caller."""

MAX_ERROR_BYTES = 64 << 10


@dataclass(frozen=True)
class Patience:
    """Timeouts for a worker, in seconds.

    Attributes:
        connect: time to establish the connection.
        silence: time without a byte after which the worker's ``/health`` is checked.
        probe: time for the reply to this check. The worker is lost after two missed checks.
        total: time without a byte after which a request fails although the worker is alive. For an answer that is not
            streamed, this includes the time to generate it.
    """

    connect: float = 3.0
    silence: float = 10.0
    probe: float = 5.0
    total: float = 3600.0


class WorkerLostError(Exception):
    """Raised if a worker cannot be reached, dies, hangs or refuses the request for reasons of its own.

    Args:
        told: the error that the worker reported, if it reported one.
        had_it: whether the worker may have begun to work on the request.
        worker: name of the worker, if it is known.
    """

    def __init__(
        self, reason: str, told: ApiError | None = None, had_it: bool = False, worker: str | None = None
    ) -> None:
        super().__init__(reason)
        self.told, self.had_it, self.worker = told, had_it, worker


def make_client() -> httpx.AsyncClient:
    """Return an HTTP client for requests to other parts of the installation."""
    # Connections are not kept alive: one to a worker that was restarted would fail as if the worker had died. Proxies
    # from the environment are not used between the parts.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(
        trust_env=False, limits=limits, timeout=httpx.Timeout(30.0, connect=3.0), verify=_trusted_certificates()
    )


@cache
def _trusted_certificates() -> ssl.SSLContext:
    """Return the TLS settings that all clients share, because reading the certificates takes 25 ms each time."""
    return httpx.create_ssl_context(trust_env=False)


def bearer(credential: str | None) -> dict[str, str]:
    """Return the headers with a key, if there is one."""
    return {} if credential is None else {"authorization": f"Bearer {credential}"}


class WorkerReply:
    """A worker's reply whose first bytes have arrived. It must be closed.

    Args:
        status, headers: HTTP status and headers.
        first: the first bytes.
        rest: the bytes after them; raises :class:`WorkerLostError` if the worker breaks off.
        close: ends the connection.
    """

    def __init__(
        self,
        status: int,
        headers: Mapping[str, str],
        first: bytes,
        rest: AsyncIterator[bytes],
        close: Callable[[], Awaitable[None]],
    ) -> None:
        self.status, self.headers = status, headers
        self._first, self._rest, self._close = first, rest, close

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        """Yield the bytes as they arrive.

        Raises:
            WorkerLostError: the worker broke off.
        """
        if self._first:
            yield self._first
        async for chunk in self._rest:
            yield chunk

    async def read(self, limit: int = 64 << 20) -> bytes:
        """Return the complete reply.

        Raises:
            WorkerLostError: the worker broke off, or sent more than ``limit`` bytes.
        """
        content = bytearray()
        async for chunk in self:
            content += chunk
            if len(content) > limit:
                raise WorkerLostError(f"a reply of more than {limit} bytes")
        return bytes(content)

    async def complete(self) -> None:
        """Read the complete reply into memory now.

        Raises:
            WorkerLostError: as for :meth:`read`.
        """
        # An iteration now yields everything at once, and then finds the rest exhausted.
        self._first = await self.read()

    async def aclose(self) -> None:
        await self._close()


async def post_to_worker(
    client: httpx.AsyncClient, address: str, path: str, content: bytes, headers: Mapping[str, str], patience: Patience
) -> WorkerReply:
    """Post JSON to a worker and wait for the first bytes of its reply, which come with the first token.

    Raises:
        WorkerLostError: another worker should be tried. ApiError: the request is invalid.
    """
    # Reading has no timeout: a worker may compute for minutes before its first token, and only its own /health tells a
    # busy worker from a dead one.
    timeout = httpx.Timeout(None, connect=patience.connect, write=60.0)
    request = client.build_request(
        "POST",
        address + path,
        content=_in_pieces(content),
        headers={"content-type": "application/json", "content-length": str(len(content)), **headers},
        timeout=timeout,
    )
    watch = _Watch(client, address, patience)
    try:
        response = await watch.over(client.send(request, stream=True))
    except httpx.InvalidURL as error:
        raise WorkerLostError(f"{address}: {error}") from error

    async def close() -> None:
        with suppress(httpx.HTTPError):
            await response.aclose()

    try:
        if response.status_code >= 400:
            raise refusal(address, response.status_code, response.headers, await _some(response))
        chunks = watch.all_of(response.aiter_raw())
        return WorkerReply(response.status_code, response.headers, await first_of(chunks), chunks, close)
    except BaseException:
        await close()
        raise


async def _in_pieces(content: bytes) -> AsyncGenerator[bytes, None]:
    """Yield content to send. The transport would copy all of it at once."""
    for start in range(0, len(content), PIECE):
        yield content[start : start + PIECE]


async def first_of(chunks: AsyncIterator[bytes]) -> bytes:
    """Return the first bytes of a reply behind keep-alive comments, or none if it is empty.

    A comment may come long before the first token, and the request can be taken to another worker after it.
    """
    async for chunk in chunks:
        while chunk.startswith(sse.KEEP_ALIVE):
            chunk = chunk.removeprefix(sse.KEEP_ALIVE)
        if chunk:
            return chunk
    return b""


async def _some(response: httpx.Response) -> bytes:
    """Return the body of an error, as far as it arrives."""
    content = bytearray()
    with suppress(httpx.HTTPError):
        async for chunk in response.aiter_raw():
            content += chunk
            if len(content) > MAX_ERROR_BYTES:
                break
    return bytes(content)


def refusal(worker: str, status: int, headers: Mapping[str, str], content: bytes) -> WorkerLostError | ApiError:
    """Return the error that a worker's error reply stands for.

    Returns:
        A :class:`WorkerLostError` if another worker should be tried, or the error for the client.
    """
    try:
        # Errors of the \0 protocol end with a zero byte.
        body: Any = json.loads(content.rstrip(b"\0"))
    except ValueError:
        body = None
    after = headers.get("retry-after", "")
    error = ApiError.of_body(status, body, float(after) if after.isdecimal() else None)
    # If no worker is left, the client gets the last refusal that concerns it: busy, or shutting down. A key that does
    # not fit, or a gateway, is a matter of the installation and must not look like the client's mistake.
    if status in RETRY_STATUSES:
        return WorkerLostError(f"{worker}: {status} {error}", error if status in (429, 503) else None, worker=worker)
    return error


class _Watch:
    """Waits for a worker's bytes, and checks after a long silence whether the worker is alive."""

    def __init__(self, client: httpx.AsyncClient, address: str, patience: Patience) -> None:
        self._client, self._address, self._patience = client, address, patience

    async def over(self, work: Awaitable[T]) -> T:
        """Return the result of ``work``, which waits for bytes of the worker.

        Raises:
            WorkerLostError: the work failed, or the worker hangs. ApiError: the worker is alive but takes too long.
        """
        # asyncio.wait leaves the work running when its time is over. wait_for would cancel it, and with it the request.
        task = asyncio.ensure_future(work)
        waited, missed = 0.0, 0
        try:
            while not (await asyncio.wait({task}, timeout=self._patience.silence))[0]:
                waited += self._patience.silence
                missed = 0 if await self._is_alive(task) else missed + 1
                # A single miss may be a machine that was held up for a moment. A worker that is really gone misses the
                # next check too.
                if missed >= 2:
                    raise WorkerLostError(f"{self._address} has been silent for {waited:g} s", had_it=True)
                if waited >= self._patience.total:
                    raise worker_timeout()
            return task.result()
        except httpx.HTTPError as error:
            # Without a connection, the worker has not seen the request, so the request cannot be what ended it.
            had_it = not isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))
            raise WorkerLostError(f"{self._address}: {type(error).__name__}: {error}", had_it=had_it) from error
        finally:
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError, httpx.HTTPError):
                    await task

    async def all_of(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of a reply.

        Raises:
            WorkerLostError, ApiError: as for :meth:`over`.
        """
        while (chunk := await self.over(_next(chunks))) is not None:
            yield chunk

    async def _is_alive(self, task: asyncio.Future[Any]) -> bool:
        try:
            await self._client.get(self._address + "/health", timeout=self._patience.probe)
        except httpx.HTTPError as error:
            _log.info("%s does not answer: %s", self._address, type(error).__name__)
            # A reply that came during the check says more than the check.
            return task.done()
        return True


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    return await anext(chunks, None)
