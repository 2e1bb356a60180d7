#!/usr/bin/env python3
"""What one training step takes at real shapes: padded and packed, as a share of the rate of a large matrix product.

    python benchmarks/train_step.py --shape 7b --lora [--device cuda] [--batch 4] [--steps 2]
    python benchmarks/train_step.py --shape 0.5b [--device cuda]

The model has random weights and lives on the device from the start: CLIP ViT-L/14-336, the STC connector, a Qwen2. The
encoder is frozen; the connector learns, and of the decoder either all weights or LoRA matrices. Weights are bfloat16 on
a GPU, float32 elsewhere. Records are one clip each with texts of log-normal length (median 134 tokens, mean 200), the
same ones in both rows, without reading any file. Operations are counted by what the step needs, padding left out.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from limits import processor_name, product_rate, synchronize
from random_model import SHAPES, new_model, typical_config

MEDIAN, SIGMA, LONGEST = 134, 0.9, 1200
"""Of the lengths of texts, in tokens."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("tiny", *SHAPES), default="0.5b")
    parser.add_argument("--lora", action="store_true", help="LoRA matrices learn in the decoder, not all its weights")
    parser.add_argument("--device", default=None)
    parser.add_argument("--batch", type=int, default=4, help="records of a step")
    parser.add_argument("--steps", type=int, default=2, help="measured steps; one more warms up")
    return parser.parse_args()


def build(args: argparse.Namespace, device: Any, dtype: Any) -> Any:
    """Return the model on its device, with what learns chosen."""
    from videollama2.checkpoints import load_checkpoint
    from videollama2.training.flags.run import TrainingArguments
    from videollama2.training.model.lora import add_lora

    if args.shape == "tiny":
        model, _ = load_checkpoint("videollama2-tiny", dtype=dtype, device_map={"": str(device)})
    else:
        model = new_model(typical_config(SHAPES[args.shape]), device, dtype)
    tower, _ = model.model.eyes()
    tower.requires_grad_(False)
    if args.lora:
        add_lora(
            model, TrainingArguments(output_dir="unused", lora_enable=True, lora_r=128, lora_alpha=256, report_to=[])
        )
        model.to(device, dtype)
    return model.train()


def samples(model: Any, count: int, dtype: Any) -> list[dict[str, Any]]:
    """Return records as the data set gives them."""
    import torch

    from videollama2.constants import IGNORE_INDEX
    from videollama2.processing import media_tokens

    draw, config = random.Random(0), model.config
    side, visual = config.sight.image_size, media_tokens(config, "video")
    made = []
    for _ in range(count):
        length = min(LONGEST, max(8, round(MEDIAN * 2.718281828 ** draw.gauss(0, SIGMA))))
        text = [draw.randrange(1, config.text_config.vocab_size) for _ in range(length)]
        made.append(
            {
                "input_ids": [config.video_token_id] * visual + text,
                "labels": [IGNORE_INDEX] * (visual + length // 2) + text[length // 2 :],
                "media": [("video", torch.randn(config.num_frames, 3, side, side).to(dtype))],
            }
        )
    return made


def measure(model: Any, way: str, args: argparse.Namespace, device: Any, dtype: Any) -> dict[str, float]:
    import torch

    from videollama2.data.collator import TrainingCollator
    from videollama2.training.reports.meter import COUNTS, CountingCollator, Meter, peak_memory

    collate = CountingCollator(TrainingCollator(0), model.config)
    records = samples(model, args.batch * (args.steps + 1), dtype)
    groups = [records[i : i + args.batch] for i in range(0, len(records), args.batch)]
    batches = [collate([group] if way == "packed" else group) for group in groups]
    counts = [batch.pop(COUNTS) for batch in batches]
    slots = sum(batch["input_ids"].numel() for batch in batches[1:])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begin = 0.0
    for number, batch in enumerate(batches):
        if number == 1:
            synchronize()
            begin = time.perf_counter()
        ready = {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}
        model(**ready).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    synchronize()
    seconds = time.perf_counter() - begin
    flops = Meter(model).flops
    needed = sum(flops.of_step(count) for count in counts[1:])
    tokens = sum(count.visual_tokens + count.text_tokens for count in counts[1:])
    return {
        "s/step": seconds / args.steps,
        "tokens/s": tokens / seconds,
        "padding": 1 - tokens / slots,
        "of limit": needed / seconds / product_rate(torch, device, dtype),
        "peak GB": peak_memory(device) / 1e9,
    }


def attention(model: Any, way: str) -> str:
    """Choose the attention of a row; returns its name."""
    from videollama2.model.packed_attention import SDPA_BY_RECORD

    name = "sdpa"
    if model.device.type == "cuda":
        try:
            import flash_attn  # noqa: F401

            name = "flash_attention_2"
        except ImportError:
            pass
    if way == "packed" and name == "sdpa":
        name = SDPA_BY_RECORD
    model.model.language_model.set_attn_implementation(name)
    return name


def main() -> None:
    args = parse()
    import torch

    from videollama2.checkpoints import default_device

    device = torch.device(args.device or default_device())
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    model = build(args, device, dtype)
    learns = sum(p.numel() for p in model.parameters() if p.requires_grad)
    what = "LoRA" if args.lora else "all but the encoder"
    name = str(dtype).removeprefix("torch.")
    print(torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name())
    print(f"{args.shape} shapes on {device}, {name}; {what}: {learns / 1e6:.0f} M weights learn; {args.batch} records")
    print(f"\n{'':8}{'s/step':>9}{'tokens/s':>10}{'padding':>9}{'of limit':>10}{'peak GB':>9}  attention")
    for way in ("padded", "packed"):
        used = attention(model, way)
        row = measure(model, way, args, device, dtype)
        print(
            f"{way:8}{row['s/step']:9.3f}{row['tokens/s']:10.0f}{row['padding']:9.1%}{row['of limit']:10.1%}"
            f"{row['peak GB']:9.2f}  {used}",
            flush=True,
        )


if __name__ == "__main__":
    main()
