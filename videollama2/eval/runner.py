"""Questions -> answers through the engine: every clip is decoded and encoded once, and all its questions follow it.

Decoding runs ahead in threads while the model answers. An answer is handed on as soon as it is there, whatever became
of the questions before it, so that a process that is killed loses only what the model had not finished.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from videollama2.errors import DataError, EngineError, MediaError, RequestTooLongError, VideoLlama2Error
from videollama2.eval.annotations import why_unreadable
from videollama2.eval.items import Benchmark, Item
from videollama2.eval.samples import FAILED, MEDIA, StoredAnswer
from videollama2.media.frames import FrameSampling
from videollama2.media.kinds import VIDEO

if TYPE_CHECKING:  # torch is needed to answer, not to score answers or to check data
    import torch

    from videollama2.inference.answer import Answer
    from videollama2.inference.engine import Engine
    from videollama2.processing import ReadOptions

DECODE_THREADS = 2
CLIPS_AHEAD = 8
"""Clips that are decoded before their questions' turn."""
CLIPS_TOGETHER = 8
"""Clips whose questions are asked in turns, as many of these as are decoded."""
TICK_S = 0.1
"""Longest time that a finished answer waits to be handed on."""


@dataclass(frozen=True)
class AnswerOptions:
    """How questions are asked. All of it is part of what tells runs apart.

    Attributes:
        num_frames: None: the model's.
        max_new_tokens: None: the benchmark's, or as many as a slot has room for after the prompt.
        temperature: 0: the likeliest token. Above: sampled, each question with a seed of its own made from ``seed``.
    """

    num_frames: int | None = None
    video_backend: str = "auto"
    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def describe(self) -> dict[str, Any]:
        """For the results."""
        return asdict(self)

    def sampling(self, item: Item, part: int, max_new_tokens: int | None) -> dict[str, Any]:
        """Options of one request."""
        if not self.temperature:
            return {"max_new_tokens": max_new_tokens}
        seed = int.from_bytes(hashlib.sha256(f"{self.seed}:{item.id}:{part}".encode()).digest()[:7], "big")
        sampled = {"temperature": self.temperature, "top_p": self.top_p, "seed": seed}
        return {"max_new_tokens": max_new_tokens, **sampled}


@dataclass
class Work:
    """What was done, for the report and for benchmarks. Seconds of decoding are summed over threads."""

    clips: int = 0
    answers: int = 0
    tokens: int = 0
    decode_seconds: float = 0.0
    seconds: float = 0.0


@dataclass(eq=False)
class _Asked:
    """An item whose requests are under way."""

    item: Item
    instructions: tuple[str, ...]
    answers: list[Answer] = field(default_factory=list)
    error: Exception | None = None
    started: float = field(default_factory=monotonic)

    @property
    def done(self) -> bool:
        """Whether there is nothing to wait for."""
        return all(answer.done for answer in self.answers)


def open_engine(model: Any, processor: Any, max_batch: int | None = None) -> Engine:
    """An engine whose slots are equally long wherever it runs: free memory decides how many there are, nothing else, so
    that no answer is cut where another machine's would go on.

    Raises:
        ConfigError: there is no memory for them.
    """
    from videollama2.inference.engine import Engine
    from videollama2.inference.sizes import MAX_LENGTH

    longest = min(MAX_LENGTH, model.config.text_config.max_position_embeddings)
    return Engine(model, processor, max_batch=max_batch, max_length=longest)


class Runner:
    """Asks items of one benchmark.

    Args:
        engine: answers; see :func:`open_engine`.
        data: folder that media paths are relative to.
        strict_data: a medium that cannot be read stops the run.
    """

    def __init__(
        self, engine: Engine, benchmark: Benchmark, data: Path, options: AnswerOptions, strict_data: bool = False
    ) -> None:
        self.engine, self.benchmark, self.data, self.options = engine, benchmark, data, options
        self.strict_data = strict_data
        self.work = Work()
        frames = "model" if options.num_frames is None else options.num_frames
        self.sampling = FrameSampling(frames).for_model(engine.processor.model_config.num_frames)
        self.num_frames = self.sampling.count or 0  # a number in any case
        # At most half of a slot; a longer prompt takes of the answer's room.
        self.max_new_tokens = options.max_new_tokens or min(benchmark.max_new_tokens, engine.max_length // 2)

    def run(self, items: Sequence[Item], on_answer: Callable[[StoredAnswer], None]) -> None:
        """Ask all items; ``on_answer`` gets each answer once, in the order in which they are finished.

        Raises:
            DataError: ``strict_data`` and a medium that cannot be read. EngineError: the engine broke.
        """
        started = monotonic()
        # Enough to fill the batch anew while its oldest answer is still growing.
        window = min(3 * self.engine.max_batch, self.engine.max_queue)
        under_way: deque[_Asked] = deque()
        for asked in self._ask_all(items):
            if asked is not None:
                under_way.append(asked)
            self._hand_on(under_way, on_answer)
            while sum(len(each.answers) for each in under_way) >= window:
                self._wait(under_way[0])
                self._hand_on(under_way, on_answer)
        while under_way:
            self._wait(under_way[0])
            self._hand_on(under_way, on_answer)
        self.work.seconds += monotonic() - started

    def _hand_on(self, under_way: deque[_Asked], on_answer: Callable[[StoredAnswer], None]) -> None:
        for asked in [each for each in under_way if each.done]:
            under_way.remove(asked)
            on_answer(self._finish(asked))

    def _wait(self, asked: _Asked) -> None:
        """A moment, or until this is done; how it ended is :meth:`_finish`'s concern."""
        with suppress(TimeoutError, VideoLlama2Error):
            for answer in asked.answers:
                answer.result(timeout=TICK_S)

    def _ask_all(self, items: Sequence[Item]) -> Iterator[_Asked | None]:
        """Every item once it is asked; None now and then while a clip is being read."""
        with ThreadPoolExecutor(DECODE_THREADS, thread_name_prefix="videollama2-decode") as pool:
            groups = iter(by_clip(items))
            ahead: deque[tuple[list[Item], Future[Any]]] = deque()
            try:
                while True:
                    while len(ahead) < CLIPS_AHEAD and (group := next(groups, None)) is not None:
                        ahead.append((group, pool.submit(self._decode, group[0])))
                    if not ahead:
                        return
                    while not wait([ahead[0][1]], timeout=TICK_S).done:
                        yield None
                    ready = [ahead.popleft()]
                    while ahead and ahead[0][1].done() and len(ready) < CLIPS_TOGETHER:
                        ready.append(ahead.popleft())
                    # In turns: clips are encoded together, and a clip's second question finds its first one computed
                    # instead of waiting for it.
                    turns = zip_longest(*(self._ask_clip(group, future) for group, future in ready))
                    yield from (asked for turn in turns for asked in turn if asked is not None)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _decode(self, item: Item) -> tuple[list[tuple[str, Any]], float]:
        """Kind and pixels of every medium of an item, and the seconds that reading them took."""
        from videollama2.processing import ReadOptions

        started = monotonic()
        media = []
        for number, (kind, name) in enumerate(item.all_media):
            sampling = replace(self.sampling, start=item.start, end=item.end) if number == 0 else self.sampling
            options = ReadOptions(sampling, backend=self.options.video_backend)
            media.append((kind, self._read(kind, self.data / name, options)))
        return media, monotonic() - started

    def _read(self, kind: str, path: Path, options: ReadOptions) -> torch.Tensor:
        try:
            return self.engine.processor.read(kind, path, options)
        except MediaError:
            raise
        except OSError as error:
            raise MediaError(f"{path}: {why_unreadable(error)}") from error

    def _ask_clip(self, group: list[Item], future: Future[Any]) -> Iterator[_Asked]:
        try:
            media, seconds = future.result()
        except MediaError as error:
            if self.strict_data:
                raise DataError(f"{self.data / group[0].media} cannot be used (--strict-data): {error}") from error
            yield from (_Asked(item, item.instructions, error=error) for item in group)
            return
        self.work.clips += 1
        self.work.decode_seconds += seconds
        mixed = _shuffle(media, Path(group[0].media).name) if any(item.shuffled for item in group) else media
        for item in group:
            yield self._ask(item, mixed if item.shuffled else media)

    def _ask(self, item: Item, media: list[tuple[str, Any]]) -> _Asked:
        asked = _Asked(item, item.instructions)
        try:
            asked.instructions = self.benchmark.instructions(item, self.data, self.num_frames)
            for part, text in enumerate(asked.instructions):
                asked.answers.append(self._submit(item, part, text, media))
        except VideoLlama2Error as error:
            if self.engine.closed or isinstance(error, DataError):
                raise
            asked.answers, asked.error = [], error
        return asked

    def _submit(self, item: Item, part: int, text: str, media: list[tuple[str, Any]]) -> Answer:
        from videollama2.inference.request import Request

        sampling = self.options.sampling(item, part, self.max_new_tokens)
        try:
            return self.engine.submit_request(Request(text, media, **sampling))
        except RequestTooLongError:
            if self.options.max_new_tokens is not None:
                raise
        # Sixteen frames with subtitles leave less than the 2,048 tokens that nobody asked for: what there is, then.
        sampling = self.options.sampling(item, part, None)
        return self.engine.submit_request(Request(text, media, **sampling))

    def _finish(self, asked: _Asked) -> StoredAnswer:
        """Wait for an item's answers."""
        outputs, reasons = [], []
        for answer in asked.answers if asked.error is None else ():
            try:
                result = answer.result()
            except VideoLlama2Error as error:
                if self.engine.closed:
                    raise EngineError(f"the engine stopped while it answered {asked.item.id!r}: {error}") from error
                asked.error = error
                break
            # All tokens at once, as published; text that was streamed may differ in blanks.
            tokenizer = self.engine.processor.tokenizer
            outputs.append(tokenizer.decode(result.token_ids, skip_special_tokens=True).strip())
            reasons.append(result.finish_reason)
            self.work.tokens += result.completion_tokens
        self.work.answers += 1
        return _stored(asked, outputs, reasons)


def _stored(asked: _Asked, outputs: list[str], reasons: list[str]) -> StoredAnswer:
    error = asked.error
    several = len(asked.instructions) > 1
    return StoredAnswer(
        id=asked.item.id,
        instruction=list(asked.instructions) if several else asked.instructions[0],
        output=None if error else outputs if several else outputs[0],
        finish_reason=None if error else reasons if several else reasons[0],
        error=None if error is None else f"{type(error).__name__}: {error}",
        error_kind=None if error is None else MEDIA if isinstance(error, MediaError) else FAILED,
        seconds=round(monotonic() - asked.started, 3),
    )


def shuffled_order(frames: int, seed: str) -> list[int]:
    """A permutation of ``0 .. frames - 1`` drawn from ``seed``, never the identity where there is another."""
    rng = random.Random(seed)
    order = list(range(frames))
    while frames > 1 and order == sorted(order):
        rng.shuffle(order)
    return order


def _shuffle(media: list[tuple[str, Any]], seed: str) -> list[tuple[str, Any]]:
    """With the frames of each video (pixels T, C, H, W) in another order; an image has no order."""
    return [(kind, pixels[shuffled_order(len(pixels), seed)] if kind == VIDEO else pixels) for kind, pixels in media]


def by_clip(items: Sequence[Item]) -> list[list[Item]]:
    """Items that share a clip together, clips in the order in which they first appear."""
    groups: dict[Any, list[Item]] = {}
    for item in items:
        groups.setdefault(item.clip, []).append(item)
    return list(groups.values())


def share(items: Sequence[Item], rank: int, world: int) -> list[Item]:
    """What process ``rank`` of ``world`` asks: every ``world``-th clip with all its questions. May be nothing."""
    return [item for group in by_clip(items)[rank::world] for item in group]


def missing_media(items: Sequence[Item], data: Path) -> list[str]:
    """Media that are not there, each once."""
    paths = dict.fromkeys(path for item in items for _, path in item.all_media)
    return [path for path in paths if not (data / path).exists()]
