#!/usr/bin/env python3
"""What the evaluation runner gains over asking one question at a time, and where the time goes.

    python benchmarks/evaluate.py [--videos 80] [--per-video 3] [--repeat 3] [--model videollama2-tiny]

Draws clips of the built-in world with several questions each and answers all of them twice, in turns: with the runner
of ``videollama2 eval run``, and with ``mm_infer`` as a loop over the questions would (read the clip, ask). The answers
must be the same texts. All rows come from one run; quote the ratio.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent))

from limits import processor_name

TARGET = 3.0
STAGES = ("decode", "encode", "prefill", "decode steps")
Result = TypeVar("Result")
Seconds = defaultdict[str, float]
"""Seconds by stage."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=80)
    parser.add_argument("--per-video", type=int, default=3, help="questions about each (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="of the runner (default %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="rounds of both (default %(default)s)")
    parser.add_argument("--model", default="videollama2-tiny")
    parser.add_argument("--device", default=None)
    return parser.parse_args()


class Round(NamedTuple):
    """One way of answering everything once.

    ``beside``: videos were read beside the model, not before it. ``starved``: seconds in which the model had no
    question because the next clip was not read yet.
    """

    seconds: float
    answers: list[str]
    stages: Seconds
    beside: bool
    starved: float = 0.0

    @property
    def rest(self) -> float:
        """Seconds that no stage of the model's thread took."""
        return self.seconds - sum(self.stages[name] for name in STAGES if not (self.beside and name == "decode"))


class ModelClock:
    """Seconds that the model's parts take, whoever calls them."""

    def __init__(self, model: Any) -> None:
        self.seconds: Seconds = defaultdict(float)
        self._start = 0.0
        self._cuda = model.device.type == "cuda"
        for part in model.model.eyes():
            part.register_forward_pre_hook(self._begin)
            part.register_forward_hook(lambda *_: self._end("encode"))
        decoder = model.model.language_model
        decoder.register_forward_pre_hook(self._begin)
        decoder.register_forward_hook(self._end_decoder, with_kwargs=True)

    @contextmanager
    def counting(self) -> Iterator[Seconds]:
        """A count of its own for what runs inside."""
        self.seconds = defaultdict(float)
        yield self.seconds

    def _begin(self, *_: Any) -> None:
        self._wait()
        self._start = time.perf_counter()

    def _end(self, name: str) -> None:
        self._wait()
        self.seconds[name] += time.perf_counter() - self._start

    def _end_decoder(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        self._end("decode steps" if output.last_hidden_state.shape[1] == 1 else "prefill")

    def _wait(self) -> None:
        if self._cuda:
            import torch

            torch.cuda.synchronize()


class Bench:
    """One model and one set of questions."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        from transformers.utils import logging

        from videollama2 import model_init
        from videollama2.eval.benchmarks import benchmark
        from videollama2.eval.running.clips import by_clip
        from videollama2.shapes.sets import write_set

        logging.disable_progress_bar()
        self.args, self.data = args, folder
        write_set(out=folder, videos=args.videos, seed=31, workers=2, questions_per_item=args.per_video)
        self.benchmark = benchmark("moving_shapes")
        groups = [group for group in by_clip(self.benchmark.load(folder)) if len(group) >= args.per_video]
        self.items = [item for group in groups for item in group[: args.per_video]]
        self.clips = len(groups)
        self.model, self.processor, self.tokenizer = model_init(args.model, device=args.device)
        self.clock = ModelClock(self.model)

    def runner(self) -> Round:
        """The runner, with an engine of its own that knows nothing yet."""
        from videollama2.eval.running.runner import AnswerOptions, Runner, open_evaluation_engine

        answers: dict[str, Any] = {}
        with open_evaluation_engine(self.model, self.processor, self.args.batch_size) as engine:
            runner = Runner(engine, self.benchmark, self.data, AnswerOptions())
            with self.clock.counting() as stages:
                start = time.perf_counter()
                runner.run(self.items, lambda answer: answers.__setitem__(answer.id, answer.output))
                seconds = time.perf_counter() - start
        stages["decode"] = runner.work.decode_seconds
        return Round(seconds, [answers[item.id] for item in self.items], stages, True, runner.work.starved_seconds)

    def one_by_one(self) -> Round:
        """The same with a loop over the questions. ``mm_infer`` itself encodes a clip once."""
        from videollama2.inference.api import media_cache, mm_infer

        media_cache(self.model).clear()
        answers = []
        with self.clock.counting() as stages:
            start = time.perf_counter()
            for item in self.items:
                assert isinstance(item.instruction, str)  # this benchmark asks one question at a time
                begun = time.perf_counter()
                pixels = self.processor[item.kind](self.data / item.media, start=item.start, end=item.end)
                stages["decode"] += time.perf_counter() - begun
                answers.append(
                    mm_infer(
                        pixels,
                        item.instruction,
                        self.model,
                        self.tokenizer,
                        modal=item.kind,
                        max_new_tokens=self.benchmark.max_new_tokens,
                    )
                )
            seconds = time.perf_counter() - start
        return Round(seconds, answers, stages, beside=False)


def in_turns(ways: dict[str, Callable[[], Result]], repeat: int) -> dict[str, list[Result]]:
    """Rounds of each way, in turns, so that a slow minute of the machine slows both."""
    rounds: dict[str, list[Result]] = {name: [] for name in ways}
    for _ in range(repeat):
        for name, run in ways.items():
            rounds[name].append(run())
    return rounds


def middle(rounds: list[Round]) -> Round:
    """The round of median length (the lower one of two)."""
    return sorted(rounds, key=lambda each: each.seconds)[(len(rounds) - 1) // 2]


def table(rounds: dict[str, list[Round]], count: int) -> str:
    """Rates, and milliseconds per question by stage, of each way's middle round; ratios to the first way."""
    head = ("", "questions/s", "ratio", *STAGES, "rest", "all")
    lines = ["".join(f"{text:>14}" for text in head)]
    first = None
    for name, own in rounds.items():
        shown = middle(own)
        rate = count / shown.seconds
        first = first or rate
        stages = [shown.stages[stage] for stage in STAGES]
        cells = [f"{1000 * seconds / count:.1f}" for seconds in (*stages, shown.rest, shown.seconds)]
        lines.append("".join(f"{text:>14}" for text in (name, f"{rate:.1f}", f"{rate / first:.1f}x", *cells)))
    return "\n".join(lines)


def main() -> int:
    args = parse()
    import torch

    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        bench.runner()  # warm-up
        rounds = in_turns({"one by one": bench.one_by_one, "runner": bench.runner}, args.repeat)
    count = len(bench.items)
    dtype = str(bench.model.dtype).removeprefix("torch.")
    print(processor_name())
    print(
        f"{count} questions about {bench.clips} clips; {args.model}, {dtype}, "
        f"batch {args.batch_size}, {torch.get_num_threads()} torch threads; stages in ms per question"
    )
    print(table(rounds, count))
    print("decode: reading videos; for the runner in threads beside the model, so it is no part of the sum")
    starved = middle(rounds["runner"])
    print(f"runner: the model waited for the next clip {starved.starved / starved.seconds:.1%} of the time")
    slow, fast = rounds["one by one"], rounds["runner"]
    ratios = [one.seconds / other.seconds for one, other in zip(slow, fast, strict=True)]
    equal = sum(a == b for a, b in zip(slow[0].answers, fast[0].answers, strict=True))
    met = statistics.median(ratios) >= TARGET
    each = ", ".join(f"{ratio:.1f}x" for ratio in ratios)
    print(f"{'ok' if met else 'BROKEN':8}at least {TARGET:.0f}x as many questions/s; by round: {each}")
    print(f"{'ok' if equal == count else 'BROKEN':8}{equal} of {count} answers are the same text")
    return 0 if met and equal == count else 1


if __name__ == "__main__":
    sys.exit(main())
