"""Runs ``videollama2 batch --engine ray``: answers a file on the machines of a Ray cluster, by Ray Data.

Ray Data starts copies of the model (replicas) where there is room and hands them requests; each answer comes back to
this process as soon as it is there. A replica that dies is started again. Its requests come back without an answer and
are asked again when the others are done. If that gives no answer to any of them, a new replica gets one at a time, and
the request with which it dies first has failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from videollama2.engines.batch_lines import BatchLine
from videollama2.engines.local_service import LocalClient, local_service, stored
from videollama2.engines.ray.core import joined, ray
from videollama2.engines.ray.placement import gpus_of, placed, room_for
from videollama2.errors import EngineError, MissingDependencyError
from videollama2.eval.samples import StoredAnswer
from videollama2.serve.web.errors import worker_failed

BLOCKS, ROWS = 8192, 16
"""A task of Ray Data is one request; beyond so many requests, tasks have more, up to the second number."""

_REQUESTS = {"own": 48, "vllm": 256}
"""Requests that a replica takes at a time without ``--max-batch``. Its engine may run fewer; then some wait there."""

_LOST = "the replicas that were asked died before they had answered, the last of them with no other request"
_log = logging.getLogger(__name__)


def answer_on_cluster(
    args: argparse.Namespace, lines: Sequence[BatchLine], on_answer: Callable[[StoredAnswer], None]
) -> None:
    """Answer all requests on the cluster that ``RAY_ADDRESS`` names, or on this machine alone.

    Args:
        args: flags of ``videollama2 batch``.
        on_answer: called with each answer, in the order in which they are ready.

    Raises:
        EngineError: Ray cannot start, or no replica can; the message or Ray's log says why.
    """
    left, is_alone = {line.custom_id: line for line in lines}, False
    with joined():
        while left:
            asked = list(left.values())
            for answer in _answers(args, asked, is_alone):
                if left.pop(answer.id, None) is not None:
                    on_answer(answer)
            if is_alone and left.pop(asked[0].custom_id, None) is not None:
                failure = worker_failed(_LOST)
                on_answer(stored(asked[0], failure.status, failure.body()))
            is_alone = len(left) == len(asked)
            if left:
                _log.warning("replicas died with %d requests, which are asked again", len(left))


def _answers(args: argparse.Namespace, lines: Sequence[BatchLine], is_alone: bool) -> Iterator[StoredAnswer]:
    """Ask the requests once; yield the answers of those that no replica died with.

    Args:
        is_alone: whether a replica has one request at a time.
    """
    at_once = 1 if is_alone else 3 * args.max_batch if args.max_batch else _REQUESTS[args.replica_engine]
    try:
        for batch in _asked(args, lines, at_once).iter_batches(
            batch_size=None, batch_format="numpy", prefetch_batches=0
        ):
            for text in batch["answer"]:
                yield StoredAnswer.from_json(json.loads(text))
    except ray.exceptions.RayError as error:
        raise EngineError(f"Ray: {_cause(error)}") from error


def _asked(args: argparse.Namespace, lines: Sequence[BatchLine], at_once: int) -> Any:
    """Return the answers as a data set, which asks for them when it is read.

    Args:
        at_once: how many requests a replica has at a time.
    """
    try:
        from ray.data import ActorPoolStrategy, DataContext, from_items
    except ImportError as error:
        raise MissingDependencyError.of("Ray Data is not installed", "[ray]") from error
    _quiet()
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    context.max_errored_blocks = -1  # requests of dead replicas, which are missing among the answers
    context.target_max_block_size = 1  # each answer of a task comes at once
    replica = argparse.Namespace(**{**vars(args), "engine": args.replica_engine, "model_path": _everywhere(args)})
    at_start = 1 if at_once == 1 else min(room_for(args), args.max_replicas or len(lines), len(lines))
    rows = [{"line": json.dumps(asdict(line))} for line in lines]
    data = from_items(rows, override_num_blocks=max(min(len(rows), BLOCKS), len(rows) // ROWS))
    with warnings.catch_warnings():
        # The last two: Ray 2.64 is to be without them, and setup.py asks for an older one.
        warnings.filterwarnings("ignore", message="`ray_remote_args`")
        return data.map_batches(
            Replica,
            fn_constructor_args=(replica,),
            batch_size=1,
            batch_format="numpy",
            compute=ActorPoolStrategy(
                min_size=1,
                initial_size=at_start,
                max_size=args.max_replicas,
                max_tasks_in_flight_per_actor=1 if at_once == 1 else 2 * at_once,
                max_concurrent_calls_per_actor=at_once,
                enable_true_multi_threading=True,
            ),
            num_cpus=args.cpus_per_replica,
            num_gpus=gpus_of(args),
            # A replica is started again where there is room. Its requests do not wait for that.
            max_restarts=-1,
            max_task_retries=0,
        )


def _quiet() -> None:
    """Drop from Ray Data's log what this command itself reports, and tracebacks of requests lost with a replica."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    for name in ("streaming_executor", "streaming_executor_state", "operators.actor_pool_map_operator"):
        logging.getLogger(f"ray.data._internal.execution.{name}").setLevel(logging.CRITICAL)


def _everywhere(args: argparse.Namespace) -> str:
    """Return the model's path for processes with other working folders."""
    path = Path(args.model_path)
    return str(path.resolve()) if path.exists() else args.model_path


def _cause(error: BaseException) -> str:
    """Return the last line of Ray's words, which is what a replica that could not start said."""
    *_, last = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^[\w.]+Error: ", "", last)


class Replica:
    """A copy of the model; Ray Data calls it from as many threads as there may be requests at a time.

    Args:
        args: flags of ``videollama2 batch``, where ``engine`` is that of the replica.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._stack = ExitStack()
        service = self._stack.enter_context(local_service(placed(args)))
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._answering: LocalClient = self._now(_opened(service))

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Answer the requests of one batch."""
        lines = [BatchLine(**json.loads(line)) for line in batch["line"]]
        try:
            return {"answer": [json.dumps(self._now(self._answer(line)).to_json()) for line in lines]}
        except EngineError as error:
            _log.critical("this replica ends: %s", error)
            os._exit(1)  # Ray starts a process anew that has died, but not one that ends in order

    async def _answer(self, line: BatchLine) -> StoredAnswer:
        async with self._answering.free:
            return await self._answering.answer(line)

    def _now(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def __del__(self) -> None:
        """Close the engine. Ray Data calls this when there are no more requests."""
        if hasattr(self, "_answering"):
            self._now(self._answering.__aexit__())
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._stack.close()


async def _opened(service: Any) -> LocalClient:
    """Return the requests' way to a service, bound to this event loop."""
    return LocalClient(service)
