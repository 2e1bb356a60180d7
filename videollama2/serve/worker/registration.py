"""Reports a worker to its controller: registration, heartbeats with the queue length, and sign-off.

The loop never gives up and never delays the worker. An unreachable controller is tried again; if a restarted
controller replies that it does not know the worker, the worker registers again at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import cached_property
from time import monotonic
from typing import Any

import httpx

from videollama2.serve.cluster.protocol import HEART_BEAT_S, PROTOCOL_VERSION, WorkerStatus
from videollama2.serve.cluster.worker_call import bearer, make_client

RETRY_S = 3.0
"""Seconds between attempts to register, unless the interval is shorter."""

REPORT_S = 1.0
"""Minimum seconds between reports of a changing queue."""

_log = logging.getLogger(__name__)


class Registration:
    """Registers one worker and keeps it registered.

    Args:
        controller: address of the controller.
        worker: this worker's address, as others reach it.
        status: returns the worker's current status.
        credential: worker token or key.
        interval_s: seconds between heartbeats. They come sooner when the queue changes or requests arrive, because the
            controller counts the requests that it sends and needs to know which are finished.
        taken: returns the number of requests so far.
    """

    def __init__(
        self,
        controller: str,
        worker: str,
        status: Callable[[], WorkerStatus],
        credential: str | None = None,
        interval_s: float = HEART_BEAT_S,
        taken: Callable[[], int] = lambda: 0,
    ) -> None:
        self.controller, self.worker, self.interval_s = controller, worker, interval_s
        self.is_registered = False
        self._status, self._taken, self._headers = status, taken, bearer(credential)
        self._task: asyncio.Task[None] | None = None
        self._was_reached = self._was_heard = True
        self._reported = (-1, 0, float("-inf"))

    @cached_property
    def _http(self) -> httpx.AsyncClient:
        return make_client()

    def start(self) -> None:
        """Start the reports in the running event loop."""
        self._task = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        """Stop, and sign off if the controller replies quickly."""
        if self._task is None:
            return
        # The loop ends first, or a heartbeat that is under way could register the worker again after it has signed off.
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        if self.is_registered:
            await self._post("/unregister_worker", {"worker_name": self.worker}, timeout_s=2.0)
            self.is_registered = False
        await self._http.aclose()

    async def _run(self) -> None:
        while True:
            await self._report()
            await self._wait()

    async def _wait(self) -> None:
        """Wait until the next report is due."""
        if not (self.is_registered and self._was_heard):  # after a lost heartbeat, the next one comes early
            await asyncio.sleep(min(self.interval_s, RETRY_S))
            return
        # Looks at the queue every second at most, and reports early if it has changed. Both numbers are compared, since
        # one request may have ended and another one begun, which leaves the queue as it was.
        queue, taken, since = self._reported
        while (left := since + self.interval_s - monotonic()) > 0:
            await asyncio.sleep(min(left, REPORT_S))
            if self._status().queue_length != queue or self._taken() != taken:
                return

    async def _report(self) -> None:
        status = self._status()
        self._reported = status.queue_length, self._taken(), monotonic()
        if self.is_registered:
            # The reply tells whether the controller knows this worker; one that was restarted does not.
            body = {"worker_name": self.worker, "queue_length": status.queue_length, "speed": status.speed}
            reply = await self._post("/receive_heart_beat", body)
            self._was_heard = reply is not None
            if reply is None or reply.get("exist") is True:
                return  # without a reply, the next heartbeat will show whether to register
            _log.info("the controller does not know this worker any more")
            self.is_registered = False
        await self._register(status)

    async def _register(self, status: WorkerStatus) -> None:
        body = {
            "worker_name": self.worker,
            "check_heart_beat": True,
            "worker_status": status.model_dump(),
            "multimodal": True,
            "protocol_version": PROTOCOL_VERSION,
        }
        if await self._post("/register_worker", body) is not None:
            self.is_registered = self._was_heard = True
            _log.info("registered with %s as %s", self.controller, self.worker)

    async def _post(self, path: str, body: dict[str, Any], timeout_s: float | None = None) -> dict[str, Any] | None:
        """Post a body; return the reply, or None if there was no usable one."""
        timeout_s = timeout_s or min(10.0, max(1.0, self.interval_s))
        try:
            response = await self._http.post(
                self.controller + path, json=body, headers=self._headers, timeout=timeout_s
            )
            if response.status_code == 200:
                found = response.json()
                self._tell(True, "")
                return found if isinstance(found, dict) else {}
            self._tell(False, f"{path}: {response.status_code} {response.text[:200]}")
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            self._tell(False, f"{path}: {type(error).__name__} {error}")
        return None

    def _tell(self, is_reached: bool, why: str) -> None:
        """Log whether the controller can be reached, once per change rather than once per attempt."""
        if is_reached != self._was_reached:
            if is_reached:
                _log.info("the controller %s is back", self.controller)
            else:
                _log.warning("no use of the controller %s; trying on (%s)", self.controller, why)
        self._was_reached = is_reached
