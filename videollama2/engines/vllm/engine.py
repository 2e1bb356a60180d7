"""Defines ``VllmEngine``, a back end of this package that generates with vLLM.

It has the interface of the package's own engine (:class:`videollama2.inference.back_end.BackEnd`), so that worker, API,
web page and batches run with it unchanged: prompts, media and texts are made here, and vLLM gets ids and pixels.
"""

from __future__ import annotations

import argparse
import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from uuid import uuid4

from transformers import GenerationConfig

from videollama2.checkpoints.files import checkpoint_kind, resolve_name
from videollama2.engines.vllm.generation import Generation, laid_out
from videollama2.errors import (
    CheckpointError,
    ConfigError,
    EngineError,
    MissingDependencyError,
    QueueFullError,
    first_line,
)
from videollama2.inference.answer import Answer
from videollama2.inference.back_end import CacheUse
from videollama2.inference.request import Request
from videollama2.processing import VideoLlama2Processor
from videollama2.serve.worker.flags import engine_options

MAX_LENGTH = 4096
_MEDIA_THREADS = 2
_OF_OWN_ENGINE = ("model_base", "device", "load_8bit", "load_4bit", "cuda_graphs", "pack_weights")


def check_flags(args: argparse.Namespace) -> None:
    """Check a command line that chooses this engine.

    Raises:
        ConfigError: a flag is for the package's own engine.
    """
    given = [f"--{name.replace('_', '-')}" for name in _OF_OWN_ENGINE if getattr(args, name, None)]
    if getattr(args, "pack_weights", None) is False:
        given.append("--no-pack-weights")
    if given:
        raise ConfigError(f"{given[0]} is for the own engine; --engine vllm has no such option")


def vllm_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the flags of a command line that are fields of vLLM's ``AsyncEngineArgs``.

    Raises:
        ConfigError: a flag is for the package's own engine.
    """
    check_flags(args)
    options = engine_options(args)
    if args.dtype is not None:
        options["dtype"] = args.dtype
    return options


class VllmEngine:
    """Answers requests with vLLM; a :class:`~videollama2.inference.back_end.BackEnd`.

    Args:
        model_path: ``videollama2-tiny``, a folder with all weights, or a hub name.
        max_batch: maximum number of requests that run at the same time; None for vLLM's default.
        max_length: maximum length of prompt and answer together; None: 4096, or less if the model requires.
        max_queue: maximum number of waiting requests; more are refused.
        options: fields of vLLM's ``AsyncEngineArgs``: ``dtype``, ``tensor_parallel_size``, ``enforce_eager``, ...

    Raises:
        MissingDependencyError: vLLM is not installed.
        CheckpointError: the folder holds only a LoRA or a connector.
        ConfigError: vLLM has no such option. EngineError: vLLM cannot start; its log says why.
    """

    def __init__(
        self,
        model_path: str,
        *,
        max_batch: int | None = None,
        max_length: int | None = None,
        max_queue: int = 256,
        **options: Any,
    ) -> None:
        folder = resolve_name(model_path)
        kind = checkpoint_kind(folder)
        if kind != "full":
            raise CheckpointError(f"{model_path}: vLLM needs all weights in one folder; merge this {kind} first")
        self.processor = VideoLlama2Processor.from_pretrained(folder)
        positions = self.processor.model_config.text_config.max_position_embeddings
        self.max_length, self.max_queue = max_length or min(MAX_LENGTH, positions), max_queue
        self._defaults = _generation_config(folder)
        self._running: dict[str, Generation] = {}
        self._lock = threading.Lock()
        self._is_closed = False
        self._pool = ThreadPoolExecutor(_MEDIA_THREADS, thread_name_prefix="videollama2-media")
        # vLLM's client lives in one event loop, while requests come from any thread. So it has a loop and a thread of
        # its own, and everything that touches it is sent there.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="videollama2-vllm", daemon=True)
        self._thread.start()
        if max_batch is not None:
            options["max_num_seqs"] = max_batch
        starting = self._start({"model": folder, "max_model_len": self.max_length, **options})
        try:
            self._vllm = asyncio.run_coroutine_threadsafe(starting, self._loop).result()
        except BaseException:
            self._end_threads()
            raise
        self.max_batch: int = self._vllm.vllm_config.scheduler_config.max_num_seqs

    async def _start(self, fields: Mapping[str, Any]) -> Any:
        """Start vLLM's processes. This runs in the event loop, to which vLLM's client stays bound."""
        try:
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM
        except ModuleNotFoundError as error:
            raise MissingDependencyError.of("the engine vllm needs vLLM", "[vllm]") from error
        try:
            arguments = AsyncEngineArgs(**fields)
        except TypeError as error:
            raise ConfigError(f"vLLM: {first_line(error)}") from error
        try:
            return AsyncLLM.from_engine_args(arguments)
        except (RuntimeError, ValueError) as error:
            raise EngineError(f"vLLM cannot start: {first_line(error)}") from error

    @property
    def closed(self) -> bool:
        """Whether no more requests are accepted."""
        return self._is_closed or self._vllm.errored

    @property
    def load(self) -> dict[str, int]:
        """The number of ``decoding``, ``prefilling`` and ``waiting`` requests."""
        with self._lock:
            stages = [generation.stage for generation in self._running.values()]
        decoding, prefilling = stages.count("decoding"), stages.count("prefilling")
        # vLLM does not tell which of its requests run. As it runs as many as fit, what has no token yet is taken to be
        # running up to that number, and waiting beyond it.
        active = min(prefilling, max(0, self.max_batch - decoding))
        return {"decoding": decoding, "prefilling": active, "waiting": len(stages) - decoding - active}

    @property
    def caches(self) -> CacheUse:
        """Return no numbers: vLLM's processes keep the caches."""
        return CacheUse()

    def submit(self, messages: Any, media: Sequence[Any] = (), **options: Any) -> Answer:
        """Submit one request, see :class:`~videollama2.inference.back_end.BackEnd`.

        ``no_repeat_ngram_size`` is refused, and ``repetition_penalty`` also applies to the prompt's tokens, as in vLLM.
        """
        request = Request(messages, media, **options)
        prompt = request.prompt or self.processor.prompt(request.messages, **request.prompt_options)
        generation = laid_out(request, prompt, self.processor, self.max_length, self._defaults)
        name = uuid4().hex
        with self._lock:
            if self.closed:
                raise EngineError("this engine is closed")
            waiting = sum(generation.stage == "waiting" for generation in self._running.values())
            if waiting >= self.max_queue:
                raise QueueFullError(f"{waiting} requests are waiting already (max_queue {self.max_queue})")
            self._running[name] = generation
        self._loop.call_soon_threadsafe(self._begin, name, generation)
        return Answer(generation.channel, None, lambda: self._in_loop(generation.cancel), prompt.text)

    def _begin(self, name: str, generation: Generation) -> None:
        """Start a request. This runs in the event loop."""
        task = generation.start(self._vllm, name, self._pool)
        task.add_done_callback(lambda _: self._forget(name))

    def _forget(self, name: str) -> None:
        with self._lock:
            self._running.pop(name, None)

    def _in_loop(self, call: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop is closed, and nothing runs any more
            self._loop.call_soon_threadsafe(call)

    def close(self) -> None:
        """Cancel all requests, accept no more, and end vLLM's processes."""
        if self._is_closed:
            return
        self._is_closed = True
        asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result()
        self._vllm.shutdown()
        self._end_threads()

    async def _cancel_all(self) -> None:
        with self._lock:
            running = list(self._running.values())
        tasks = [task for generation in running if (task := generation.cancel()) is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    def _end_threads(self) -> None:
        self._is_closed = True
        self._pool.shutdown(cancel_futures=True)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def __enter__(self) -> VllmEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _generation_config(folder: str) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(folder)
    except OSError:  # a folder without the file
        from videollama2.config import VideoLlama2Config

        return GenerationConfig.from_model_config(VideoLlama2Config.from_pretrained(folder))
