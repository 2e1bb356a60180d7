"""Loads for the benchmarks of the engine and of the servers: mixed questions, arrivals, percentiles of waiting times.

A mixed load has short and long questions about known and new clips, with answers of different lengths. Arrivals are
open: requests come at random moments (Poisson), whether or not earlier ones are answered, so a slow server meets a
queue and not patient clients.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any

from random_model import CLIP, QUESTION

QUESTIONS = (QUESTION, "How many objects are there?", "Which object moves first?", "What is the colour of the square?")
LONG_BEGINNING = "Look at the whole clip, compare its beginning with its end, and give the reason. " * 8
CLIP_S, FRAME_S = 2.0, 1 / 12
"""Length of the clip and of one of its frames, in seconds."""

SHARE_OF_CAPACITY = 0.7
"""Open arrivals bring this share of the tokens per second that busy clients get."""


@dataclass(frozen=True)
class LoadQuestion:
    """A question about the clip.

    Attributes:
        tokens: length of the answer.
        bounds: start and end in seconds of the part of the clip that is shown; None for all of it.
    """

    text: str
    tokens: int
    bounds: tuple[float, float] | None = None


def known(number: int, tokens: int) -> LoadQuestion:
    """Return the n-th short question about the whole clip, which caches hold after the first."""
    return LoadQuestion(QUESTIONS[number % len(QUESTIONS)], tokens)


def mixed(number: int, tokens: int) -> LoadQuestion:
    """Return the n-th question of a mixed load.

    Every other question is long, every third is about a part of the clip that no cache holds, and answers have a
    quarter to all of ``tokens``.
    """
    text = QUESTIONS[number % len(QUESTIONS)]
    if number % 2:
        text = f"{LONG_BEGINNING} {text}"
    # Another first or last frame makes a clip that no cache holds.
    unseen = number // 3
    late, early = unseen % 12 + 1, unseen // 12 % 8
    bounds = (late * FRAME_S, CLIP_S - early * FRAME_S) if number % 3 == 0 else None
    return LoadQuestion(text, max(1, tokens * (1 + number % 4) // 4), bounds)


def pauses(per_second: float, seed: int = 0) -> Iterator[float]:
    """Yield the seconds between arrivals."""
    rng = random.Random(seed)
    while True:
        yield rng.expovariate(per_second)


def percentiles(values: Sequence[float]) -> str:
    """p50 / p95 / p99 in milliseconds."""
    ordered = sorted(values) or [0.0]
    return " / ".join(
        f"{1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]:.0f}" for share in (0.5, 0.95, 0.99)
    )


# ---------------------------------------------------------------------------------------- on an engine without a server


def request(question: LoadQuestion, frames: int) -> Any:
    """Return a request of the engine."""
    from videollama2 import Request

    part: dict[str, Any] = {"type": "video", "path": CLIP, "num_frames": frames}
    if question.bounds is not None:
        part["start"], part["end"] = question.bounds
    return Request(question.text, [part], max_new_tokens=question.tokens, min_new_tokens=question.tokens)


def at_once(engine: Any, requests: Sequence[Any]) -> float:
    """Return the seconds in which an engine answers all requests, handed in at once."""
    start = time.perf_counter()
    for answer in [engine.submit_request(each) for each in requests]:
        answer.result()
    return time.perf_counter() - start


def arriving(engine: Any, requests: Sequence[Any], per_second: float) -> list[Any]:
    """Submit requests to an engine without a thread at random moments; returns their results."""
    arrivals = list(accumulate(islice(pauses(per_second), len(requests))))
    answers: list[Any] = []
    start = time.perf_counter()
    while len(answers) < len(requests) or not all(answer.done for answer in answers):
        now = time.perf_counter() - start
        while len(answers) < len(requests) and arrivals[len(answers)] <= now:
            answers.append(engine.submit_request(requests[len(answers)]))
        if engine.idle and len(answers) < len(requests):
            time.sleep(max(0.0, arrivals[len(answers)] - now))
        else:
            engine.step()
    return [answer.result() for answer in answers]


def print_mixed(engine: Any, count: int, tokens: int, frames: int) -> None:
    """Print waiting times of ``count`` mixed requests that arrive at a share of the rate at which they are answered."""
    at_once(engine, [request(known(number, tokens), frames) for number in range(len(QUESTIONS))])  # fills the caches
    seconds = at_once(engine, [request(mixed(number, tokens), frames) for number in range(count)])
    later = [request(mixed(number, tokens), frames) for number in range(3 * count, 4 * count)]  # other new clips
    results = arriving(engine, later, SHARE_OF_CAPACITY * count / seconds)
    firsts = percentiles([result.timings.first_token for result in results])
    wholes = percentiles([result.timings.total for result in results])
    print(
        f"\n{count} mixed requests: {count / seconds:.2f} a second at once; at {SHARE_OF_CAPACITY:.0%} of that, "
        f"p50 / p95 / p99 of the first token {firsts} ms,\nof the whole answer {wholes} ms"
    )
