"""Defines the inference engine, which generates all answers of the package.

It takes requests and returns text deltas. Each decode step computes one token for every running request; requests join
and leave the batch between two steps (:class:`Batch`). A new request is prefilled in chunks between decode steps, so a
long prompt does not delay running answers, and a cached beginning (:class:`PrefixCache`) is not computed again. On a
CPU, the media of new requests are encoded a few at a time between decode steps too.

This module moves requests from the queue (:class:`RequestQueue`, which reads and encodes their media) to the batch, and
manages who runs the steps: a thread of the engine, or the callers that read answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any
from weakref import finalize

import torch
from tqdm import tqdm

from videollama2.errors import ConfigError, EngineError, QueueFullError, VideoLlama2Error
from videollama2.inference.answer import Answer, Channel, Result
from videollama2.inference.back_end import CacheUse
from videollama2.inference.batch import Batch
from videollama2.inference.decoder import Decoder, remember_modes
from videollama2.inference.kernels import pack_weights
from videollama2.inference.media.cache import MediaCache
from videollama2.inference.media.encoder import MediaEncoder
from videollama2.inference.media.reader import MediaReader
from videollama2.inference.openmp import release_pool
from videollama2.inference.prefix_cache import DEFAULT_MAX_BYTES, PrefixCache
from videollama2.inference.request import Request
from videollama2.inference.request_queue import RequestQueue
from videollama2.inference.sampling import Chooser, end_ids
from videollama2.inference.sizes import check_sizes, choose_sizes
from videollama2.inference.structure import Grammars
from videollama2.inference.task import Task, end_of_tasks
from videollama2.inference.threads import Bell, interrupts_deferred, start_thread
from videollama2.inference.weights_watch import WeightsWatch, media_modules
from videollama2.model.linear import use_kernels
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.processing import VideoLlama2Processor

if TYPE_CHECKING:
    from typing_extensions import Self

PREFILL_CHUNK = 512
"""Maximum number of prompt tokens computed between two decode steps."""

_READ_AHEAD = 2
"""Media are read ahead for this many times ``max_batch`` waiting requests."""


class Engine:
    """Answers requests with one model, many at a time; the package's own
    :class:`~videollama2.inference.back_end.BackEnd`.

    While it is open, the model is in evaluation mode, its linear layers on a CPU choose their kernels
    (:class:`~videollama2.model.linear.KernelLinear`), and its decoder uses the engine's form of ``sdpa``
    attention, if it does not use ``eager``; :meth:`close` (or leaving a ``with`` block) restores all of it.

    Args:
        model, processor: results of :func:`videollama2.model_init`.
        max_batch: maximum number of requests that run at the same time. None: 16, or fewer if memory is short.
        max_length: maximum length of prompt and answer together. None: 4096, or less if the model or memory requires.
        media_cache_bytes: size of the cache of media tokens; or a :class:`MediaCache` to share.
        prefix_cache_bytes: size of the cache of prompt beginnings, 0 for none; or a :class:`PrefixCache` to share,
            whose owner must empty it when the weights change between engines.
        max_queue: maximum number of waiting requests; more are refused.
        prefill_chunk: maximum number of prompt tokens computed between two decode steps.
        background: True: threads read media, and the model runs on a thread of its own, which the first request
            starts. False: there are no threads; reading an answer advances the engine.
        media_threads: number of threads that read media, if there are threads.
        cuda_graphs: replay decode steps as CUDA graphs, which avoids the cost of launching kernels one by one. Requires
            a dense, unquantised decoder on one GPU.
        packed_weights: keep a second copy of the decoder's float32 weights, with which decode steps are faster on a
            CPU, see :class:`~videollama2.inference.kernels.PackedWeights`. None: if the processor gains from it in
            steps of any size and the copies fit into half of the free memory.

    Raises:
        ConfigError: a size is out of range, there is no memory for a single slot or for packed weights, or the model
            is of a kind that ``cuda_graphs`` or ``packed_weights`` do not support.
    """

    def __init__(
        self,
        model: VideoLlama2ForConditionalGeneration,
        processor: VideoLlama2Processor,
        *,
        max_batch: int | None = None,
        max_length: int | None = None,
        media_cache_bytes: int | MediaCache = 2 << 30,
        prefix_cache_bytes: int | PrefixCache = DEFAULT_MAX_BYTES,
        max_queue: int = 256,
        prefill_chunk: int = PREFILL_CHUNK,
        background: bool = True,
        media_threads: int = 2,
        cuda_graphs: bool = False,
        packed_weights: bool | None = False,
    ) -> None:
        check_sizes(
            prefix_cache_bytes,
            max_batch=max_batch,
            max_length=max_length,
            max_queue=max_queue,
            prefill_chunk=prefill_chunk,
            media_threads=media_threads,
        )
        self.model, self.processor = model, processor
        self.max_queue, self.prefill_chunk = max_queue, prefill_chunk
        self._background = background
        with ExitStack() as undo:  # the model is left as it was if anything here raises
            undo.callback(remember_modes(model))
            undo.callback(use_kernels(model))
            packed = pack_weights(model, packed_weights)  # first, as slots take a share of what is left
            if packed is not None:
                undo.callback(packed.release)
            self.max_batch, self.max_length = choose_sizes(model, max_batch, max_length)
            self.decoder = Decoder(model, self.max_batch, self.max_length, cuda_graphs, packed)
            model.eval()
            cache = media_cache_bytes if isinstance(media_cache_bytes, MediaCache) else MediaCache(media_cache_bytes)
            self.media = MediaEncoder(model, cache)
            self.reader = MediaReader(model, processor, cache)
            shared = isinstance(prefix_cache_bytes, PrefixCache)
            self.prefixes = prefix_cache_bytes if shared else PrefixCache(prefix_cache_bytes)
            self._end_ids = frozenset(end_ids(model, processor.tokenizer))
            self._grammars = Grammars(processor.tokenizer, model.config.text_config.vocab_size, self._end_ids)
            self._bell = Bell()  # wakes the model's thread
            ahead, threads = _READ_AHEAD * self.max_batch, media_threads if background else 0
            self._waiting = RequestQueue(
                model.config, self.reader, self.media, self.max_length, ahead, threads, self._bell.ring
            )
            self._state = self._waiting.state  # guards the queue and closed
            self._stepping = Lock()  # without a thread, two readers may step the engine at once
            self._batch = Batch(self.decoder, self.prefixes, end_of_tasks(self._waiting.ahead, self._state))
            self._media_weights, self._weights = WeightsWatch(media_modules(model)), WeightsWatch([model])
            # Also for an engine that nobody closes.
            self._restore = finalize(self, undo.pop_all().close)
        self._restore.atexit = False
        self.closed = False
        self._thread: Thread | None = None
        if background:
            release_pool()  # of the thread that has loaded the model

    # --------------------------------------------------------------------------------------------------- for callers

    def submit(self, messages: Any, media: Sequence[Any] = (), **options: Any) -> Answer:
        """Submit one request, with the arguments of :class:`Request`. Media are read later; the answer raises errors.

        Raises:
            PromptError, ConfigError: the request is invalid. RequestTooLongError: it does not fit into a slot.
            QueueFullError: ``max_queue`` requests are waiting already. EngineError: the engine is closed.
        """
        return self.submit_request(Request(messages, media, **options))

    def submit_request(self, request: Request) -> Answer:
        """Submit a request that was made before; see :meth:`submit`."""
        prompt = request.prompt or self.processor.prompt(request.messages, **request.prompt_options)
        options = request.options
        if options.repetition_penalty is None:
            options = replace(options, repetition_penalty=self.model.generation_config.repetition_penalty or 1.0)
        vocabulary = self.model.config.text_config.vocab_size
        if any(token >= vocabulary for token in options.logit_bias):
            raise ConfigError(f"logit_bias names token {max(options.logit_bias)}; the model has {vocabulary} tokens")
        chooser = Chooser(options, self._end_ids, self._grammars.constraint(options.structure))
        task = Task(request, prompt, Channel(), chooser, self.processor.tokenizer)
        planned = [self.reader.planned_tokens(part) for part in request.media]
        # The number of tokens of some media depends on their content; a request with one of those is laid out when its
        # media have been read.
        counts = [count for count in planned if count is not None]
        if len(counts) == len(planned):
            # A request that is certainly too long is refused at once, before its media are read.
            task.lay_out(self.model.config, counts, self.max_length)
        task.media_keys = [self.reader.source_key(part) for part in request.media]
        if self._background:
            release_pool()  # of a caller who has computed, such as the frames of a clip
        with self._state:
            if self.closed:
                raise EngineError("this engine is closed")
            if len(self._waiting) >= self.max_queue:
                raise QueueFullError(f"{len(self._waiting)} requests are waiting already (max_queue {self.max_queue})")
            if self._background and self._thread is None:
                self._thread = start_thread(self, self._bell)
            self._waiting.add(task)
            self._waiting.read_ahead()
        self._bell.ring()
        drive = None if self._background else self.step
        return Answer(task.channel, drive, self._bell.ring, prompt.text)

    def generate(
        self,
        requests: Sequence[Request],
        progress: bool = False,
        on_result: Callable[[int, Result], None] | None = None,
    ) -> list[Result]:
        """Answer many requests; returns the results in their order.

        A failed request has a result with ``finish_reason`` "error" and its ``error``; the others continue.

        Args:
            progress: show a progress bar.
            on_result: called with index and result as soon as a request finishes.
        """
        results: dict[int, Result] = {}
        running: dict[int, Answer] = {}
        pending = deque(enumerate(requests))
        # As many as the batch holds, and enough in the queue that the media of the next ones are read meanwhile. The
        # others are submitted later, so that a list of any length fits into the queue.
        most = min(self.max_queue, 2 * self.max_batch) + self.max_batch

        def keep(index: int, result: Result) -> None:
            results[index] = result
            bar.update()
            if on_result is not None:
                on_result(index, result)

        with tqdm(total=len(requests), disable=not progress, unit="answer") as bar:
            while pending or running:
                while pending and len(running) < most and self._room():
                    index, request = pending.popleft()
                    try:
                        running[index] = self.submit_request(request)
                    except QueueFullError:
                        pending.appendleft((index, request))  # another thread took the free place
                    except VideoLlama2Error as error:
                        keep(index, Result("", "error", error=error))
                self._advance(running)
                for index, answer in list(running.items()):
                    result = answer.outcome()
                    if result is not None:
                        del running[index]
                        keep(index, result)
        return [results[index] for index in range(len(requests))]

    def _room(self) -> bool:
        with self._state:
            return len(self._waiting) < self.max_queue

    def _advance(self, running: dict[int, Answer]) -> None:
        """Run a step, or wait for the engine's thread, until an answer may have finished or the queue has room."""
        if not self._background:
            self.step()
            return
        with self._state:
            # Checked under the lock with which ends and departures are notified, so that no notification is missed.
            full = len(self._waiting) >= self.max_queue
            if not any(answer.done for answer in running.values()) and (running or full):
                self._state.wait()

    def forget(self) -> None:
        """Drop whatever was made of the weights, as after a change of them: caches, and key-values of running requests.

        This is only necessary after a change of weights that torch does not track, such as through ``parameter.data``;
        training steps and ``load_state_dict`` are detected. Running requests end with an EngineError, and the media of
        waiting ones are encoded again.
        """
        with self._stepping:
            self.media.cache.clear()
            self._batch.forget()
            self.decoder.forget()

    def close(self) -> None:
        """Cancel all requests and stop the threads. The engine accepts no more requests."""
        with self._state:
            # A cancelled task is reported by the next step: one of the thread, which ends after it, or the one below.
            self.closed = True
            for task in [*self._waiting.tasks, *self._batch.tasks]:
                task.channel.cancelled = True
        self._bell.ring()
        if self._thread is not None:
            self._thread.join()
        for task in [*self._waiting.tasks, *self._batch.tasks]:
            task.channel.cancelled = True
        self.step()
        self._waiting.ahead.close()
        self._restore()

    def abort(self, error: BaseException) -> None:
        """Fail all current requests and accept no more, because the engine itself has failed."""
        with self._state:
            self.closed = True
            tasks = [*self._waiting.tasks, *self._batch.abandon()]
            self._waiting.tasks.clear()
        for task in tasks:
            self._batch.fail(task, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def load(self) -> dict[str, int]:
        """Return the current number of ``decoding``, ``prefilling`` and ``waiting`` requests."""
        return {
            "decoding": len(self._batch.decoding),
            "prefilling": len(self._batch.prefilling),
            "waiting": len(self._waiting),
        }

    @property
    def caches(self) -> CacheUse:
        """Return statistics of what is cached between requests."""
        media = self.media.cache
        return CacheUse(media.hits, media.misses, media.used_bytes, self.prefixes.used_bytes)

    # ---------------------------------------------------------------------------------------------------------- steps

    @property
    def idle(self) -> bool:
        """Return whether there is nothing to do until a request or a medium arrives."""
        return not self._batch.tasks and not self._waiting.has_work()

    @torch.inference_mode()
    def step(self) -> None:
        """Run one round: drop cancelled requests, encode media, prefill up to a chunk, decode one token of each row."""
        with self._stepping, nullcontext() if self._background else interrupts_deferred():
            self._drop_cancelled()
            if self._batch.tasks and self._weights.written():
                self._notice_new_weights()
            self._prefill()
            self._batch.decode()

    def _drop_cancelled(self) -> None:
        for task in self._waiting.take_cancelled():
            self._batch.end(task, "cancelled")
        self._batch.drop_cancelled()

    def _prefill(self) -> None:
        budget = self.prefill_chunk
        self._waiting.begin_round()
        # Decoding waits for all of this. Short prompts therefore share the budget of one round, and a long one is cut
        # where the budget ends.
        while budget > 0:
            if not self._batch.prefilling and not self._take(budget):
                return
            budget -= self._batch.prefill(budget)

    def _take(self, budget: int) -> bool:
        """Admit the first waiting request whose media are encoded, and those that can be prefilled together with it."""
        if len(self._batch.decoding) >= self.max_batch:
            return False
        # The media of all requests that could run next are encoded together, as far as this round has room for them.
        ready = self._waiting.ready(self.max_batch - len(self._batch.decoding))
        if ready:
            self._notice_new_weights()
        ready = self._waiting.encode(ready, self._batch.fail)
        for task in ready:
            if self._batch.prefilling and not self._batch.can_join(task, budget, ready):
                continue  # it waits for a later pass; as each pass begins with the first of the queue, none starves
            with self._state:
                self._waiting.tasks.remove(task)
                self._batch.prefilling.append(task)  # under one lock: close and abort search both lists
                self._state.notify_all()
            self._batch.admit(task)
            task.give_back(self._waiting.ahead)
        self._waiting.read_ahead()  # tasks have left the queue, so others move up
        return bool(self._batch.prefilling)

    def _notice_new_weights(self) -> None:
        """Empty the caches, and fail running requests, if weights have changed since the last check."""
        if self._media_weights.changed():
            self.media.cache.clear()
        if self._weights.changed():
            self._batch.forget()
            self.decoder.forget()
