"""Which workers there are, and which of them takes a request.

Nothing here waits or locks: a controller has one event loop, and every method is one step of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from time import monotonic

from videollama2.serve.cluster.failover import SUSPECT_S
from videollama2.serve.cluster.protocol import EXPIRY_S, WorkerStatus
from videollama2.serve.web.errors import ApiError, model_not_found, no_worker

METHODS = ("shortest_queue", "lottery")

AFFINITY_SLACK = 4
"""Requests more than its share that a worker takes because it knows what they are about."""

MAX_WORKERS = 1024
MAX_MODELS = 4096


@dataclass
class Worker:
    """A worker as the controller knows it.

    Attributes:
        name: its address as it gave it; what others are told.
        address: where this controller connects to.
        queue: requests it reported last, and those sent to it since.
        is_checked: it sends heart-beats. One that does not is asked for its status by the controller.
        seen: when it reported or answered last.
        suspect_until: when its last failure is forgotten.
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
        method: of :data:`METHODS`. ``lottery``: by chance, in proportion to speed. ``shortest_queue``: the least queue
            in relation to speed.
        expiry_s: of silence, after which a worker is gone.
        clock, random: for tests.
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
        """Take a worker up, or renew what is known of it.

        Raises:
            ApiError: there are too many.
        """
        self.expire()
        if name not in self._workers and len(self._workers) >= MAX_WORKERS:
            raise ApiError(503, f"this controller has {MAX_WORKERS} workers already", "server_error", retry_after=30)
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
            if len(self._known) < MAX_MODELS:
                self._known[model] = None

    def beat(self, name: str, queue: int, speed: float | None = None) -> bool:
        """A heart-beat. False: the worker is not known (any more) and has to register."""
        self.expire()
        worker = self._workers.get(name)
        if worker is None:
            return False
        worker.queue, worker.seen, worker.speed = queue, self._clock(), speed or worker.speed
        return True

    def told(self, worker: Worker, status: WorkerStatus) -> None:
        """It answered when it was asked for its status."""
        worker.models, worker.speed = tuple(status.model_names), status.speed
        worker.queue, worker.seen = status.queue_length, self._clock()
        worker.max_model_len = status.max_model_len

    def remove(self, name: str) -> bool:
        """Forget a worker; whether it was known."""
        return self._workers.pop(name, None) is not None

    def failed(self, worker: Worker) -> None:
        """It could not be reached or broke off."""
        worker.suspect_until = self._clock() + SUSPECT_S

    def finished(self, worker: Worker) -> None:
        """A request that :meth:`choose` sent there is over."""
        worker.queue = max(0, worker.queue - 1)

    def expire(self) -> list[str]:
        """Forget those that have been silent for too long; their names."""
        oldest = self._clock() - self.expiry_s
        gone = [worker.name for worker in self._workers.values() if worker.seen < oldest]
        for name in gone:
            del self._workers[name]
        return gone

    @property
    def workers(self) -> list[Worker]:
        """Those that are there now."""
        self.expire()
        return list(self._workers.values())

    def models(self, multimodal: bool | None = None) -> list[str]:
        """Names of the models there are, in order."""
        workers = [worker for worker in self.workers if multimodal in (None, worker.multimodal)]
        return sorted({model for worker in workers for model in worker.models})

    def max_model_lens(self) -> dict[str, int]:
        """Model -> tokens of prompt and answer together that each of its workers takes, where they tell."""
        found: dict[str, int] = {}
        for worker in self.workers:
            for model in worker.models if worker.max_model_len is not None else ():
                found[model] = min(worker.max_model_len or 0, found.get(model, worker.max_model_len or 0))
        return found

    def choose(self, model: str, exclude: Collection[str] = (), affinity: str | None = None) -> Worker:
        """A worker for one request; it counts into its queue.

        Args:
            exclude: names of workers where it was tried.
            affinity: requests of one such word go to one worker, as long as it is hardly busier than others.

        Raises:
            ApiError: 404, nobody knows the model; 503, nobody has it now.
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
        good = [worker for worker in having if worker.suspect_until <= now] or having
        chosen = (affinity and _favourite(good, affinity)) or self._pick(good)
        chosen.queue += 1
        return chosen

    def _missing(self, model: str, workers: Iterable[Worker]) -> ApiError:
        # Just after a start not all workers are back, and a model that is missing now is not one that never was.
        is_settled = self._clock() - self._started > self.expiry_s / 2
        if any(workers) and is_settled and model not in self._known:
            return model_not_found(model)
        return no_worker(model)

    def _pick(self, workers: list[Worker]) -> Worker:
        if self.method == "shortest_queue":
            least = min(worker.queue / worker.speed for worker in workers)
            workers = [worker for worker in workers if worker.queue / worker.speed == least]
        return self._random.choices(workers, [worker.speed for worker in workers])[0]


def _favourite(workers: list[Worker], affinity: str) -> Worker | None:
    """The worker of this word (rendezvous hashing: others that come and go change little), unless it is too busy."""
    favourite = max(workers, key=lambda worker: blake2b(f"{affinity} {worker.name}".encode(), digest_size=8).digest())
    least = min(worker.queue / worker.speed for worker in workers)
    return favourite if favourite.queue <= least * favourite.speed + AFFINITY_SLACK else None
