"""Talks to a controller: lists models, finds workers, and sends chat requests, which are retried with another worker if
one fails before its first token.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import httpx

from videollama2.serve.cluster.affinity import affinity_of_chat
from videollama2.serve.cluster.failover import SUSPECT_S, ask_any
from videollama2.serve.cluster.worker_call import Patience, WorkerLostError, WorkerReply, bearer, make_client
from videollama2.serve.long_text import dumped
from videollama2.serve.web.errors import ApiError, worker_failed

CHAT_PATH = "/v1/chat/completions"
_log = logging.getLogger(__name__)


class ChatStream:
    """A worker's reply to a chat request, whose first bytes have arrived.

    Attributes:
        worker: address of the worker.
        status, headers: HTTP status and headers of the reply.
    """

    def __init__(self, worker: str, reply: WorkerReply) -> None:
        self.worker, self._reply = worker, reply
        self.status: int = reply.status
        self.headers: Mapping[str, str] = reply.headers

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        """Yield the bytes as they arrive: server-sent events, which may be split at any point.

        Raises:
            ApiError: the worker broke off.
        """
        try:
            async for chunk in self._reply:
                yield chunk
        except WorkerLostError as error:
            _log.warning("a stream broke off: %s", error)
            raise worker_failed() from error

    async def json(self) -> dict[str, Any]:
        """Return the reply to a request without ``stream``.

        Raises:
            ApiError: the worker broke off, or its reply is not JSON.
        """
        content = b"".join([chunk async for chunk in self])
        try:
            body = json.loads(content)
        except ValueError as error:
            raise worker_failed("the worker sent a broken answer") from error
        if not isinstance(body, dict):
            raise worker_failed("the worker sent a broken answer")
        return body


class ControllerClient:
    """Talks to one controller and its workers. All its methods must be used in the same event loop.

    Args:
        controller: address of the controller.
        credential: worker token or API key.
        patience: timeouts for the workers.
        timeout_s: timeout for the controller's own replies.
    """

    def __init__(
        self,
        controller: str,
        credential: str | None = None,
        *,
        patience: Patience | None = None,
        timeout_s: float = 15.0,
    ) -> None:
        self.controller = controller.rstrip("/")
        self.patience, self._timeout_s = patience or Patience(), timeout_s
        self._headers = bearer(credential)
        self._client: httpx.AsyncClient | None = None
        self._suspects: dict[str, float] = {}

    @property
    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = make_client()
        return self._client

    async def aclose(self) -> None:
        """Close all connections."""
        if self._client is not None:
            await self._client.aclose()

    async def models(self, refresh: bool = False) -> list[str]:
        """Return the names of the models that are available now.

        Args:
            refresh: make the controller ask its workers first. This requires the worker token; without it, the
                controller returns the list that it has.

        Raises:
            ApiError: the controller cannot be reached.
        """
        if refresh:
            try:
                await self._call("/refresh_all_workers", {})
            except ApiError as error:
                if error.status not in (401, 403):
                    raise
        found = (await self._call("/list_models", {})).get("models")
        if not isinstance(found, list):
            raise ApiError(502, "the controller sent a broken answer", type="server_error")
        return [str(name) for name in found]

    async def lengths(self) -> dict[str, int | None]:
        """Return each available model with its limit on tokens of prompt and answer; None if no worker reports it.

        Raises:
            ApiError: the controller cannot be reached.
        """
        told = (await self._call("/list_max_model_lens", {})).get("max_model_lens")
        known = (
            {name: value for name, value in told.items() if isinstance(value, int)} if isinstance(told, dict) else {}
        )
        return {name: known.get(name) for name in await self.models()}

    async def worker_address(self, model: str, exclude: Collection[str] = (), affinity: str | None = None) -> str:
        """Return the address of a worker that serves this model.

        Args:
            exclude: addresses that have been tried already.
            affinity: key from :func:`videollama2.serve.cluster.affinity.affinity_of`.

        Raises:
            ApiError: 404, there is no such model; 503, no worker has it at the moment, or there is no controller.
        """
        body = {"model": model, "exclude": list(exclude), **({"affinity": affinity} if affinity else {})}
        found = (await self._call("/get_worker_address", body)).get("address")
        if not isinstance(found, str) or not found:
            raise ApiError(502, "the controller sent a broken answer", type="server_error")
        return found

    @asynccontextmanager
    async def open_chat(
        self, body: Mapping[str, Any], request_id: str = "", content: bytes | None = None, path: str = CHAT_PATH
    ) -> AsyncIterator[ChatStream]:
        """Send a chat request. The reply is open inside the ``async with`` block; leaving it early stops the answer.

        If a worker dies or refuses before its first token, another one is tried. Without ``stream`` in the body, this
        holds until the reply is complete.

        Args:
            body: may hold texts of :mod:`videollama2.serve.long_text`.
            content: the body as JSON, if it is at hand.
            path: route of the worker.

        Raises:
            ApiError: the request is invalid, or no worker can take it. While the reply is read: the worker broke off.
        """
        model = str(body.get("model", ""))
        headers = {**self._headers, **({"x-request-id": request_id} if request_id else {})}
        if content is None:
            content = await asyncio.to_thread(dumped, body)
        choose = self._chooser(model, affinity_of_chat(body))
        worker, reply = await ask_any(
            self._http,
            choose,
            path,
            content,
            headers,
            self.patience,
            self._suspect,
            is_whole=not body.get("stream"),
        )
        try:
            yield ChatStream(worker, reply)
        finally:
            await reply.aclose()

    def _chooser(self, model: str, affinity: str | None) -> Any:
        async def choose(tried: tuple[str, ...]) -> tuple[str, str]:
            now = monotonic()
            # The controller learns of a dead worker only when its heartbeats stop. This client has just met it, so it
            # asks for another one first, and for any if there is no other.
            suspects = {name for name, until in self._suspects.items() if until > now} - set(tried)
            if suspects:
                try:
                    found = await self.worker_address(model, [*tried, *suspects], affinity)
                    return found, found
                except ApiError as error:
                    if error.code != "no_worker":
                        raise
            found = await self.worker_address(model, tried, affinity)
            return found, found

        return choose

    def _suspect(self, worker: str) -> None:
        now = monotonic()
        # Old entries are dropped to bound the table: a worker may have a new name after every restart.
        self._suspects = {name: until for name, until in self._suspects.items() if until > now}
        self._suspects[worker] = now + SUSPECT_S

    async def _call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            response = await self._http.post(
                self.controller + path, json=body, headers=self._headers, timeout=self._timeout_s
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            _log.warning("the controller cannot be reached: %s %s", type(error).__name__, error)
            raise ApiError(
                503,
                "the controller of this installation cannot be reached",
                type="server_error",
                code="unreachable",
                retry_after=5.0,
                internal_code=50005,
            ) from error
        try:
            found = response.json()
        except ValueError:
            found = None
        if response.status_code != 200 or not isinstance(found, dict):
            after = response.headers.get("retry-after", "")
            status = response.status_code if response.status_code >= 400 else 502
            raise ApiError.of_body(status, found, float(after) if after.isdecimal() else None)
        return found
