"""Sends requests to replicas of models, and to another replica if one fails before its first token."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

from videollama2.serve.cluster.affinity import affinity_of_chat
from videollama2.serve.cluster.client import CHAT_PATH, ChatStream
from videollama2.serve.cluster.failover import completed, retried
from videollama2.serve.cluster.protocol import WorkerStatus
from videollama2.serve.cluster.worker_call import Patience, WorkerLostError, WorkerReply, first_of, refusal
from videollama2.serve.long_text import dumped
from videollama2.serve.web.errors import ApiError, model_not_found, no_worker, worker_timeout

T = TypeVar("T")

QUEUE_S = 600.0
"""Seconds for which a request waits for a replica that takes it, for example while replicas are starting."""

STATUS_S = 5.0
"""Seconds for a replica to tell its status."""

_log = logging.getLogger(__name__)


class Replicas(Protocol):
    """The replicas of one model."""

    def answer(
        self, path: str, content: bytes, request_id: str, tried: Sequence[str], affinity: str | None
    ) -> ReplicaReply:
        """Send a request to one of the replicas.

        Args:
            tried: names of replicas that lost the request.
            affinity: requests with the same key go to the same replica, unless it is busy.
        """
        ...

    async def status(self) -> WorkerStatus:
        """Return the status of one of the replicas."""
        ...

    def fault(self, error: BaseException, replica: str | None) -> Exception | None:
        """Return what an error of these methods means: a :class:`WorkerLostError`, an :class:`ApiError`, or None if
        the error has nothing to do with replicas.

        Args:
            replica: name of the replica that took the request, if one did.
        """
        ...


class ReplicaReply(Protocol):
    """The reply of a replica as it arrives: the replica's name, status and headers, and the body in pieces."""

    def __anext__(self) -> Awaitable[Any]: ...

    def cancel(self) -> None:
        """Stop the answer."""
        ...


class ReplicaClient:
    """Sends requests to models by name; has the interface :class:`videollama2.serve.cluster.front.Workers`.

    Args:
        models: the replicas of each model.
        patience: its ``total`` is the limit on the silence of a replica, in seconds.
        queue_s: seconds for which a request waits for a replica.
    """

    def __init__(
        self, models: Mapping[str, Replicas], patience: Patience | None = None, queue_s: float = QUEUE_S
    ) -> None:
        self._models, self._patience, self._queue_s = dict(models), patience or Patience(), queue_s
        self._statuses: dict[str, WorkerStatus] = {}

    async def lengths(self) -> dict[str, int | None]:
        """Return each model with its limit on tokens of prompt and answer; None until a replica reports it.

        Raises:
            ApiError: no model has a replica yet.
        """
        statuses = await self.statuses()
        if not statuses:
            raise no_worker(", ".join(self._models))
        return {name: statuses[name].max_model_len if name in statuses else None for name in self._models}

    async def statuses(self) -> dict[str, WorkerStatus]:
        """Return the first status that each model's replicas told, without models whose replicas told none yet."""
        await asyncio.gather(*(self._ask_status(name) for name in self._models if name not in self._statuses))
        return dict(self._statuses)

    async def _ask_status(self, model: str) -> None:
        replicas = self._models[model]
        try:
            self._statuses[model] = await asyncio.wait_for(replicas.status(), STATUS_S)
        except asyncio.TimeoutError:
            _log.info("no replica of %s reports its status yet", model)
        except Exception as error:
            # A replica that is gone or starting is no error of this process; the next call asks again.
            if replicas.fault(error, None) is None:
                raise
            _log.info("%s: %s", model, error)

    @asynccontextmanager
    async def open_chat(
        self, body: Mapping[str, Any], request_id: str = "", content: bytes | None = None, path: str = CHAT_PATH
    ) -> AsyncIterator[ChatStream]:
        """Send a request. The reply is open inside the ``async with`` block; leaving it early stops the answer.

        If a replica dies or refuses before its first token, another one is tried. Without ``stream`` in the body, this
        holds until the reply is complete.

        Raises:
            ApiError: the request is invalid, or no replica can take it. While the reply is read: the replica broke off.
        """
        model = str(body.get("model", ""))
        replicas = self._models.get(model)
        if replicas is None:
            raise model_not_found(model)
        sent = await asyncio.to_thread(dumped, body) if content is None else content
        affinity = affinity_of_chat(body)

        async def attempt(tried: tuple[str, ...]) -> tuple[str, WorkerReply]:
            answering = replicas.answer(path, sent, request_id, tried, affinity)
            name, reply = await _Exchange(model, replicas, answering, self._patience, self._queue_s).begin()
            return name, await completed(reply, not body.get("stream"))

        name, reply = await retried(attempt)
        try:
            yield ChatStream(name, reply)
        finally:
            await reply.aclose()

    async def aclose(self) -> None:
        """Do nothing: Ray closes its connections itself."""


class _Exchange:
    """One request at one replica."""

    def __init__(
        self, model: str, replicas: Replicas, answering: ReplicaReply, patience: Patience, queue_s: float
    ) -> None:
        self._model, self._replicas, self._answering = model, replicas, answering
        self._patience, self._queue_s = patience, queue_s
        self._replica: str | None = None

    async def begin(self) -> tuple[str, WorkerReply]:
        """Return the replica's name and reply, whose first bytes have arrived.

        Raises:
            WorkerLostError: another replica should be tried. ApiError: the request is invalid, or none takes it.
        """
        try:
            # A replica says its name as soon as it takes the request. Until then the request waits in Ray's queue,
            # where silence means that all are busy or still starting. After that, silence is the replica's own.
            self._replica = await self._next(self._queue_s, lambda: no_worker(self._model))
            status, headers = await self._next()
            chunks = self._rest()
            if status >= 400:
                raise refusal(self._replica or "", status, headers, b"".join([chunk async for chunk in chunks]))
            return self._replica or "", WorkerReply(status, headers, await first_of(chunks), chunks, self._close)
        except StopAsyncIteration:
            raise WorkerLostError("a replica ended without a reply", had_it=True, worker=self._replica) from None
        except BaseException:
            await self._close()
            raise

    async def _rest(self) -> AsyncGenerator[bytes, None]:
        while True:
            try:
                yield await self._next()
            except StopAsyncIteration:
                return

    async def _next(self, limit_s: float | None = None, late: Callable[[], ApiError] = worker_timeout) -> Any:
        try:
            return await asyncio.wait_for(self._answering.__anext__(), limit_s or self._patience.total)
        except asyncio.TimeoutError:
            raise late() from None
        except Exception as error:
            fault = self._replicas.fault(error, self._replica)
            if fault is None:
                raise
            raise fault from error

    async def _close(self) -> None:
        self._answering.cancel()


def lost(error: BaseException, replica: str | None) -> WorkerLostError:
    """Return the error for a replica that died or cannot be reached.

    Args:
        replica: name of the replica, if it is known.
    """
    reason = f"{replica or 'a replica'}: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return WorkerLostError(reason, had_it=True, worker=replica)
