"""Keeps the registered workers, and chooses a worker for a request.

Nothing here waits or locks: a controller has one event loop, and every method runs as one uninterrupted step of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from random import Random
from time import monotonic

from videollama2.serve.cluster.affinity import SLACK, favourite
from videollama2.serve.cluster.failover import SUSPECT_S
from videollama2.serve.cluster.protocol import EXPIRY_S, WorkerStatus
from videollama2.serve.web.errors import ApiError, model_not_found, no_worker

METHODS = ("shortest_queue", "lottery")

MAX_WORKERS = 1024
MAX_MODELS = 4096


@dataclass
class Worker:
    """A worker as the controller knows it.

    Attributes:
        name: the address that the worker registered; clients are given this one.
        address: the address that this controller connects to.
        queue: number of requests in the last report, plus those sent to the worker since.
        is_checked: whether the worker sends heartbeats. If it does not, the controller asks for its status.
        seen: time of its last report or reply.
        suspect_until: time until which the worker is avoided because of its last failure.
    """

    name: str
    address: str
    models: tuple[str, ...]
    speed: float
    queue: int
    is_checked: bool
    seen: float
    suspect_until: float = float("-inf")
    multimodal: bool = True
    max_model_len: int | None = None


class Registry:
    """The workers of one controller.

    Args:
        method: one of :data:`METHODS`. ``lottery`` chooses at random, in proportion to speed; ``shortest_queue`` takes
            the worker with the shortest queue relative to its speed.
        expiry_s: seconds of silence after which a worker is forgotten.
        clock, random: replaceable for tests.
    """

    def __init__(
        self,
        method: str = METHODS[0],
        expiry_s: float = EXPIRY_S,
        clock: Callable[[], float] = monotonic,
        random: Random | None = None,
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"no dispatch method {method!r}")
        self.method, self.expiry_s = method, expiry_s
        self._clock, self._random = clock, random or Random()
        self._workers: dict[str, Worker] = {}
        self._known: dict[str, None] = {}
        self._started = clock()

    def register(
        self,
        name: str,
        status: WorkerStatus,
        address: str | None = None,
        is_checked: bool = True,
        multimodal: bool = True,
    ) -> None:
        """Add a worker, or update what is known about it.

        Raises:
            ApiError: there are too many workers.
        """
        self.expire()
        if name not in self._workers and len(self._workers) >= MAX_WORKERS:
            raise ApiError(503, f"this controller has {MAX_WORKERS} workers already", "server_error", retry_after=30)
        # This replaces what was known: a worker that registers anew may have been restarted, so it is not suspect any
        # more.
        self._workers[name] = Worker(
            name,
            address or name,
            tuple(dict.fromkeys(status.model_names)),
            status.speed,
            status.queue_length,
            is_checked,
            self._clock(),
            multimodal=multimodal,
            max_model_len=status.max_model_len,
        )
        for model in status.model_names:
            # Names are kept after the last worker of a model is gone, so that clients are told to come again (503) and
            # not that there is no such model (404). The bound is for workers that invent names.
            if len(self._known) < MAX_MODELS:
                self._known[model] = None

    def beat(self, name: str, queue: int, speed: float | None = None) -> bool:
        """Record a heartbeat. Return False if the worker is unknown (or forgotten) and has to register."""
        self.expire()
        worker = self._workers.get(name)
        if worker is None:
            return False
        worker.queue, worker.seen, worker.speed = queue, self._clock(), speed or worker.speed
        return True

    def told(self, worker: Worker, status: WorkerStatus) -> None:
        """Record the status that a worker reported when it was asked."""
        worker.models, worker.speed = tuple(status.model_names), status.speed
        worker.queue, worker.seen = status.queue_length, self._clock()
        worker.max_model_len = status.max_model_len

    def remove(self, name: str) -> bool:
        """Forget a worker; return whether it was known."""
        return self._workers.pop(name, None) is not None

    def failed(self, worker: Worker) -> None:
        """Record that a worker could not be reached or broke off."""
        worker.suspect_until = self._clock() + SUSPECT_S

    def finished(self, worker: Worker) -> None:
        """Record that a request for which :meth:`choose` returned this worker has ended."""
        worker.queue = max(0, worker.queue - 1)

    def expire(self) -> list[str]:
        """Forget the workers that have been silent for too long; return their names."""
        oldest = self._clock() - self.expiry_s
        gone = [worker.name for worker in self._workers.values() if worker.seen < oldest]
        for name in gone:
            del self._workers[name]
        return gone

    @property
    def workers(self) -> list[Worker]:
        """The workers that are registered now."""
        self.expire()
        return list(self._workers.values())

    def models(self, multimodal: bool | None = None) -> list[str]:
        """Return the names of the available models in alphabetical order."""
        workers = [worker for worker in self.workers if multimodal in (None, worker.multimodal)]
        return sorted({model for worker in workers for model in worker.models})

    def max_model_lens(self) -> dict[str, int]:
        """Return each model's limit on tokens of prompt and answer: the smallest that its workers report."""
        found: dict[str, int] = {}
        for worker in self.workers:
            for model in worker.models if worker.max_model_len is not None else ():
                found[model] = min(worker.max_model_len or 0, found.get(model, worker.max_model_len or 0))
        return found

    def choose(self, model: str, exclude: Collection[str] = (), affinity: str | None = None) -> Worker:
        """Choose a worker for a request, and count the request in its queue.

        Args:
            exclude: names of workers that have been tried already.
            affinity: requests with the same key go to the same worker unless it is much busier than the others.

        Raises:
            ApiError: 404, the model is unknown; 503, no worker has it at the moment.
        """
        workers = self.workers
        having = [
            worker
            for worker in workers
            if model in worker.models and worker.name not in exclude and worker.address not in exclude
        ]
        if not having:
            raise self._missing(model, workers)
        now = self._clock()
        # A suspect worker is better than none: it may have recovered, and if not, the request fails over as before.
        good = [worker for worker in having if worker.suspect_until <= now] or having
        chosen = (affinity and _favourite(good, affinity)) or self._pick(good)
        # Counted now and not with the next heartbeat, or all requests between two heartbeats would go to the same
        # worker.
        chosen.queue += 1
        return chosen

    def _missing(self, model: str, workers: Iterable[Worker]) -> ApiError:
        # Shortly after a start, some workers may not have registered again, so a missing model is not called unknown.
        is_settled = self._clock() - self._started > self.expiry_s / 2
        if any(workers) and is_settled and model not in self._known:
            return model_not_found(model)
        return no_worker(model)

    def _pick(self, workers: list[Worker]) -> Worker:
        # Among equally short queues, the choice is random in proportion to speed, as in the lottery.
        if self.method == "shortest_queue":
            least = min(worker.queue / worker.speed for worker in workers)
            workers = [worker for worker in workers if worker.queue / worker.speed == least]
        return self._random.choices(workers, [worker.speed for worker in workers])[0]


def _favourite(workers: list[Worker], affinity: str) -> Worker | None:
    """Return the preferred worker for a key, or None if it is too busy."""
    by_name = {worker.name: worker for worker in workers}
    # The favourite has the media of the request cached, which spares reading and encoding them. It is worth a wait for
    # a few more requests than elsewhere, which SLACK limits.
    found = by_name[favourite(affinity, by_name)]
    least = min(worker.queue / worker.speed for worker in workers)
    return found if found.queue <= least * found.speed + SLACK else None
