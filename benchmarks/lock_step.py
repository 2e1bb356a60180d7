#!/usr/bin/env python3
"""How far a training step is from its floor when ranks wait for each other: counted at 7B shapes, without weights.

    python benchmarks/lock_step.py [--records 20000] [--ranks 8] [--batch 4] [--row-tokens 4096]

Under ZeRO-3 every layer gathers its weights from all ranks, so each micro-batch takes as long as on the slowest rank.
The operations of encoder, connector and decoder are counted by running them on the meta device. The records are drawn:
13 % videos, 82 % images and 5 % text as in the published second stage, with texts of log-normal length (median 134
tokens, mean 200), cut at 2,048 tokens with media. Their order comes from the samplers that train.py uses.

Columns, each as a multiple of the floor: what all ranks compute, and what they take with the wait for the slowest one.
The floor computes every record without padding, without recomputing activations, and an image once.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from random_model import MISTRAL_7B, SHAPES, typical_config
from torch.utils.flop_counter import FlopCounterMode

from videollama2.config import VideoLlama2Config
from videollama2.data.order.sampler import MixtureSampler, ModalityLengthSampler
from videollama2.data.packing import pack_rows
from videollama2.model.connectors import tokens_of_clip
from videollama2.model.connectors.base import Shown
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration

SHARES = {"video": 0.13, "image": 0.82, "text": 0.05}
MAX_LENGTH = 2048
MEDIAN, MEAN = 134, 200

MODELS = {
    "SigLIP, 16 frames, stc_connector_v35, Qwen2-7B": typical_config(
        {**SHAPES["7b"], "vocab_size": 152064},
        mm_vision_tower="google/siglip-so400m-patch14-384",
        mm_projector_type="stc_connector_v35",
        num_frames=16,
    ),
    "CLIP, 8 frames, stc_connector, Mistral-7B": typical_config(MISTRAL_7B),
}


@dataclass(frozen=True)
class TypicalRecord:
    kind: str
    text: int
    visual: int

    @property
    def length(self) -> int:
        return self.text + self.visual


@dataclass(frozen=True)
class StepSettings:
    """How a training runs."""

    grouped: bool = True
    distinct: bool = True
    recompute: float = 0.0
    packed: bool = False


ROWS = {
    "version 0.1's scripts": StepSettings(grouped=False, distinct=False, recompute=1),
    "+ batches grouped by length": StepSettings(distinct=False, recompute=1),
    "+ distinct slices (the scripts)": StepSettings(recompute=1),
    "+ every second layer recomputed": StepSettings(recompute=0.5),
    "+ no recomputing": StepSettings(),
    "packed rows, no recomputing": StepSettings(packed=True),
}


class Costs:
    """Operations of the forward passes of one model's parts."""

    def __init__(self, config: VideoLlama2Config) -> None:
        with torch.device("meta"):
            model = VideoLlama2ForConditionalGeneration(config)
        inner, frames, side = model.model, config.num_frames, config.sight.image_size
        patches = torch.zeros(frames, config.patches_per_side**2, config.mm_hidden_size, device="meta")
        layers = inner.language_model.layers
        self.frames = frames
        self.visual = tokens_of_clip(config, frames)
        self.token = 2 * sum(p.numel() for p in layers.parameters())
        self.pair = 4 * config.text_config.num_hidden_layers * config.text_config.hidden_size / 2  # causal: half of it
        self.label = 2 * model.lm_head.weight.numel()
        self.frame = operations(inner.encode_vision, torch.zeros(1, 3, side, side, device="meta"))
        _, connector = inner.eyes()
        self.clip = operations(connector, patches, [Shown(frames, frames)])
        self.still = operations(connector, patches[:1], [Shown(1, frames)])

    def of(self, records: Sequence[TypicalRecord], length: int | None, way: StepSettings) -> float:
        """Operations of one micro-batch, forwards and backwards.

        Args:
            length: the length that all rows are padded to; None where no row is padded.
        """
        again = 3 + way.recompute  # a backward pass costs two forward ones
        total = 0.0
        for record in records:
            tokens = length or record.length
            total += again * (tokens * self.token + tokens**2 * self.pair) + 3 * record.text * self.label
            # The encoder is frozen and only runs forwards.
            if record.kind == "video":
                total += self.frames * self.frame + again * self.clip
            elif record.kind == "image":
                total += self.frame + again * (self.still if way.distinct else self.clip)
        return total


def operations(run: Any, *args: Any) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run(*args)
    return float(counter.get_total_flops())


def draw(count: int, visual: int) -> list[TypicalRecord]:
    """Return records of the mix, in no order."""
    generator = random.Random(0)
    sigma = (2 * torch.tensor(MEAN / MEDIAN).log().item()) ** 0.5
    records = []
    for kind, share in SHARES.items():
        own = visual if kind != "text" else 0
        for _ in range(round(count * share)):
            text = max(1, round(MEDIAN * 2.718281828 ** generator.gauss(0, sigma)))
            records.append(TypicalRecord(kind, min(text, MAX_LENGTH - own), own))
    return records


def micro_batches(
    records: Sequence[TypicalRecord], way: StepSettings, args: argparse.Namespace
) -> Iterable[list[TypicalRecord]]:
    """Yield micro-batches in the order in which ranks take them."""
    if way.packed:
        generator = torch.Generator().manual_seed(0)
        rows = list(pack_rows([record.length for record in records], args.row_tokens, generator))
        order = [rows[i] for i in MixtureSampler([len(rows)])]
        each = max(1, round(args.batch * sum(r.length for r in records) / len(records) / args.row_tokens))
        groups = [[i for row in order[n : n + each] for i in row] for n in range(0, len(order), each)]
    else:
        sampler: Any = MixtureSampler([len(records)])
        if way.grouped:
            lengths, visual = [r.length for r in records], [r.visual > 0 for r in records]
            sampler = ModalityLengthSampler(lengths, visual, args.batch * args.ranks)
        order = list(sampler)
        groups = [order[n : n + args.batch] for n in range(0, len(order), args.batch)]
    yield from ([records[i] for i in group] for group in groups)


def measure(
    records: Sequence[TypicalRecord], costs: Costs, way: StepSettings, args: argparse.Namespace
) -> tuple[float, float]:
    """Return the operations that all ranks compute, and those of the slowest rank times the ranks, per record."""
    each = [
        costs.of(batch, None if way.packed else max(record.length for record in batch), way)
        for batch in micro_batches(records, way, args)
    ]
    steps = [each[n : n + args.ranks] for n in range(0, len(each), args.ranks)]
    return sum(each) / len(records), sum(max(step) * args.ranks for step in steps) / len(records)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4, help="records of a rank's micro-batch")
    parser.add_argument("--row-tokens", type=int, default=4096, help="tokens of a packed row")
    args = parser.parse_args()
    for name, config in MODELS.items():
        costs = Costs(config)
        records = draw(args.records, costs.visual)
        floor = costs.of(records, None, StepSettings()) / len(records)
        print(f"\n{name}: {costs.visual} tokens a clip; floor {floor / 1e12:.1f} TFLOP a record")
        print(f"  connector on an image: {costs.still / 1e12:.3f} TFLOP, on a clip: {costs.clip / 1e12:.3f}")
        print(f"  {'':<34}{'computed':>10}{'with waiting':>14}")
        for row, way in ROWS.items():
            computed, waiting = measure(records, costs, way, args)
            print(f"  {row:<34}{computed / floor:>9.2f}x{waiting / floor:>13.2f}x", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
