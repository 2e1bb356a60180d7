"""Controllers in this process, and workers that register with them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from tests.serve.helpers.servers import STATUS_PATH, AppThread, begin, http, reply, wait_until
from videollama2.serve.cluster.controller_app import Controller, make_controller_app
from videollama2.serve.cluster.registry import Registry
from videollama2.serve.cluster.worker_call import Patience
from videollama2.serve.legacy import frame
from videollama2.serve.settings import Security

HASTY = Patience(silence=0.1, probe=0.3, total=30)
"""For workers that hang. Where nothing hangs, a test on a busy machine must not take a slow worker for a lost one."""


class ControllerThread(AppThread):
    """A controller as it is served. ``registry``: options of its table of workers."""

    def __init__(self, security: Security | None = None, patience: Patience | None = None, **registry: Any) -> None:
        self.controller = Controller(Registry(**registry), security or Security(), patience)
        super().__init__(make_controller_app(self.controller))

    @property
    def registry(self) -> Registry:
        return self.controller.registry

    def forget_workers(self) -> None:
        """What tests have registered before."""
        wait_until(lambda: self.app.state.gate.active == 0, what="requests of the last test end")
        for worker in self.registry.workers:
            self.registry.remove(worker.name)


class ClockAhead:
    """The clock of a controller, which a test can set ahead."""

    ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


def answering_frames(*texts: str) -> Callable[[str, bytes, asyncio.StreamWriter], Awaitable[None]]:
    """What a :class:`StrangeWorker` does that answers with these texts in the published protocol."""

    async def behave(path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        if path == STATUS_PATH:
            await reply(writer, {"model_names": ["m"], "speed": 2.0, "queue_length": 1})
        elif path == "/health":
            await reply(writer, {})
        else:
            await begin(writer, *(frame({"text": text, "error_code": 0}) for text in texts))
            writer.write(b"0\r\n\r\n")
            await writer.drain()

    return behave


def register(
    controller: AppThread,
    worker: Any,
    *models: str,
    queue: int = 0,
    speed: float = 1.0,
    beats: bool = False,
) -> None:
    """Register a worker, a server or an address, as it would do itself.

    Args:
        models: what it serves; nothing stands for ``m``.
        beats: whether the controller expects to hear from it again.
    """
    status = {"model_names": list(models or ("m",)), "speed": speed, "queue_length": queue}
    name = getattr(worker, "url", worker)
    body = {"worker_name": name, "worker_status": status, "check_heart_beat": beats}
    told = http.post(controller.url + "/register_worker", json=body)
    assert told.status_code == 200, told.text
