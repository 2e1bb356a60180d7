#!/usr/bin/env python3
"""First tokens of many questions about one clip, asked at once, beside an older version of the package.

    python benchmarks/together.py [--code FOLDER] [--model FOLDER] [--clients 16] [--rounds 2] [--threads 1]

The questions begin with the same words. Their clip is cached: its visual tokens, and in the first row of a version
also the key-values of the prompt up to its question. Times are processor seconds of ``--threads`` threads, so they
compare on a busy machine too. ``--code`` is a work tree of the older version; both run in turns, in processes of their
own, with the same ``--model``, which both must be able to open (default: random weights of the 0.5B shapes).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from random_model import CLIP, QUESTION, ROOT, make_random


def first_tokens(model_path: str, clients: int, threads: int) -> dict[str, list[float]]:
    """Seconds to each first token, in order, with the prompt's beginning cached and not."""
    import torch
    import transformers  # noqa: F401 - what is imported later takes the clock below

    # The engine takes its times from this clock.
    time.monotonic = time.process_time
    from videollama2 import model_init
    from videollama2.inference.engine import Engine
    from videollama2.inference.request import Request

    torch.set_num_threads(threads)
    model, processor, _ = model_init(model_path)
    engine = Engine(model, processor, max_batch=clients, max_length=1024, background=False)
    engine._end_ids = frozenset()  # random weights must not end an answer early

    def request(question: str, tokens: int) -> Any:
        return Request(question, [("video", str(CLIP))], max_new_tokens=tokens)

    engine.submit_request(request("Look.", 1)).result()
    seconds = {}
    for name in ("cached", "not cached"):
        if name == "not cached":
            engine.prefixes.clear()
        asked = [f"{QUESTION} Say {name} in {number} words." for number in range(2, clients + 2)]
        answers = [engine.submit_request(request(question, 2)) for question in asked]
        seconds[name] = sorted(answer.result().timings.first_token for answer in answers)
    return seconds


def run(code: Path, arguments: list[str]) -> dict[str, list[float]]:
    """Measure the package of a work tree in a process of its own."""
    command = [sys.executable, __file__, "--child", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(code), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=code, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--code", type=Path, help="a work tree of an older version")
    parser.add_argument("--model", help="a checkpoint instead of the random one")
    parser.add_argument("--clients", type=int, default=16, help="questions (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each version (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default %(default)s)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(first_tokens(args.model, args.clients, args.threads)))
        return 0
    trees = {"this version": ROOT} | ({args.code.name: args.code.resolve()} if args.code else {})
    measured: dict[str, list[dict[str, list[float]]]] = {name: [] for name in trees}
    with tempfile.TemporaryDirectory() as folder:
        model = args.model and str(Path(args.model).resolve())
        if not model:
            make_random(Path(folder))
        own = ["--model", model or folder, "--clients", str(args.clients), "--threads", str(args.threads)]
        for _ in range(args.rounds):
            for name, code in trees.items():
                measured[name].append(run(code, own))
    print(f"{args.clients} questions about one clip, processor seconds to the first token")
    print(f"{'version':20} {'beginning':12} {'first':>8} {'p50':>8} {'last':>8}")
    for name, rounds in measured.items():
        for case in ("cached", "not cached"):
            middles = [[row[case][0], statistics.median(row[case]), row[case][-1]] for row in rounds]
            cells = " ".join(f"{statistics.median(values):8.2f}" for values in zip(*middles, strict=True))
            print(f"{name:20} {case:12} {cells}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
