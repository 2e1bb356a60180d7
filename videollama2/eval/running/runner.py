"""Asks a benchmark's questions through the engine. Every clip is decoded and encoded once for all questions.

Threads decode the next clips while the model answers. An answer is passed on as soon as it is finished, in whatever
order, so that a process that is killed loses only the answers that the model had not finished.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from copy import copy
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from videollama2.errors import DataError, EngineError, MediaError, RequestTooLongError, VideoLlama2Error
from videollama2.eval.items import Benchmark, Item
from videollama2.eval.running.clips import ClipReader, ItemMedia, by_clip, decode_threads
from videollama2.eval.samples import FAILED, MEDIA, StoredAnswer
from videollama2.media.frames import FrameSampling

if TYPE_CHECKING:  # only answering needs torch; scoring answers and checking data must not import it
    from videollama2.inference.answer import Answer
    from videollama2.inference.engine import Engine

CLIPS_AHEAD = 8
"""Number of clips that are decoded ahead of the questions being asked."""
CLIPS_TOGETHER = 8
"""Largest number of decoded clips whose questions are asked alternately."""
TICK_S = 0.1
"""Longest time in seconds that a finished answer waits to be passed on."""


@dataclass(frozen=True)
class AnswerOptions:
    """The options with which questions are asked; all of them are part of a run's configuration.

    Attributes:
        num_frames: frames per video, or None for the model's number.
        frames_over: over what frames are spread, see :class:`~videollama2.media.frames.FrameSampling`; "fps" takes one
            frame per second, at most :data:`~videollama2.media.frames.MAX_FRAMES`, in place of a number of frames.
        max_new_tokens: longest answer, or None for the benchmark's, shortened if the prompt leaves less of a slot.
        temperature: 0 takes the likeliest token; above 0, tokens are sampled, with a seed for each question that is
            made from ``seed``.
    """

    num_frames: int | None = None
    frames_over: Literal["index", "time", "fps"] = "index"
    video_backend: str = "auto"
    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def describe(self) -> dict[str, Any]:
        """Return the options as the results record them; the usual spread of frames is left out, as it always was."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("frames_over", "index")}

    def frames_of(self, model_frames: int) -> FrameSampling:
        """Return the choice of frames; ``model_frames`` is the model's number of frames."""
        frames = "model" if self.num_frames is None else self.num_frames
        return FrameSampling.over(self.frames_over, frames).for_model(model_frames)

    def sampling(self, item: Item, part: int, max_new_tokens: int | None) -> dict[str, Any]:
        """Return the sampling options of one request; ``part`` is the number of the instruction within the item."""
        if not self.temperature:
            return {"max_new_tokens": max_new_tokens}
        seed = int.from_bytes(hashlib.sha256(f"{self.seed}:{item.id}:{part}".encode()).digest()[:7], "big")
        sampled = {"temperature": self.temperature, "top_p": self.top_p, "seed": seed}
        return {"max_new_tokens": max_new_tokens, **sampled}


@dataclass
class Work:
    """Counts of the work done, for speed measurements.

    Attributes:
        decode_seconds: time taken to read clips, summed over threads.
        starved_seconds: time in which no question was open because the next clip was not read yet.
        seconds: time of the whole run.
    """

    clips: int = 0
    answers: int = 0
    tokens: int = 0
    decode_seconds: float = 0.0
    starved_seconds: float = 0.0
    seconds: float = 0.0

    def text(self) -> str:
        """Return the rate in one sentence, which says whether reading clips was the limit."""
        rate = self.answers / self.seconds if self.seconds else 0.0
        starved = self.starved_seconds / self.seconds if self.seconds else 0.0
        return (
            f"{self.answers} answers in {self.seconds:.1f} s ({rate:.1f} per second); "
            f"the model waited for clips {starved:.0%} of the time"
        )


@dataclass(eq=False)
class _Asked:
    """An item whose requests have been submitted."""

    item: Item
    instructions: tuple[str, ...]
    answers: list[Answer] = field(default_factory=list)
    error: Exception | None = None
    note: str | None = None
    started: float = field(default_factory=monotonic)

    @property
    def done(self) -> bool:
        """Whether all answers are finished."""
        return all(answer.done for answer in self.answers)


def open_evaluation_engine(model: Any, processor: Any, max_batch: int | None = None, background: bool = True) -> Engine:
    """Return an engine for evaluation, whose slots have the same length on every machine.

    Free memory decides only the number of slots. An answer is therefore never cut at a length at which another machine
    would continue.

    Args:
        background: whether the engine has threads of its own; without them, it computes while answers are waited for.

    Raises:
        ConfigError: there is not enough memory for a slot.
    """
    from videollama2.inference.engine import Engine
    from videollama2.inference.sizes import MAX_LENGTH

    longest = min(MAX_LENGTH, model.config.text_config.max_position_embeddings)
    return Engine(model, processor, max_batch=max_batch, max_length=longest, background=background)


class Runner:
    """Asks the items of one benchmark.

    Args:
        engine: engine that answers; see :func:`open_evaluation_engine`.
        benchmark: benchmark whose items are asked.
        data: folder to which media paths are relative.
        options: how questions are asked.
        strict_data: whether a medium that cannot be read stops the run.
    """

    def __init__(
        self, engine: Engine, benchmark: Benchmark, data: Path, options: AnswerOptions, strict_data: bool = False
    ) -> None:
        # A copy, because the choice of frames is set on it below: the caller's benchmark may be asked with another
        # model next.
        self.engine, self.benchmark, self.data, self.options = engine, copy(benchmark), data, options
        self.strict_data = strict_data
        self.work = Work()
        self._busy_until = 0.0
        """The time (monotonic) at which the latest of the finished answers ended, or at which the run began."""
        self.sampling = options.frames_of(engine.processor.model_config.num_frames)
        self.benchmark.sampling, self.num_frames = self.sampling, self.sampling.count
        self.clips = ClipReader(engine.processor, data, self.sampling, options.video_backend)
        # An answer may take half of a slot; with a prompt longer than the other half, it gets what is left.
        self.max_new_tokens = options.max_new_tokens or min(benchmark.max_new_tokens, engine.max_length // 2)

    def run(self, items: Sequence[Item], on_answer: Callable[[StoredAnswer], None]) -> None:
        """Ask all items and pass each answer to ``on_answer``, in the order in which answers are finished.

        Raises:
            DataError: a medium cannot be read and ``strict_data`` is set.
            EngineError: the engine has stopped.
        """
        started = self._busy_until = monotonic()
        # The window of open requests is larger than the batch, so that free slots are filled at once while older
        # answers are still being generated.
        window = min(3 * self.engine.max_batch, self.engine.max_queue)
        under_way: deque[_Asked] = deque()
        for asked in self._ask_all(items):
            self._hand_on(under_way, on_answer)
            if asked is not None:
                if not under_way:
                    self.work.starved_seconds += max(0.0, asked.started - self._busy_until)
                under_way.append(asked)
            # Waiting for the oldest question keeps the order of the file roughly, and its clip's frames are freed
            # first.
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
        """Wait until the item is answered, at most :data:`TICK_S` per answer; :meth:`_finish` handles errors."""
        with suppress(TimeoutError, VideoLlama2Error):
            for answer in asked.answers:
                answer.result(timeout=TICK_S)

    def _ask_all(self, items: Sequence[Item]) -> Iterator[_Asked | None]:
        """Yield every item after it is asked, and None at least every :data:`TICK_S` while a clip is decoded.

        The caller uses the pauses to pass on answers that have been finished.
        """
        with ThreadPoolExecutor(decode_threads(), thread_name_prefix="videollama2-decode") as pool:
            groups = iter(by_clip(items))
            ahead: deque[tuple[list[Item], Future[Any]]] = deque()
            # The queue ``ahead`` holds the clips that threads decode, in order. Each round fills it, waits for its
            # first clip, takes this clip and those after it that are decoded too, and asks the questions of all these.
            try:
                while True:
                    while len(ahead) < CLIPS_AHEAD and (group := next(groups, None)) is not None:
                        ahead.append((group, pool.submit(self.clips.read, group[0])))
                    if not ahead:
                        return
                    while not wait([ahead[0][1]], timeout=TICK_S).done:
                        yield None
                    ready = [ahead.popleft()]
                    while ahead and ahead[0][1].done() and len(ready) < CLIPS_TOGETHER:
                        ready.append(ahead.popleft())
                    # The questions of several clips are asked alternately. The clips are then encoded together (on a
                    # GPU), and the second question of a clip finds the prefix of the first one computed instead of
                    # waiting for it.
                    turns = zip_longest(*(self._ask_clip(group, future) for group, future in ready))
                    yield from (asked for turn in turns for asked in turn if asked is not None)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _ask_clip(self, group: list[Item], future: Future[Any]) -> Iterator[_Asked]:
        try:
            clip: ItemMedia = future.result()
        except MediaError as error:
            if self.strict_data:
                raise DataError(f"{self.data / group[0].media} cannot be used (--strict-data): {error}") from error
            yield from (_Asked(item, item.instructions, error=error) for item in group)
            return
        self.work.clips += 1
        self.work.decode_seconds += clip.seconds
        shown = {"": clip.media}
        for item in group:
            if item.control not in shown:
                shown[item.control] = clip.altered(item.control, Path(item.media).name)
            yield self._ask(item, shown[item.control], clip.note)

    def _ask(self, item: Item, media: list[tuple[str, Any]], note: str | None) -> _Asked:
        asked = _Asked(item, item.instructions, note=note)
        try:
            asked.instructions = self.benchmark.instructions(item, self.data, self.num_frames or 0)
            for part, text in enumerate(asked.instructions):
                asked.answers.append(self._submit(item, part, text, media))
        except VideoLlama2Error as error:
            if self.engine.closed or isinstance(error, DataError):
                raise
            # Parts of the item that were submitted before go on in the engine, and nobody reads their answers.
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
        # The user gave no limit, and the benchmark's default of 2,048 tokens does not fit after the prompt (for example
        # after 16 frames and subtitles). The answer may then use the rest of the slot.
        sampling = self.options.sampling(item, part, None)
        return self.engine.submit_request(Request(text, media, **sampling))

    def _finish(self, asked: _Asked) -> StoredAnswer:
        """Wait for an item's answers and return them for storage."""
        outputs, reasons = [], []
        for answer in asked.answers if asked.error is None else ():
            try:
                result = answer.result()
            except VideoLlama2Error as error:
                if self.engine.closed:
                    raise EngineError(f"the engine stopped while it answered {asked.item.id!r}: {error}") from error
                asked.error = error
                break
            # All tokens are decoded at once, as in the published code; streamed text may differ in blanks.
            tokenizer = self.engine.processor.tokenizer
            outputs.append(tokenizer.decode(result.token_ids, skip_special_tokens=True).strip())
            reasons.append(result.finish_reason)
            self.work.tokens += result.completion_tokens
            self._busy_until = max(self._busy_until, asked.started + result.timings.total)
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
        note=asked.note,
    )
