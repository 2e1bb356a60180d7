#!/usr/bin/env python3
"""First tokens of many questions about one clip, asked at once, beside an older version of the package.

    python benchmarks/together.py [--code FOLDER] [--model FOLDER] [--clients 16] [--new-tokens 32] [--rounds 2]
        [--new-clips 8]

The questions begin with the same words. Their clip is cached: its visual tokens, and in the first row of a version
also the key-values of the prompt up to its question. The last column has tokens per second, prompts included, of as
many questions with answers of ``--new-tokens``. ``--new-clips`` adds a row of so many questions about clips that no
cache holds, one each, all of whose columns are of answers of ``--new-tokens``. Times are processor seconds of
``--threads`` threads, so they compare on a busy machine too. Weights are packed where a worker packs them.

No order of the work makes p50 less than the column "floor", given what one such question takes by itself: nobody is
answered before the first prompt is computed, and half of those who ask about clips of their own not before half of the
clips are encoded and their prompts computed.

``--code`` is a work tree of the older version; both run in turns, in processes of their own, with the same ``--model``,
which both must be able to open (default: random weights of the 0.5B shapes).
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from limits import processor_name
from loads import CLIP_S, FRAME_S, LoadQuestion
from loads import request as part_of_clip
from random_model import CLIP, QUESTION, ROOT, make_random

CASES = ("cached", "not cached")
"""Of the beginning of the prompt."""
NEW_CLIPS = "new clips"


@dataclass(frozen=True)
class Measured:
    """Seconds to each first token, in order, and of a question by itself; and tokens per second."""

    firsts: list[float]
    alone: float
    rate: float

    @property
    def middle(self) -> float:
        return statistics.median(self.firsts)

    def floor(self, case: str) -> float:
        """The least that the median can be."""
        return self.alone * (len(self.firsts) + 1) / 2 if case == NEW_CLIPS else self.alone


def measure(model_path: str, clients: int, tokens: int, threads: int, new_clips: int) -> dict[str, Measured]:
    """Ask with the prompt's beginning cached and not, and about new clips."""
    import torch
    import transformers  # noqa: F401 - what is imported later takes the clock below

    # The engine takes its times from this clock.
    time.monotonic = time.process_time
    from videollama2 import model_init
    from videollama2.inference.engine import Engine
    from videollama2.inference.request import Request

    torch.set_num_threads(threads)
    model, processor, _ = model_init(model_path)
    # As a worker does; older versions never packed weights, or only when asked to.
    can_pack = "packed_weights" in inspect.signature(Engine).parameters
    options: dict[str, Any] = {"packed_weights": None} if can_pack else {}
    batch = max(clients, new_clips)
    engine = Engine(model, processor, max_batch=batch, max_length=1024, background=False, **options)
    engine._end_ids = frozenset()  # random weights must not end an answer early

    def request(question: str, tokens: int) -> Any:
        return Request(question, [("video", str(CLIP))], max_new_tokens=tokens)

    engine.submit_request(request("Look.", 1)).result()

    def results(how: str, tokens: int) -> list[Any]:
        asked = [f"{QUESTION} Say {how} in {number} words." for number in range(2, clients + 2)]
        answers = [engine.submit_request(request(question, tokens)) for question in asked]
        return [answer.result() for answer in answers]

    def first_token(asked: Any) -> float:
        return engine.submit_request(asked).result().timings.first_token

    measured = {}
    for name in CASES:
        if name == "not cached":
            engine.prefixes.clear()
        alone = first_token(request(f"Say {name} in one word. {QUESTION}", 1))  # what follows must not begin like it
        if name == "not cached":
            engine.prefixes.clear()
        firsts = sorted(result.timings.first_token for result in results(name, 2))
        if name == "not cached":
            engine.prefixes.clear()
        start = time.process_time()
        count = sum(result.completion_tokens for result in results(f"{name} again", tokens))
        measured[name] = Measured(firsts, alone, count / (time.process_time() - start))
    if new_clips:
        parts = [LoadQuestion(QUESTION, tokens, (number * FRAME_S, CLIP_S)) for number in range(1, new_clips + 2)]
        alone = first_token(part_of_clip(parts.pop(), frames=8))
        start = time.process_time()
        answers = [engine.submit_request(part_of_clip(part, frames=8)) for part in parts]
        found = [answer.result() for answer in answers]
        rate = sum(result.completion_tokens for result in found) / (time.process_time() - start)
        measured[NEW_CLIPS] = Measured(sorted(result.timings.first_token for result in found), alone, rate)
    return measured


def run(code: Path, arguments: list[str]) -> dict[str, Measured]:
    """Measure the package of a work tree in a process of its own."""
    command = [sys.executable, __file__, "--child", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(code), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=code, env=environment)
    return {name: Measured(**values) for name, values in json.loads(done.stdout.splitlines()[-1]).items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--code", type=Path, help="a work tree of an older version")
    parser.add_argument("--model", help="a checkpoint instead of the random one")
    parser.add_argument("--clients", type=int, default=16, help="questions (default %(default)s)")
    parser.add_argument("--new-tokens", type=int, default=32, help="of an answer (default %(default)s)")
    parser.add_argument("--new-clips", type=int, default=0, help="questions about new clips (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each version (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default %(default)s)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        found = measure(args.model, args.clients, args.new_tokens, args.threads, args.new_clips)
        print(json.dumps({name: asdict(values) for name, values in found.items()}))
        return 0
    trees = {"this version": ROOT} | ({args.code.name: args.code.resolve()} if args.code else {})
    measured: dict[str, list[dict[str, Measured]]] = {name: [] for name in trees}
    with tempfile.TemporaryDirectory() as folder:
        model = args.model and str(Path(args.model).resolve())
        if not model:
            make_random(Path(folder))
        own = ["--model", model or folder, "--clients", str(args.clients), "--threads", str(args.threads)]
        own += ["--new-tokens", str(args.new_tokens), "--new-clips", str(args.new_clips)]
        for _ in range(args.rounds):
            for name, code in trees.items():
                measured[name].append(run(code, own))
    new = f", {args.new_clips} about new clips" if args.new_clips else ""
    print(f"{processor_name()}, {args.threads} threads, {args.rounds} rounds")
    print(f"{args.clients} questions about one clip{new}: processor seconds to the first token, and tokens per second")
    print(f"{'version':20} {'beginning':12} {'first':>8} {'p50':>8} {'floor':>8} {'last':>8} {'tokens/s':>9}")
    for name, rounds in measured.items():
        for case in rounds[0]:
            found = [row[case] for row in rounds]
            columns = [[row.firsts[0], row.middle, row.floor(case), row.firsts[-1]] for row in found]
            cells = " ".join(f"{statistics.median(values):8.2f}" for values in zip(*columns, strict=True))
            print(f"{name:20} {case:12} {cells} {statistics.median(row.rate for row in found):9.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
