#!/usr/bin/env python3
"""Training of this package and of the published VideoLLaMA2 code side by side on a CPU: forward and backward passes.

    python benchmarks/train_against_published.py WORKTREE --python PYTHON [--layers 6] [--rounds 2] [--steps 3]

``WORKTREE`` and ``PYTHON`` are those of ``against_published.py``; ``published_code.py`` says what is changed in memory
so that the published code runs on a CPU. Both sides read the same weights (random, the shapes of a 0.5B Qwen2, CLIP
ViT-L/14-336 and the STC connector, with ``--layers`` layers in decoder and encoder; 24 are the whole) and the same
records: videos, images and texts of the built-in world, as many of each as in the README's second stage (100 K, 625 K
and 40 K), in the same batches. Each reads them with its own data set and collator. The encoder is frozen, the rest
learns, in float32, and nothing is recomputed. There is no optimizer: it would do the same on both sides.

Every round starts a new process for each side, in turns. In each, one batch warms up and ``--steps`` are measured. A
ratio is how many times longer the published code takes, the median over the rounds; for memory, the share of what the
process takes beyond what it had before the first batch. The losses of both sides are compared. Exit code 1: they differ
by more than 1e-4 of their value. ``--smoke`` takes the built-in model.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from evaluate import in_turns
from published_code import (
    OWN,
    PUBLISHED,
    Clock,
    Rounds,
    Row,
    add_sides,
    lines_of,
    open_side,
    peak_bytes,
    resident_bytes,
    run_comparison,
    run_side,
)

STAGES = ("data", "forward", "backward", "forward and backward")
"""Of all measured steps. Data: reading the records and collating them."""
GOALS = {6: (3.8, 0.45), 24: (1.7, None)}
"""By number of layers: times that the published code takes longer, and this package's share of its memory."""
TOLERANCE = 1e-4
MAX_LENGTH = 2048


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, help="measured batches; one more warms up")
    parser.add_argument("--batch", type=int, default=2, help="records of a batch (default %(default)s)")
    parser.add_argument("--data", type=Path, help="where the records are written, kept and found again")
    return add_sides(parser, 2, 6, arguments)


# ------------------------------------------------------------------------------------------------------ one side


def child(side: str, dtype: str, args: argparse.Namespace) -> dict[str, Any]:
    """One round of a side, in this process."""
    open_side(side, args, dtype)
    import torch

    torch.manual_seed(0)
    model, batch_of = (published if side == PUBLISHED else own)(args)
    model.train()
    for name, weight in model.named_parameters():
        weight.requires_grad_("vision_tower" not in name)
    records = len(json.loads((args.data / "mix.json").read_text(encoding="utf-8")))
    groups = [list(range(i, i + args.batch)) for i in range(0, records, args.batch)]
    clocks, losses, start = [], [], resident_bytes()
    for group in groups:
        clock = Clock()
        with clock.stage("data"):
            batch = batch_of(group)
        with clock.stage("forward and backward"):
            with clock.stage("forward"):
                loss = model(**batch).loss
            with clock.stage("backward"):
                loss.backward()
        model.zero_grad(set_to_none=True)
        losses.append(float(loss))
        clocks.append(clock)
    measured = clocks[1:]
    sums = {
        kind: {name: sum(getattr(each, kind)[name] for each in measured) for name in STAGES}
        for kind in ("wall", "processor")
    }
    return {**sums, "memory": peak_bytes() - start, "losses": losses}


def published(args: argparse.Namespace) -> tuple[Any, Callable[[list[int]], Any]]:
    """Return the published model, and how its data set and collator make a batch of records."""
    from transformers import AutoTokenizer

    code, models = (importlib.import_module(f"videollama2.{name}") for name in ("train", "model"))
    model = models.VLLMs["videollama2_qwen2"].from_pretrained(str(args.model))
    model.config.use_cache = False
    tokenizer = AutoTokenizer.from_pretrained(str(args.model), model_max_length=MAX_LENGTH, padding_side="right")
    tower = model.get_vision_tower()
    file = str(args.data / "mix.json")
    options = code.DataArguments(
        data_path=[file], data_folder=str(args.data), is_multimodal=True, image_aspect_ratio="pad"
    )
    # As its train() adds them to the parsed arguments.
    more = {"image_processor": tower.image_processor, "video_processor": tower.image_processor}
    options = SimpleNamespace(**vars(options), **more, image_size=tower.image_size, is_pretraining=False)
    data = code.LazySupervisedDataset([file], tokenizer, options)
    collate = code.DataCollatorForSupervisedDataset(tokenizer=tokenizer)
    return model, lambda group: collate([data[i] for i in group])


def own(args: argparse.Namespace) -> tuple[Any, Callable[[list[int]], Any]]:
    """Return this package's model, and how its data set and collators make a batch of records."""
    import torch

    from videollama2.checkpoints import load_checkpoint
    from videollama2.data.collator import TrainingCollator
    from videollama2.data.dataset import VideoInstructionDataset
    from videollama2.data.records import read_records
    from videollama2.training.reports.meter import COUNTS, CountingCollator

    model, processor = load_checkpoint(str(args.model), dtype="float32", device_map={"": "cpu"})
    model.config.use_cache = False
    assert processor.transform is not None
    model.model.pixel_table = torch.from_numpy(processor.transform.table)  # as train.py: pixels travel as levels
    data = VideoInstructionDataset(read_records([args.data / "mix.json"]), processor, MAX_LENGTH, levels=True)
    collate = CountingCollator(TrainingCollator(processor.pad_token_id), model.config)

    def batch_of(group: list[int]) -> dict[str, Any]:
        batch = collate([data[i] for i in group])
        del batch[COUNTS]  # for the meter of the trainer
        return batch

    return model, batch_of


# ------------------------------------------------------------------------------------------------------ both sides


def mix(rows: Sequence[dict[str, Any]], count: int, shares: dict[str, float]) -> list[dict[str, Any]]:
    """Draw ``count`` records of ``rows`` in these shares, in random order: at least one video and one text."""
    kinds: dict[str, list[dict[str, Any]]] = {kind: [] for kind in shares}
    for row in rows:
        kinds[next((name for name in ("video", "image") if name in row), "text")].append(row)
    videos, texts = (max(1, round(count * shares[kind])) for kind in ("video", "text"))
    numbers = {"video": videos, "text": texts, "image": max(0, count - videos - texts)}
    draw = random.Random(0)
    mixed = [row for kind, number in numbers.items() for row in draw.sample(kinds[kind], number)]
    draw.shuffle(mixed)
    return mixed


def write_mix(folder: Path, count: int) -> None:
    """Write ``count`` records in the proportion of the README's mix into ``mix.json``, with their files."""
    from train import SHARES, write_data

    rows = json.loads(write_data(folder).read_text(encoding="utf-8"))
    (folder / "mix.json").write_text(json.dumps(mix(rows, count, SHARES)), encoding="utf-8")


def rows(published: Rounds, own: Rounds, layers: int | None) -> list[Row]:
    """Compare the rounds of both sides, pair by pair; ``layers`` choose the goals."""
    seconds, memory = GOALS.get(layers or 0, (None, None))
    found = [Row.of_seconds(name, published, own, seconds if name == STAGES[-1] else None) for name in STAGES]
    return [*found, Row.of_memory("memory above start, GiB", published, own, memory)]


def largest_difference(published: Rounds, own: Rounds) -> float:
    """Largest difference of two losses of the same batch, as a share of the published one."""
    return max(
        abs(a - b) / max(abs(a), 1e-9)
        for theirs, ours in zip(published, own, strict=True)
        for a, b in zip(theirs["losses"], ours["losses"], strict=True)
    )


def compare(args: argparse.Namespace) -> int:
    """Run all rounds and print the table; returns the exit code."""
    write_mix(args.data, args.batch * (args.steps + 1))
    print(f"{args.steps} batches of {args.batch}")
    run = partial(run_side, __file__, dtype="float32", args=args, names=("model", "data", "batch"))
    rounds = in_turns({side: partial(run, side) for side in (PUBLISHED, OWN)}, args.rounds)
    both = rounds[PUBLISHED], rounds[OWN]
    print("\n".join(lines_of(rows(*both, None if args.smoke else args.layers))))
    difference = largest_difference(*both)
    mean = statistics.mean(rounds[OWN][0]["losses"])
    print(f"  losses (mean {mean:.4f}) differ by {difference:.1e} at most")
    return 0 if difference <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(run_comparison(parse(), child, compare, aspect_ratio="pad"))
