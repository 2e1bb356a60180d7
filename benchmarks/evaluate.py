#!/usr/bin/env python3
"""What the evaluation runner gains over asking one question at a time, and where its time goes.

    python benchmarks/evaluate.py [--videos 60] [--per-video 3] [--repeat 3] [--model videollama2-tiny]

Draws clips of the built-in world with several questions each and answers all of them twice, in turns: with the runner
of ``videollama2 eval run``, and with ``mm_infer`` as a loop over the questions would (read the clip, ask). The answers
must be equal. All rows come from one run; quote the ratio.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TARGET = 3.0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=60)
    parser.add_argument("--per-video", type=int, default=3, help="questions about each (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="of the runner (default %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="rounds of both (default %(default)s)")
    parser.add_argument("--model", default="videollama2-tiny")
    parser.add_argument("--device", default=None)
    return parser.parse_args()


class Clock:
    """Seconds by stage, summed over threads."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Count the time spent in a method of one object."""
        inner = getattr(owner, method)

        def outer(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return inner(*args, **kwargs)

        setattr(owner, method, outer)


class Bench:
    """One model and one set of questions."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        from transformers.utils import logging

        from videollama2 import model_init
        from videollama2.data.moving_shapes import write_set
        from videollama2.eval.benchmarks import benchmark
        from videollama2.eval.runner import by_clip

        logging.disable_progress_bar()
        self.args, self.data = args, folder
        write_set(out=folder, videos=args.videos, seed=31, workers=2, questions_per_item=args.per_video)
        self.benchmark = benchmark("moving_shapes")
        groups = [group for group in by_clip(self.benchmark.load(folder)) if len(group) >= args.per_video]
        self.items = [item for group in groups for item in group[: args.per_video]]
        self.clips = len(groups)
        self.model, self.processor, self.tokenizer = model_init(args.model, device=args.device)

    def runner(self) -> tuple[float, list[str], Clock]:
        """Seconds, answers and stages of the runner, with an engine of its own that knows nothing yet."""
        from videollama2.eval.runner import AnswerOptions, Runner
        from videollama2.inference.engine import Engine

        clock, answers = Clock(), {}
        with Engine(self.model, self.processor, max_batch=self.args.batch_size) as engine:
            clock.watch(engine.media, "encode", "encode")
            clock.watch(engine.decoder, "prefill", "prefill")
            clock.watch(engine.decoder, "decode", "decode steps")
            runner = Runner(engine, self.benchmark, self.data, AnswerOptions())
            start = time.perf_counter()
            runner.run(self.items, lambda answer: answers.__setitem__(answer["id"], answer["output"]))
            seconds = time.perf_counter() - start
        clock.seconds["reading videos"] = runner.work.decode_seconds
        return seconds, [answers[item.id] for item in self.items], clock

    def one_by_one(self) -> tuple[float, list[str], Clock]:
        """The same with a loop over the questions."""
        from videollama2.inference.api import media_cache, mm_infer

        media_cache(self.model).clear()
        clock, answers = Clock(), []
        start = time.perf_counter()
        for item in self.items:
            with clock.stage("reading videos"):
                pixels = self.processor[item.kind](self.data / item.media, start=item.start, end=item.end)
            with clock.stage("mm_infer"):
                answers.append(
                    mm_infer(pixels, item.instruction, self.model, self.tokenizer, modal=item.kind,
                             max_new_tokens=self.benchmark.max_new_tokens)
                )  # fmt: skip
        return time.perf_counter() - start, answers, clock


def stages(clock: Clock, seconds: float) -> str:
    parts = [f"{name} {value / seconds:.0%}" for name, value in clock.seconds.most_common()]
    return ", ".join(parts)


def alternate(runs: Sequence[Callable[[], tuple[float, list[str], Clock]]], repeat: int) -> list[list[Any]]:
    """Results of each, in turns, so that a slow minute of the machine slows both."""
    results: list[list[Any]] = [[] for _ in runs]
    for _ in range(repeat):
        for kept, run in zip(results, runs, strict=True):
            kept.append(run())
    return results


def main() -> int:
    args = parse()
    import torch

    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        bench.runner()  # warm-up
        fast, slow = alternate([bench.runner, bench.one_by_one], args.repeat)
    count = len(bench.items)
    print(f"{count} questions about {bench.clips} clips, {args.model}, batch {args.batch_size}, "
          f"{torch.get_num_threads()} torch threads")  # fmt: skip
    print(f"{'':12} {'questions/s':>12} {'ratio':>7}   share of the time (two threads read videos beside the model)")
    base = statistics.median(result[0] for result in slow)
    for name, results in (("one by one", slow), ("runner", fast)):
        seconds = statistics.median(result[0] for result in results)
        middle = min(results, key=lambda result: abs(result[0] - seconds))
        print(f"{name:12} {count / seconds:12.1f} {base / seconds:6.1f}x   {stages(middle[2], middle[0])}")
    equal = sum(a == b for a, b in zip(fast[0][1], slow[0][1], strict=True))
    print(f"target {TARGET:.0f}x; {equal} of {count} answers are the same text")
    return 0 if equal == count else 1


if __name__ == "__main__":
    sys.exit(main())
