"""The inference engine: every answer comes from here.

Requests go in, text deltas come out. Decoding is one batch of one token per running request; between two such steps
requests join and leave. A new request is prefilled in chunks between steps, so a long prompt does not hold running
answers back, and what is known of its beginning (:class:`PrefixCache`) is not computed again.

Row order in the slots: rows ``0 .. d-1`` decode, row ``d`` is being prefilled. A row that ends takes over the last one.
"""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from threading import Condition, Lock, Thread
from typing import Any

import torch
from tqdm import tqdm

from videollama2.errors import ConfigError, EngineError, QueueFullError, VideoLlama2Error
from videollama2.inference.decoder import Decoder, free_memory
from videollama2.inference.media_cache import MediaCache
from videollama2.inference.media_encoder import MediaEncoder, Medium
from videollama2.inference.prefix_cache import DEFAULT_MAX_BYTES, PrefixCache
from videollama2.inference.request import Answer, Channel, MediaPart, Request, Result
from videollama2.inference.sampling import Chooser, choose
from videollama2.inference.task import Task
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.processing import VideoLlama2Processor

MAX_BATCH, MAX_LENGTH = 16, 4096
"""Sizes where memory and the model allow them."""

_log = logging.getLogger(__name__)

PREFILL_CHUNK = 512
"""Prompt tokens computed between two decode steps."""

_READ_AHEAD = 2
"""Media are read for this many times ``max_batch`` waiting requests."""

_SHARE_OF_MEMORY = 0.5
"""Of the free memory, what slots may take where their number is not given."""


class Engine:
    """Answers requests with one model, many at a time.

    Args:
        model, processor: of :func:`videollama2.model_init`.
        max_batch: requests that run at once. None: 16, or fewer where memory is short.
        max_length: positions of prompt + answer. None: 4096, or fewer where the model or memory is smaller.
        media_cache_bytes: of visual tokens kept; or a :class:`MediaCache` to share.
        prefix_cache_bytes: of key-values of prompt beginnings kept; 0: none.
        max_queue: requests that may wait; more are refused.
        prefill_chunk: prompt tokens computed between two decode steps.
        background: True: media are read by threads and the model runs on one of its own, started by the first
            request. False: no threads; whoever reads an answer advances the engine.

    Raises:
        ConfigError: a size out of range, or no memory for a single slot.
    """

    def __init__(
        self,
        model: VideoLlama2ForConditionalGeneration,
        processor: VideoLlama2Processor,
        *,
        max_batch: int | None = None,
        max_length: int | None = None,
        media_cache_bytes: int | MediaCache = 2 << 30,
        prefix_cache_bytes: int = DEFAULT_MAX_BYTES,
        max_queue: int = 256,
        prefill_chunk: int = PREFILL_CHUNK,
        background: bool = True,
        media_threads: int = 2,
    ) -> None:
        for name, value in (
            ("max_batch", max_batch), ("max_length", max_length), ("max_queue", max_queue),
            ("prefill_chunk", prefill_chunk), ("media_threads", media_threads),
        ):  # fmt: skip
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name} must be at least 1, got {value!r}")
        if prefix_cache_bytes < 0:
            raise ConfigError(f"prefix_cache_bytes must be 0 or more, got {prefix_cache_bytes}")
        model.eval()
        self.model, self.processor = model, processor
        self.max_batch, self.max_length = _sizes(model, max_batch, max_length)
        self.max_queue, self.prefill_chunk = max_queue, prefill_chunk
        cache = media_cache_bytes if isinstance(media_cache_bytes, MediaCache) else MediaCache(media_cache_bytes)
        self.media = MediaEncoder(model, processor, cache)
        self.prefixes = PrefixCache(prefix_cache_bytes)
        self.decoder = Decoder(model, self.max_batch, self.max_length)
        self._end_ids = frozenset(end_ids(model, processor.tokenizer))
        self._waiting: deque[Task] = deque()
        self._prefilling: Task | None = None
        self._decoding: list[Task] = []
        self._background, self._media_threads = background, media_threads
        self._state = Condition()  # guards _waiting and closed; the model's thread sleeps on it
        self._stepping = Lock()  # without a thread, two readers may drive
        self.closed = False
        self._thread: Thread | None = None
        self._pool: ThreadPoolExecutor | None = None

    # --------------------------------------------------------------------------------------------------- for callers

    def submit(self, messages: Any, media: Sequence[Any] = (), **options: Any) -> Answer:
        """Hand in one request; arguments of :class:`Request`. Media are read later: their errors come with the answer.

        Raises:
            PromptError, ConfigError: the request breaks a rule. QueueFullError: too many wait. EngineError: closed.
        """
        return self.submit_request(Request(messages, media, **options))

    def submit_request(self, request: Request) -> Answer:
        """As :meth:`submit`."""
        prompt = self.processor.prompt(request.messages)
        options = request.options
        if options.repetition_penalty is None:
            options = replace(options, repetition_penalty=self.model.generation_config.repetition_penalty or 1.0)
        chooser = Chooser(options, self._end_ids)
        task = Task(request, prompt, Channel(), chooser, self.processor.tokenizer)
        with self._state:
            if self.closed:
                raise EngineError("this engine is closed")
            if len(self._waiting) >= self.max_queue:
                raise QueueFullError(f"{len(self._waiting)} requests are waiting already (max_queue {self.max_queue})")
            self._start()
            self._waiting.append(task)
            self._read_ahead()
            self._state.notify_all()
        drive = None if self._background else self.step
        return Answer(task.channel, drive, self._wake, prompt.text)

    def generate(
        self,
        requests: Sequence[Request],
        progress: bool = False,
        on_result: Callable[[int, Result], None] | None = None,
    ) -> list[Result]:
        """Answer many requests; results in their order.

        A request that fails has a result with ``finish_reason`` "error" and its ``error``; the others go on.

        Args:
            progress: show a bar.
            on_result: called with index and result as soon as each is there, in order of finishing.
        """
        results: list[Result | None] = [None] * len(requests)
        running: dict[int, Answer] = {}
        pending = deque(enumerate(requests))
        ahead = min(self.max_queue, 2 * self.max_batch)
        with tqdm(total=len(requests), disable=not progress, unit="answer") as bar:
            while pending or running:
                while pending and len(running) < ahead + self.max_batch and self._room():
                    index, request = pending.popleft()
                    try:
                        running[index] = self.submit_request(request)
                    except VideoLlama2Error as error:
                        results[index] = Result("", "error", error=error)
                        bar.update()
                        if on_result is not None:
                            on_result(index, results[index])
                self._advance(running)
                for index in [index for index, answer in running.items() if answer.done]:
                    results[index] = running.pop(index).outcome()
                    bar.update()
                    if on_result is not None:
                        on_result(index, results[index])
        return results

    def _room(self) -> bool:
        with self._state:
            return len(self._waiting) < self.max_queue

    def _advance(self, running: dict[int, Answer]) -> None:
        """Let some time pass that may finish an answer."""
        if not self._background:
            self.step()
        else:
            with self._state:
                # Checked under the lock that ends and departures notify under, so none goes by unseen.
                full = len(self._waiting) >= self.max_queue
                if not any(answer.done for answer in running.values()) and (running or full):
                    self._state.wait()

    def close(self) -> None:
        """Cancel everything and stop the threads. The engine takes no request any more."""
        with self._state:
            self.closed = True
            for task in self._tasks():
                task.channel.cancelled = True
            self._state.notify_all()
        if self._thread is not None:
            self._thread.join()
        for task in self._tasks():
            task.channel.cancelled = True
        self.step()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def abort(self, error: BaseException) -> None:
        """Fail everything that is under way and take no more: the engine itself broke."""
        with self._state:
            self.closed = True
            tasks = self._tasks()
            self._waiting.clear()
        self._prefilling, self._decoding = None, []
        for task in tasks:
            self._fail(task, error)

    def _tasks(self) -> list[Task]:
        return [*self._waiting, *self._decoding, *([self._prefilling] if self._prefilling is not None else [])]

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def load(self) -> dict[str, int]:
        """Requests that ``decoding``, ``prefilling`` and ``waiting`` now."""
        return {
            "decoding": len(self._decoding),
            "prefilling": int(self._prefilling is not None),
            "waiting": len(self._waiting),
        }

    # ------------------------------------------------------------------------------------------------------- threads

    def _start(self) -> None:
        if not self._background or self._thread is not None:
            return
        self._pool = ThreadPoolExecutor(self._media_threads, thread_name_prefix="videollama2-media")
        state = self._state

        def wake(_: object) -> None:
            with state:
                state.notify_all()

        # The thread must not keep an engine alive that nobody holds any more; it is woken when that comes to pass.
        arguments = weakref.ref(self, wake), state
        self._thread = Thread(target=_run, args=arguments, name="videollama2-engine", daemon=True)
        self._thread.start()

    def _wake(self) -> None:
        # Also called from Answer.__del__, which may run inside this very lock on the same thread: Condition is
        # reentrant.
        with self._state:
            self._state.notify_all()

    def _read_ahead(self) -> None:
        """Have the media read of those that come next. Not of all that wait: decoded clips are large."""
        with self._state:
            for task in list(self._waiting)[: _READ_AHEAD * self.max_batch]:
                if not task.media_asked:
                    task.ask_for_media([self._later(part) for part in task.request.media])

    def _later(self, part: MediaPart) -> Future[Medium]:
        arguments = self.media.read, part.kind, part.source, part.options
        if self._pool is None:
            return _Late(*arguments)
        future = self._pool.submit(*arguments)
        future.add_done_callback(lambda _: self._wake())
        return future

    @property
    def idle(self) -> bool:
        """Nothing can be done before a request or a medium arrives."""
        if self._decoding or self._prefilling is not None:
            return False
        return not any(task.channel.cancelled or task.media_ready for task in self._waiting)

    # ---------------------------------------------------------------------------------------------------------- steps

    @torch.inference_mode()
    def step(self) -> None:
        """One round: drop what was cancelled, prefill up to a chunk, decode one token of every running request."""
        with self._stepping:
            self._drop_cancelled()
            self._prefill()
            self._decode()

    def _drop_cancelled(self) -> None:
        with self._state:
            dropped = [task for task in self._waiting if task.channel.cancelled]
            for task in dropped:
                self._waiting.remove(task)
        for task in dropped:
            self._finish(task, "cancelled")
        if self._prefilling is not None and self._prefilling.channel.cancelled:
            task, self._prefilling = self._prefilling, None
            self._finish(task, "cancelled")
        self._leave([(task, "cancelled") for task in self._decoding if task.channel.cancelled])

    def _prefill(self) -> None:
        budget = self.prefill_chunk
        while budget > 0:
            if self._prefilling is None and not self._take():
                return
            task = self._prefilling
            count = min(budget, task.remaining)
            budget -= count
            try:
                logits_V = self.decoder.prefill(len(self._decoding), task, count)
            except Exception as error:  # noqa: BLE001 - a fault of this request alone
                self._prefilling = None
                self._fail(task, error)
                continue
            if logits_V is None:
                continue
            self._remember(task, len(self._decoding))
            task.drop_embeddings()
            self._prefilling = None
            self._decoding.append(task)
            self._accept([task], logits_V.unsqueeze(0))

    def _take(self) -> bool:
        """Make the first waiting request whose media are read the one being prefilled."""
        if len(self._decoding) >= self.max_batch:
            return False
        with self._state:
            # Media of all that may soon run are encoded together.
            ready = [task for task in self._waiting if task.media_ready][: self.max_batch - len(self._decoding)]
        for task in self._encode(ready):
            with self._state:
                self._waiting.remove(task)
                self._prefilling = task  # at no time in neither: close and abort look in both
                self._state.notify_all()
            try:
                task.place(self.processor, self.max_length)
                row = len(self._decoding)
                task.filled = task.cached = self.prefixes.load(task.identity, self.decoder.slots, row)
                task.embed(self.model)
            except Exception as error:  # noqa: BLE001 - a fault of this request alone
                self._prefilling = None
                self._fail(task, error)
                continue
            self._read_ahead()
            return True
        self._read_ahead()  # some may have failed or been cancelled
        return False

    def _encode(self, tasks: list[Task]) -> list[Task]:
        """Tasks whose media could be read and encoded; the others fail."""
        good = []
        for task in tasks:
            try:
                task.collect_media()
                good.append(task)
            except Exception as error:  # noqa: BLE001 - whatever a reader raised belongs to this request alone
                with self._state:
                    self._waiting.remove(task)
                self._fail(task, error)
        try:
            self.media.encode([medium for task in good for medium in task.media])
        except Exception:  # noqa: BLE001 - each by itself tells whose fault it was
            good = [task for task in good if self._encode_alone(task)]
        return good

    def _encode_alone(self, task: Task) -> bool:
        try:
            self.media.encode(task.media)
        except Exception as error:  # noqa: BLE001 - a fault of this request alone
            with self._state:
                self._waiting.remove(task)
            self._fail(task, error)
            return False
        return True

    def _decode(self) -> None:
        # One that has just been prefilled has its token of this round; decoding it too keeps all in step.
        tasks = list(self._decoding)
        if not tasks:
            return
        try:
            logits_BV = self.decoder.decode(tasks)
        except Exception as error:  # noqa: BLE001 - whatever went wrong ends these requests and no others
            if self._prefilling is not None:
                self.decoder.slots.move(len(tasks), 0, self._prefilling.filled)
            self._decoding.clear()
            for task in tasks:
                self._fail(task, error)
            return
        self._accept(tasks, logits_BV)

    def _accept(self, tasks: list[Task], logits_BV: torch.Tensor) -> None:
        # Not a number is no logit: sampling from it would be a fault of the whole batch.
        broken = logits_BV.isnan().any(-1).tolist()
        ids = choose(logits_BV.nan_to_num(), [task.chooser for task in tasks])
        ended: list[tuple[Task, str | Exception]] = []
        for task, token_id, logits_V, bad in zip(tasks, ids, logits_BV, broken, strict=True):
            try:
                if bad:
                    raise EngineError("the model's logits are not numbers; were its weights made for this type?")
                reason: str | Exception | None = task.accept(token_id, logits_V)
            except Exception as error:  # noqa: BLE001 - a fault of this request alone
                reason = error
            if reason is not None:
                ended.append((task, reason))
        self._leave(ended)

    def _leave(self, ended: Sequence[tuple[Task, str | Exception]]) -> None:
        """Take tasks out of the batch; the last row moves into each gap."""
        slots = self.decoder.slots
        for task, reason in ended:
            row, last = self._decoding.index(task), len(self._decoding) - 1
            self._remember(task, row)
            self._decoding[row] = self._decoding[last]
            if row != last:
                slots.move(last, row, self._decoding[last].filled)
            self._decoding.pop()
            if self._prefilling is not None:
                slots.move(last + 1, last, self._prefilling.filled)
            if isinstance(reason, Exception):
                self._fail(task, reason)
            else:
                self._finish(task, reason)

    def _remember(self, task: Task, row: int) -> None:
        """Keep what others may begin with. Without memory for it, they compute it anew."""
        try:
            self.prefixes.store(task.identity[: task.filled], self.decoder.slots, row)
        except RuntimeError as error:
            _log.warning("key-values of a prompt could not be kept: %s", error)
            self.prefixes.clear()

    def _finish(self, task: Task, reason: str, error: VideoLlama2Error | None = None) -> None:
        task.finish(reason, error)
        self._wake()

    def _fail(self, task: Task, error: BaseException) -> None:
        if not isinstance(error, VideoLlama2Error):
            wrapped = EngineError(f"the request failed: {type(error).__name__}: {error}")
            wrapped.__cause__ = error
            error = wrapped
        self._finish(task, "error", error)


class _Late(Future):
    """A medium that is read when asked for: the future of an engine without threads."""

    def __init__(self, read: Callable[..., Any], *arguments: Any) -> None:
        super().__init__()
        self._read, self._arguments = read, arguments

    def done(self) -> bool:
        return True

    def result(self, timeout: float | None = None) -> Any:
        return self._read(*self._arguments)


def _run(engine_ref: weakref.ref[Engine], state: Condition) -> None:
    """Loop of the model's thread: sleeps while there is nothing to do."""
    while True:
        engine = engine_ref()
        if engine is None:
            return
        try:
            engine.step()
        except BaseException as error:  # a fault of ours: nobody may wait forever for it
            engine.abort(error)
            raise
        with state:
            if engine.closed:
                return
            if engine.idle:
                del engine
                if engine_ref() is not None:
                    state.wait()


def end_ids(model: VideoLlama2ForConditionalGeneration, tokenizer: Any) -> list[int]:
    """The ends of the generation configuration and the tokenizer's own.

    The published code stops at the tokenizer's; checkpoints tuned from a base model may only name that model's.
    """
    configured = model.generation_config.eos_token_id
    ends = set(configured if isinstance(configured, list) else [configured]) | {tokenizer.eos_token_id}
    return sorted(ends - {None})


def slot_bytes(model: VideoLlama2ForConditionalGeneration, length: int) -> int:
    """Key-values of one sequence of ``length`` positions."""
    config = model.config.text_config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize * length


def fitting_slots(model: VideoLlama2ForConditionalGeneration, length: int) -> int:
    """Slots of ``length`` positions for which half of the free memory has room; 1 to :data:`MAX_BATCH`."""
    free = free_memory(model.get_input_embeddings().weight.device)
    return max(1, min(MAX_BATCH, int(_SHARE_OF_MEMORY * free / slot_bytes(model, length))))


def _sizes(
    model: VideoLlama2ForConditionalGeneration, max_batch: int | None, max_length: int | None
) -> tuple[int, int]:
    positions = model.config.text_config.max_position_embeddings
    length = max_length or min(positions, MAX_LENGTH)
    if length > positions:
        _log.info("max_length %d is beyond the model's %d positions", length, positions)
    batch = max_batch or fitting_slots(model, length)
    needed, free = batch * slot_bytes(model, length), free_memory(model.get_input_embeddings().weight.device)
    if needed > free:
        raise ConfigError(
            f"{batch} slot(s) (max_batch) of {length} positions (max_length) take {needed >> 20} MiB of key-values, "
            f"but only {free >> 20} MiB are free"
        )
    return batch, length
