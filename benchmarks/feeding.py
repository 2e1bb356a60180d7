#!/usr/bin/env python3
"""Whether reading videos is the limit beside a GPU: clips per second of the readers, the model, and both together.

    python benchmarks/feeding.py [--device cuda] [--shape tiny|0.5b|7b] [--clips 32] [--threads N] [--video clip.mp4]

Reading decodes a clip and makes pixels of it (``processor["video"]``), in as many threads as there are processors. The
model encodes it and computes its prompt. Each clip of the run is read anew, and nothing is cached. If both together are
about as fast as the model alone, reading is not the limit.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from limits import processor_name, synchronize
from random_model import CLIP, SHAPES, make_random

ENOUGH = 0.9
"""Share of the model's own rate from which reading is not called the limit."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=None)
    parser.add_argument("--shape", choices=("tiny", *SHAPES), default="0.5b")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--video", type=Path, default=CLIP, help="clip to read (default: the bundled one)")
    return parser.parse_args()


class Bench:
    """The model and what reads for it."""

    def __init__(self, path: str, args: argparse.Namespace) -> None:
        from videollama2 import model_init

        self.args = args
        self.model, self.processor, _ = model_init(path, device=args.device)

    def read(self, _: int) -> Any:
        return self.processor["video"](self.args.video, num_frames=self.model.config.num_frames)

    def answer(self, clips: Iterable[Any]) -> None:
        """Encode clips one after another, and compute a prompt of each clip's tokens."""
        for pixels_TCHW in clips:
            ready = pixels_TCHW.to(self.model.device, self.model.dtype, non_blocking=True)
            tokens_ND = self.model.get_video_features(ready[None]).pooler_output[0]
            self.model(inputs_embeds=tokens_ND[None], logits_to_keep=1, use_cache=False)

    def rate(self, run: Any) -> float:
        """Clips per second."""
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        return self.args.clips / (time.perf_counter() - start)


def measure(path: str, args: argparse.Namespace) -> dict[str, float]:
    import torch

    bench = Bench(path, args)
    numbers = range(args.clips)
    with torch.inference_mode(), ThreadPoolExecutor(args.threads) as pool:
        ready = bench.read(0)
        bench.answer([ready])
        return {
            "reading alone": bench.rate(lambda: list(pool.map(bench.read, numbers))),
            "model alone": bench.rate(lambda: bench.answer(ready for _ in numbers)),
            "both": bench.rate(lambda: bench.answer(pool.map(bench.read, numbers))),
        }


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory() as folder:
        if args.shape != "tiny":
            print("building the random model ...", file=sys.stderr)
            make_random(Path(folder), args.shape)
        rates = measure(folder if args.shape != "tiny" else "videollama2-tiny", args)
    print(processor_name())
    print(f"{args.shape}, {args.clips} clips ({args.video.name}), {args.threads} reading threads\n")
    for name, rate in rates.items():
        print(f"{name:14} {rate:8.2f} clips/s")
    share = rates["both"] / rates["model alone"]
    verdict = "not the limit" if share >= ENOUGH else "the limit, in part" if share > 0.5 else "the limit"
    print(f"\nboth / model alone: {share:.0%}: reading is {verdict}")


if __name__ == "__main__":
    main()
