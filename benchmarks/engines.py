#!/usr/bin/env python3
"""The own engine and vLLM side by side: the same folder, the same requests, in turns, and the ratio of each row.

    python benchmarks/engines.py --vllm-python VENV/bin/python [--model FOLDER] [--shape tiny|0.5b] [--new-tokens 32]

``--vllm-python`` is an interpreter that imports vLLM; this package reaches it through ``PYTHONPATH``. Both engines stay
open and get each load in turn, so that a slow minute of the machine slows both. Loads are one request and
``--concurrent`` ones, about no clip, one clip that both know, and clips that neither knows. All answers have
``--new-tokens`` tokens in float32, greedy, with prefill and media included.

Seconds are those of the wall, and processor seconds of the engine with all its processes, which a busy machine
distorts less. Both compute on ``--threads`` threads. vLLM's scheduler is one more process, which waits in a loop while
its worker computes, and so counts as a second core, and for up to a second afterwards: there is a pause between turns.
A ratio above 1 says that the own engine is faster. The last column is the share of answers with equal tokens.
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from limits import processor_name
from random_model import CLIP, ROOT, SHAPES, make_random

MARK = "engines.py: "
"""The beginning of a line of a child that holds a result: vLLM's processes print to the same stream."""

FRAME_S, CLIP_S = 1 / 12, 2.0
LOADS = ("text", "known clip", "new clips")
SECONDS = ("wall", "processor")
PAUSE_S = 2.0
"""Between two turns: vLLM's processes wait in a loop for up to a second after an answer, on the cores of the other."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", help="an interpreter that has vLLM")
    parser.add_argument("--model", help="a folder, instead of a model of --shape")
    parser.add_argument("--shape", choices=("tiny", *SHAPES), default="0.5b")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--concurrent", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=LOADS)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--pack-weights",
        action=argparse.BooleanOptionalAction,
        help="whether the own engine packs its weights, as vLLM does (default: as a worker chooses)",
    )
    parser.add_argument("--child", choices=("own", "vllm"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not (args.vllm_python or args.child):
        parser.error("--vllm-python is missing: the interpreter that has vLLM")
    return args


# ------------------------------------------------------------------------------------------------------ one engine


class Asked:
    """The requests of a load; new clips differ in their first and last frame."""

    def __init__(self) -> None:
        self.unseen = 0

    def questions(self, load: str, count: int) -> list[tuple[str, list[dict[str, Any]]]]:
        made = []
        for number in range(count):
            part: dict[str, Any] = {"type": "video", "path": str(CLIP)}
            if load == "new clips":
                late, early = self.unseen % 10, self.unseen // 10
                part.update(start=late * FRAME_S, end=CLIP_S - (early + 1) * FRAME_S)
                self.unseen += 1
            made.append((f"How many objects are there in second {number}?", [] if load == "text" else [part]))
        return made


def open_engine(args: argparse.Namespace) -> Any:
    if args.child == "vllm":
        from videollama2.engines.vllm.engine import VllmEngine

        options = {"dtype": "float32", "enforce_eager": True}
        return VllmEngine(args.model, max_batch=args.concurrent, max_length=1024, **options)
    import torch

    from videollama2 import Engine, model_init

    torch.set_num_threads(args.threads)
    model, processor, _ = model_init(args.model, dtype="float32", device="cpu")
    return Engine(model, processor, max_batch=args.concurrent, max_length=1024, packed_weights=args.pack_weights)


def processor_seconds() -> float:
    """Of this process and those that it started."""
    import psutil

    own = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in [own, *own.children(recursive=True)])


def child(args: argparse.Namespace) -> None:
    """Answer loads that are named on the standard input, one a line, until it ends."""
    engine, asked = open_engine(args), Asked()
    fixed = {"max_new_tokens": args.new_tokens, "min_new_tokens": args.new_tokens}
    print(MARK + "{}", flush=True)
    for line in sys.stdin:
        load, count = json.loads(line)
        questions = asked.questions(load, count)
        wall, processor = time.perf_counter(), processor_seconds()
        answers = [engine.submit(question, media, **fixed) for question, media in questions]
        results = [answer.result() for answer in answers]
        failed = next((result.error for result in results if result.error is not None), None)
        found = {
            "wall": time.perf_counter() - wall,
            "processor": processor_seconds() - processor,
            "tokens": [list(result.token_ids) for result in results],
            "error": None if failed is None else str(failed),
        }
        print(MARK + json.dumps(found), flush=True)
    engine.close()


# ------------------------------------------------------------------------------------------------------ both engines


class Other:
    """An engine in a process of its own."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self.name, self.process = name, process

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(MARK):
                found: dict[str, Any] = json.loads(line[len(MARK) :])
                if found.get("error"):
                    sys.exit(f"engines.py: {self.name}: {found['error']}")
                return found
        sys.exit(f"engines.py: the process of {self.name} ended, see above")

    def run(self, load: str, count: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        time.sleep(PAUSE_S)
        self.process.stdin.write(json.dumps([load, count]) + "\n")
        self.process.stdin.flush()
        return self.read()


@contextmanager
def opened(name: str, python: str, args: argparse.Namespace) -> Iterator[Other]:
    """Start an engine; it is ready when the block begins, and has ended when it is left."""
    command = [python, __file__, "--child", name, "--model", args.model, "--new-tokens", str(args.new_tokens)]
    command += ["--concurrent", str(args.concurrent), "--threads", str(args.threads)]
    if args.pack_weights is not None:
        command.append("--pack-weights" if args.pack_weights else "--no-pack-weights")
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    fixed = {"OMP_NUM_THREADS": str(args.threads), "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "1"}
    # Left to itself, vLLM computes on all cores of a memory node but one, whatever OMP_NUM_THREADS says.
    fixed["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, sorted(os.sched_getaffinity(0))[: args.threads]))
    environment = {**os.environ, **fixed, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        other = Other(name, process)
        other.read()
        yield other
    finally:
        assert process.stdin is not None
        process.stdin.close()  # the child closes its engine
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def compare(args: argparse.Namespace) -> None:
    own_python = sys.executable
    with opened("own", own_python, args) as own, opened("vllm", args.vllm_python, args) as vllm:
        print(
            f"{'load':12} {'requests':>8} {'own, s':>8} {'vLLM, s':>8} {'ratio':>7} {'of processor':>13} {'equal':>7}"
        )
        for load in args.loads:
            for count in (1, args.concurrent):
                row(load, count, own, vllm, args.repeat)


def row(load: str, count: int, own: Other, vllm: Other, repeat: int) -> None:
    """Print one line: the medians of both, and the ratios of each round's."""
    if load != "new clips":
        for other in (own, vllm):  # from here on, the clip is known
            other.run(load, count)
    rounds = [(own.run(load, count), vllm.run(load, count)) for _ in range(repeat)]
    seconds = [statistics.median(found["wall"] for found in side) for side in zip(*rounds, strict=True)]
    ratios = {kind: statistics.median(b[kind] / max(a[kind], 1e-9) for a, b in rounds) for kind in SECONDS}
    pairs = [pair for a, b in rounds for pair in zip(a["tokens"], b["tokens"], strict=True)]
    equal = sum(a == b for a, b in pairs) / len(pairs)
    print(
        f"{load:12} {count:8} {seconds[0]:8.2f} {seconds[1]:8.2f} {ratios['wall']:6.2f}x {ratios['processor']:12.2f}x "
        f"{equal:7.0%}",
        flush=True,
    )


def main() -> None:
    args = parse()
    if args.child:
        child(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        if not args.model and args.shape != "tiny":
            print("building the random model ...", file=sys.stderr)
            make_random(Path(folder), args.shape)
        args.model = args.model or (folder if args.shape != "tiny" else "videollama2-tiny")
        print(processor_name())
        print(f"{args.model if args.shape != 'tiny' else 'tiny'}: answers of {args.new_tokens} tokens, float32")
        compare(args)


if __name__ == "__main__":
    main()
