#!/usr/bin/env python3
"""What a million records cost before the first step: processor time of a first and a second start, bytes of a rank.

    python benchmarks/records.py [--records 100000] [--limit 60]

The records are those of a second stage, 13 % videos, 82 % images and 5 % text, and name 10,000 files in turn, each of
which is opened. They are read and checked by one process, with ``--records_cache``, as ``train.py`` does it; lengths
are counted and an epoch is ordered by them. Then a second process does the same from the cache. Times are processor
times and scaled to a million; of several readings the fastest counts, since other programs make all of them slower.
The bytes of a rank are what the second process keeps for itself alone: maps of the cache are shared by all processes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from limits import processor_name

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

_FILES = 10_000
_DEMO = ROOT / "videollama2" / "assets" / "demo"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--readings", type=int, default=5)
    parser.add_argument("--limit", type=float, default=60, help="seconds of a first start that are not too many")
    return parser.parse_args()


def write_records(folder: Path, count: int) -> Path:
    """An annotation file of conversations of one to three questions; returns its path."""
    from PIL import Image

    clip, picture = folder / "clip.mp4", folder / "picture.jpg"
    shutil.copy(_DEMO / "moving_shapes.mp4", clip)
    Image.open(_DEMO / "shapes.png").convert("RGB").save(picture)
    for number in range(_FILES):
        for file in (clip, picture):
            os.link(file, folder / f"{number}{file.suffix}")
    draw = random.Random(0)
    words = ["red", "blue", "circle", "square", "moves", "left", "right", "up", "down", "appears", "turns", "stops"]
    path = folder / "records.jsonl"
    with path.open("w") as file:
        for number in range(count):
            kind = draw.choices(("video", "image", None), (0.13, 0.82, 0.05))[0]
            media = {kind: f"{number % _FILES}{clip.suffix if kind == 'video' else picture.suffix}"} if kind else {}
            turns = []
            for turn in range(draw.choice((1, 1, 2, 3))):
                tag = f"<{kind}>\n" if kind and turn == 0 else ""
                answer = " ".join(draw.choices(words, k=int(draw.lognormvariate(3.2, 0.8)) + 1))
                turns.append({"from": "human", "value": f"{tag}What can be seen in this scene?"})
                turns.append({"from": "gpt", "value": answer})
            file.write(json.dumps({"id": f"record-{number}", **media, "conversations": turns}) + "\n")
    return path


def begin(path: Path, cache: Path) -> tuple[float, float]:
    """Read records and their lengths, and order an epoch; return the processor time of reading and of the rest."""
    from videollama2.constants import TINY_MODEL_NAME
    from videollama2.data.caches.index import Index
    from videollama2.data.dataset import VideoInstructionDataset
    from videollama2.data.order.sampler import ModalityLengthSampler
    from videollama2.data.records import read_sets
    from videollama2.hub import resolve_name
    from videollama2.processing import VideoLlama2Processor

    processor = VideoLlama2Processor.from_pretrained(resolve_name(TINY_MODEL_NAME))
    start = time.process_time()
    (records,) = read_sets([path], index=Index(cache))
    read = time.process_time()
    dataset = VideoInstructionDataset(records, processor, 2048, index=Index(cache), contents=[records.content])
    visual = [length > 0 for length in dataset.media_lengths]
    next(iter(ModalityLengthSampler(dataset.lengths, visual, batch_size=128)))
    return read - start, time.process_time() - read


def first_start(path: Path, cache: Path, readings: int) -> tuple[float, float]:
    """The processor time of a first start, whose reading is the fastest of several."""
    from videollama2.data.caches.index import Index
    from videollama2.data.records import read_sets

    reading, rest = begin(path, cache)
    for number in range(1, readings):
        start = time.process_time()
        read_sets([path], index=Index(cache.with_name(f"again-{number}")))
        reading = min(reading, time.process_time() - start)
    return reading, rest


def _rank(path: Path, cache: Path, answer: multiprocessing.Queue) -> None:
    import videollama2.data.dataset  # noqa: F401 - what importing takes is no part of the data

    before = private_bytes()
    seconds = sum(begin(path, cache))
    answer.put((seconds, private_bytes() - before))


def private_bytes() -> int:
    """Bytes that this process shares with no other one."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def main() -> int:
    args = parse()
    scale = 1e6 / args.records
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path = write_records(folder, args.records)
        reading, rest = first_start(path, folder / "cache", args.readings)
        context = multiprocessing.get_context("spawn")
        answer: multiprocessing.Queue = context.Queue()
        rank = context.Process(target=_rank, args=(path, folder / "cache", answer))
        rank.start()
        again, kept = answer.get()
        rank.join()
    print(processor_name())
    print(f"{args.records:,} records, as a million of them:")
    print(
        f"  first start   {reading * scale:7.1f} s to read and check; lengths of these {args.records:,}: {rest:.1f} s"
    )
    print(f"  second start  {again * scale:7.1f} s")
    print(f"  a rank more   {kept * scale / 1e6:7.1f} MB")
    fast = reading * scale <= args.limit
    print(f"a first start reads a million records in {args.limit:g} s: {'yes' if fast else 'NO'}")
    return 0 if fast else 1


if __name__ == "__main__":
    sys.exit(main())
