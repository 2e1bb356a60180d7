#!/usr/bin/env python3
"""Whether a 7B model answers on a small machine: peak memory of ``videollama2 ask`` in 8 and in 4 bits.

    python benchmarks/large.py FOLDER [--bits 8 4] [--new-tokens 4] [--layers 32]

FOLDER gets a checkpoint with the shapes of Mistral-7B, CLIP ViT-L/14-336 and the STC connector, stored in bfloat16 as
published weights are (15 GiB), unless it holds one already. Its weights are random, and no more than half a gibibyte of
them is in memory while they are written. Then a new process answers a question about a clip of 8 frames for each of
``--bits``. Exit code 1: a peak is above 10 GiB.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from limits import processor_name
from random_model import CLIP, MISTRAL_7B, QUESTION, ROOT, typical_config
from start import run

REST_OF_MISTRAL = {
    "max_position_embeddings": 32768,
    "rope_theta": 1e6,
    "sliding_window": None,
    "tie_word_embeddings": False,
}
MOST_GIB = 10
SHARD_BYTES = 1 << 29
RANDOM_VALUES = 1 << 24
"""So many random values are drawn once; weights begin at other places among them."""


def stored_shapes(layers: int) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """Return the configuration, and the shape of every weight by the name under which it is published."""
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    from videollama2.model.modeling import VideoLlama2ForConditionalGeneration

    config = typical_config({**MISTRAL_7B, **REST_OF_MISTRAL, "num_hidden_layers": layers})
    with torch.device("meta"):
        model = VideoLlama2ForConditionalGeneration(config)
    weights = revert_weight_conversion(model, dict(model.named_parameters()))
    return config, {name: tuple(weight.shape) for name, weight in weights.items()}


def random_weights(shapes: dict[str, tuple[int, ...]], known_ids: int) -> Iterator[tuple[str, Any]]:
    """Yield a random bfloat16 tensor for every name; ids that the tokenizer does not know are never answered."""
    import torch

    values = torch.randn(RANDOM_VALUES, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    for number, (name, shape) in enumerate(shapes.items()):
        if len(shape) == 1:
            yield name, torch.full(shape, float(name.endswith("weight")), dtype=torch.bfloat16)
            continue
        size = math.prod(shape)
        weight = values.roll(number * 7919).repeat(size // RANDOM_VALUES + 1)[:size].view(shape).clone()
        if name.startswith("lm_head"):
            weight[known_ids:] = 0
        yield name, weight


def write_checkpoint(folder: Path, layers: int) -> None:
    """Write the checkpoint, one shard after the other."""
    from safetensors.torch import save_file

    from videollama2.checkpoints import load_checkpoint
    from videollama2.processing import VideoLlama2Processor, load_image_processor

    folder.mkdir(parents=True, exist_ok=True)
    config, shapes = stored_shapes(layers)
    _, tiny = load_checkpoint("videollama2-tiny")
    places: dict[str, str] = {}
    shard: dict[str, Any] = {}

    def write() -> None:
        file = folder / f"model-{len(set(places.values())) + 1:05}.safetensors"
        places.update(dict.fromkeys(shard, file.name))
        save_file(shard, file, metadata={"format": "pt"})
        shard.clear()
        with open(file, "rb") as written:  # so that the shards do not drive everything else out of the page cache
            os.fsync(written.fileno())
            os.posix_fadvise(written.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    for name, weight in random_weights(shapes, len(tiny.tokenizer)):
        if shard and sum(each.nbytes for each in shard.values()) + weight.nbytes > SHARD_BYTES:
            write()
        shard[name] = weight
    write()
    VideoLlama2Processor(load_image_processor(folder, config), tiny.tokenizer, config).save_pretrained(folder)
    config.save_pretrained(folder)
    index = {"metadata": {"total_size": 2 * sum(map(math.prod, shapes.values()))}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--bits", type=int, nargs="*", choices=(8, 4), default=[8, 4])
    parser.add_argument("--new-tokens", type=int, default=4)
    parser.add_argument("--layers", type=int, default=32, help="of the decoder (default %(default)s)")
    parser.add_argument("--write", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write:
        write_checkpoint(args.folder, args.layers)
        return 0
    if not (args.folder / "model.safetensors.index.json").is_file():
        # In a process of its own: a process counts the memory of the one that started it as its own peak.
        command = [sys.executable, __file__, str(args.folder), "--layers", str(args.layers), "--write"]
        if subprocess.run(command).returncode:
            return 1
    print(processor_name())
    print(f"{'':8} {'seconds':>8} {'processor':>10} {'GiB':>6}")
    highest = 0.0
    for bits in args.bits:
        words = ("--model-path", str(args.folder.resolve()), "--device", "cpu", f"--load-{bits}bit")
        asked = ("-m", "videollama2", "ask", str(CLIP), QUESTION, *words, "--max-new-tokens", str(args.new_tokens))
        seconds, processor, mebibytes = run(asked, ROOT)
        print(f"{bits} bits   {seconds:8.1f} {processor:10.1f} {mebibytes / 2**10:6.2f}", flush=True)
        highest = max(highest, mebibytes / 2**10)
    return 0 if highest <= MOST_GIB else 1


if __name__ == "__main__":
    sys.exit(main())
