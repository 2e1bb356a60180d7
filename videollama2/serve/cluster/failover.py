"""Takes a request from a worker that is lost to another one.

That is possible as long as none of its reply has been passed on to the client; after that the request fails.
:mod:`.worker_call` decides when a worker is lost.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import httpx

from videollama2.serve.cluster.worker_call import Patience, WorkerLostError, WorkerReply, post_to_worker
from videollama2.serve.web.errors import ApiError, worker_failed

T = TypeVar("T")

_log = logging.getLogger(__name__)

SUSPECT_S = 5.0
"""Seconds for which a worker that failed is avoided if there is another one."""

MOST_DEATHS = 3
"""Maximum number of workers that may fail on one request, which may be the cause and must not reach them all."""

ChooseWorker = Callable[[tuple[str, ...]], Awaitable[tuple[str, str]]]
"""Returns the name and address of a worker, given the names of those that were tried."""


async def ask_any(
    client: httpx.AsyncClient,
    choose: ChooseWorker,
    path: str,
    content: bytes,
    headers: Mapping[str, str],
    patience: Patience,
    on_lost: Callable[[str], None],
    is_whole: bool = False,
) -> tuple[str, WorkerReply]:
    """Ask one worker after another until one begins to answer; return its name and reply.

    Args:
        on_lost: called with the name of each worker that failed.
        is_whole: wait for the complete reply, so that the request can be retried until then.

    Raises:
        ApiError: the request is invalid, or there is no worker (left).
    """

    async def attempt(tried: tuple[str, ...]) -> tuple[str, WorkerReply]:
        name, address = await choose(tried)
        try:
            return name, await completed(
                await post_to_worker(client, address, path, content, headers, patience), is_whole
            )
        except WorkerLostError as error:
            error.worker = name
            on_lost(name)
            raise

    return await retried(attempt)


async def completed(reply: WorkerReply, is_whole: bool = True) -> WorkerReply:
    """Return the reply, with ``is_whole`` once all of it is in memory. It is closed if that fails.

    Raises:
        WorkerLostError: the worker broke off.
    """
    try:
        if is_whole:
            await reply.complete()
        return reply
    except BaseException:
        await reply.aclose()
        raise


async def retried(attempt: Callable[[tuple[str, ...]], Awaitable[T]]) -> T:
    """Try with one worker after another; return the result of the first attempt that does not lose its worker.

    Args:
        attempt: tries with a worker other than those in the tuple of names, which were lost.

    Raises:
        ApiError: the request is invalid, or there is no worker (left).
    """
    # The last refusal that a worker gave is kept as the error for the case that no worker is left. Losses that the
    # request may have caused are counted, and end the search.
    tried: tuple[str, ...] = ()
    told: ApiError | None = None
    deaths = 0
    while True:
        try:
            return await attempt(tried)
        except ApiError:
            if told is not None:
                raise told from None  # the refusal ("busy") is more useful than "no other worker"
            raise
        except WorkerLostError as error:
            _log.warning("a request is taken to another worker: %s", error)
            told = error.told or told
            tried = tried if error.worker is None else (*tried, error.worker)
            deaths += error.had_it
            if deaths >= MOST_DEATHS:
                raise worker_failed("the workers that took this request broke off") from error
