#!/usr/bin/env python3
"""From the start of a process to its end: ``videollama2 ask`` with the built-in model, and ``videollama2 --help``.

    python benchmarks/start.py [--repeat 5] [--code FOLDER]

Prints the least seconds and processor seconds of the runs, and the peak memory. Nearly all of an ``ask`` is the import
of torch and transformers, so rows for these imports alone stand beside it. With ``--code``, the package in that work
tree is measured in turns with this one, for comparison with an older version.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from limits import processor_name

ROOT = Path(__file__).resolve().parent.parent
CLIP = ROOT / "videollama2" / "assets" / "demo" / "moving_shapes.mp4"
ASK = ("-m", "videollama2", "ask", str(CLIP), "What colour is the circle?", "--model-path", "videollama2-tiny")
COMMANDS = {
    "videollama2 --help": ("-m", "videollama2", "--help"),
    "import torch": ("-c", "import torch"),
    "import torch, transformers' models": ("-c", "import torch, transformers.modeling_utils"),
    "videollama2 ask": ASK,
}


def run(arguments: tuple[str, ...], code: Path) -> tuple[float, float, float]:
    """Seconds, processor seconds and peak memory in MiB of one process."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.DEVNULL,
        cwd=code,
        env={**os.environ, "PYTHONPATH": str(code), "HF_HUB_OFFLINE": "1"},
    )
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"start.py: {' '.join(arguments)} failed in {code} (exit code {process.returncode})")
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / unit


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="runs of each command (default %(default)s)")
    parser.add_argument("--code", type=Path, help="a work tree of an older version")
    args = parser.parse_args()
    if args.repeat < 1:
        parser.error("--repeat must be at least 1")
    trees = {"": ROOT} | ({f" in {args.code.name}": args.code.resolve()} if args.code else {})
    print(processor_name())
    print(f"{'command':44} {'seconds':>8} {'processor':>10} {'MiB':>6}")
    for name, arguments in COMMANDS.items():
        runs: dict[str, list[tuple[float, float, float]]] = {place: [] for place in trees}
        for _ in range(args.repeat):  # in turns, so that a slow minute of the machine slows both
            for place, code in trees.items():
                runs[place].append(run(arguments, code))
        for place, measured in runs.items() if arguments[0] == "-m" else [("", runs[""])]:
            seconds, processor, memory = (min(column) for column in zip(*measured, strict=True))
            print(f"{name + place:44} {seconds:8.2f} {processor:10.2f} {memory:6.0f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
