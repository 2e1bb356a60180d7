#!/usr/bin/env python3
"""What a training step costs, and what each optimisation saves: samples and tokens per second, peak memory.

    python benchmarks/train.py [--only tiny|0.5b|tiny-av] [--device cpu] [--steps 3] [--batch 4] [--world DIR]

Two models: the built-in ``videollama2-tiny``, and one with random weights and the shapes of CLIP ViT-L/14-336, the STC
connector and a 0.5B Qwen2 (vocabulary 152 000, 8 frames). The data are videos, images and text of the built-in world,
as much of each as in the published second stage: 13 %, 82 % and 5 %. Encoder frozen, the rest learns, float32 (bfloat16
on a GPU). Each row runs in a process of its own, so that its peak memory is its own:

    all            as train.py does it
    with a mask    the mask of what is padding reaches the decoder (published)
    images x T     every still image encoded as T frames (published), instead of once
    all logits     logits at all positions at once (published), instead of labelled ones in parts
    random order   batches of random records (no --group_by_modality_length)

and for ``videollama2-tiny-av``, on clips with sound, what hearing adds to a step:

    seen           clips without their sound
    seen and heard clips with it (--va True)
    heard          the sounds alone

TFLOP/step are the operations that a step needs, by counting weights and tokens; "of limit" is their rate as a share of
that of one large product of matrices, measured in the same process. What a row wastes is not counted as needed.

What ranks that wait for each other take at 7B shapes is counted by ``benchmarks/lock_step.py``.

Then the padding of both orders over whole epochs, and a run of ``train.py`` on the tiny model with two loader workers,
whose log says how long it waited for data. What reading annotations takes is measured by ``benchmarks/records.py``.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from limits import processor_name, product_rate, synchronize
from random_model import SHAPES, typical_config

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

_ROWS = ("all", "with a mask", "images x T", "all logits", "random order")
_ROWS_OF_SOUND = ("seen", "seen and heard", "heard")
ROWS = {"tiny": _ROWS, "0.5b": _ROWS, "tiny-av": _ROWS_OF_SOUND}
"""The models and the rows of their tables."""
SHARES = {"video": 0.13, "image": 0.82, "text": 0.05}
"""Of the published second stage: 100 000 videos, 625 000 images, 40 000 texts."""
MAX_LENGTH = 2048


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(ROWS))
    parser.add_argument("--device", default=None)
    parser.add_argument("--steps", type=int, default=3, help="measured steps; one more warms up")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--world", type=Path, help="where the data are written, kept and found again")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


# ---------------------------------------------------------------------------------------------------- data


def write_data(folder: Path) -> Path:
    """200 records of the three kinds, texts of very different lengths; returns the annotation file."""
    path = folder / "mixed.json"
    if path.is_file():
        return path
    import random

    from videollama2.shapes.sets import write_set

    counts = {kind: round(200 * share) for kind, share in SHARES.items()}
    write_set(folder, videos=counts["video"], images=counts["image"], seed=5, questions_per_item=3, mcq_fraction=0.0)
    rows = json.loads((folder / "train.json").read_text())
    draw = random.Random(0)
    words = ["red", "blue", "circle", "square", "moves", "left", "right", "up", "down", "appears", "turns", "stops"]
    for row in rows:
        # Answers of conversation data are long and differ by an order of magnitude.
        row["conversations"][1]["value"] += " " + " ".join(draw.choices(words, k=int(draw.lognormvariate(4, 0.8))))
    for number in range(counts["text"]):
        answer = " ".join(draw.choices(words, k=int(draw.lognormvariate(4.5, 0.8))))
        turns = [{"from": "human", "value": "Tell me of shapes."}, {"from": "gpt", "value": answer}]
        rows.append({"id": f"text-{number}", "conversations": turns})
    path.write_text(json.dumps(rows))
    return path


def sounding_records(folder: Path, row: str) -> list[Any]:
    """Records of 100 clips with sound, as the row of a table has them."""
    from videollama2.data.records import read_records
    from videollama2.shapes.sets import write_set

    # Clips whose sound nothing explains: there is a record about the sound alone for nearly every one.
    write_set(folder / "heard", videos=100, seed=6, questions_per_item=3, mcq_fraction=0, sound=True, own_stories=0)
    file = folder / "heard" / ("sounds.json" if row == "heard" else "train.json")
    return read_records([file], va=[row == "seen and heard"])


def load(name: str) -> tuple[Any, Any]:
    """Model and processor; the large one has random weights and the tiny one's tokenizer."""
    import torch

    from videollama2.checkpoints import load_checkpoint
    from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
    from videollama2.processing import VideoLlama2Processor, load_image_processor

    built_in = "videollama2-tiny" if name == "0.5b" else f"videollama2-{name}"
    tiny, processor = load_checkpoint(built_in, dtype=torch.float32)
    if name != "0.5b":
        return tiny, processor
    config = typical_config(SHAPES["0.5b"])
    with tempfile.TemporaryDirectory() as nowhere:  # no preprocessor_config.json: the encoder's published one
        images = load_image_processor(nowhere, config)
    return VideoLlama2ForConditionalGeneration(config), VideoLlama2Processor(images, processor.tokenizer, config)


def batches(name: str, row: str, args: argparse.Namespace, processor: Any) -> list[dict[str, Any]]:
    """The micro-batches of the measured steps: from the middle of an epoch, so that none is incomplete."""
    from videollama2.data.collator import TrainingCollator
    from videollama2.data.dataset import VideoInstructionDataset
    from videollama2.data.order.sampler import MixtureSampler
    from videollama2.data.records import read_records

    is_heard = row in _ROWS_OF_SOUND
    records = sounding_records(args.world, row) if is_heard else read_records([write_data(args.world)])
    data = VideoInstructionDataset(records, processor, MAX_LENGTH)
    order = list(MixtureSampler([len(data)]) if row == "random order" else grouped(data, args.batch))
    collate = TrainingCollator(processor.pad_token_id)
    whole = [order[i : i + args.batch] for i in range(0, len(order) - args.batch, args.batch)]
    step = max(len(whole) // (args.steps + 1), 1)
    return [collate([data[i] for i in group]) for group in whole[::step][: args.steps + 1]]


def grouped(data: Any, batch: int) -> Any:
    from videollama2.data.order.sampler import ModalityLengthSampler

    return ModalityLengthSampler(data.lengths, [length > 0 for length in data.media_lengths], batch)


# ---------------------------------------------------------------------------------------------------- steps


def images_as_videos(batch: dict[str, Any], config: Any) -> dict[str, Any]:
    """Every still image as ``num_frames`` equal frames, in reading order among the videos."""
    import torch

    if "pixel_values" not in batch:
        return batch
    images = iter(batch["pixel_values"])
    videos = iter(batch.get("pixel_values_videos", ()))
    media = []
    for ids_L in batch["input_ids"]:
        # One record holds one medium here.
        if (ids_L == config.image_token_id).any():
            media.append(next(images).unsqueeze(0).expand(config.num_frames, -1, -1, -1))
        elif (ids_L == config.video_token_id).any():
            media.append(next(videos))
    ids_BL = batch["input_ids"].masked_fill(batch["input_ids"] == config.image_token_id, config.video_token_id)
    rest = {key: value for key, value in batch.items() if key != "pixel_values"}
    return {**rest, "input_ids": ids_BL, "pixel_values_videos": torch.stack(media)}


def loss_of_all_logits(model: Any, batch: dict[str, Any]) -> Any:
    """Logits at every position, kept for the backward pass."""
    from torch.nn import functional as F  # noqa: N812 - the field's name for it

    labels_BL = batch.pop("labels")
    logits_BLV = model.lm_head(model.model(**batch).last_hidden_state).float()
    return F.cross_entropy(logits_BLV[:, :-1].flatten(0, 1), labels_BL[:, 1:].flatten())


def measure(name: str, row: str, args: argparse.Namespace) -> dict[str, float]:
    """One row of the table."""
    import torch

    from videollama2.checkpoints import default_device
    from videollama2.training.reports.meter import Meter, peak_memory

    torch.manual_seed(0)
    device = torch.device(args.device or default_device())
    model, processor = load(name)
    for tower in (model.model.vision_tower, model.model.audio_tower):
        if tower is not None:
            tower.requires_grad_(False)
    model.to(device).train()
    prepared = batches(name, row, args, processor)
    meter = Meter(model)
    for batch in prepared[1:]:
        meter.add(batch)  # before anything is wasted
    if row == "images x T":
        prepared = [images_as_videos(batch, model.config) for batch in prepared]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    loss_of: Callable[..., Any] = loss_of_all_logits if row == "all logits" else lambda m, b: m(**b).loss
    samples = tokens = padding = 0
    begin = 0.0
    for number, batch in enumerate(prepared):
        if number == 1:
            synchronize()
            begin = time.perf_counter()
        if number:
            samples += len(batch["input_ids"])
            tokens += int(batch["attention_mask"].sum())
            padding += int((batch["attention_mask"] == 0).sum())
        if row != "with a mask":
            del batch["attention_mask"]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = loss_of(model, {key: value.to(device) for key, value in batch.items()})
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    synchronize()
    seconds = time.perf_counter() - begin
    needed = meter.flops.of_step(meter.counts)
    limit = product_rate(torch, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    return {
        "samples/s": samples / seconds,
        "tokens/s": tokens / seconds,
        "s/step": seconds / (len(prepared) - 1),
        "padding": padding / (padding + tokens),
        "peak GB": peak_memory(device) / 1e9,
        "TFLOP/step": needed / (len(prepared) - 1) / 1e12,
        "of limit": needed / seconds / limit,
    }


# ---------------------------------------------------------------------------------------------- other tables


def padding_of_orders(args: argparse.Namespace) -> dict[str, float]:
    """Share of padding over whole epochs, random and grouped."""
    from videollama2.data.dataset import VideoInstructionDataset
    from videollama2.data.order.sampler import MixtureSampler
    from videollama2.data.records import read_records

    _, processor = load("tiny")
    data = VideoInstructionDataset(read_records([write_data(args.world)]), processor, MAX_LENGTH)
    shares = {}
    for name, order in (("random", MixtureSampler([len(data)])), ("grouped", grouped(data, args.batch))):
        ids = list(order)
        groups = [[data.lengths[i] for i in ids[k : k + args.batch]] for k in range(0, len(ids), args.batch)]
        whole = sum(max(group) * len(group) for group in groups)
        shares[name] = 1 - sum(map(sum, groups)) / whole
    return shares


def data_wait(args: argparse.Namespace) -> float:
    """Share of the time of ``train.py`` spent waiting for data, two workers, after the first lines."""
    from videollama2.shapes.parts import main as write_parts

    parts, out = args.world / "parts", args.world / "run"
    if not (parts / "mm_projector.bin").is_file():
        # What the weights are does not matter to how long a step takes.
        write_parts(["--out", str(parts), "--encoder-steps", "1", "--connector-steps", "1"])
    command = [
        sys.executable,
        "-m",
        "videollama2.train",
        "--model_path",
        str(parts / "llm"),
        "--vision_tower",
        str(parts / "clip"),
        "--mm_projector_type",
        "stc_connector_v35",
        "--data_path",
        str(write_data(args.world)),
        "--num_frames",
        "8",
        "--model_max_length",
        "512",
        "--output_dir",
        str(out),
        "--max_steps",
        "40",
        "--per_device_train_batch_size",
        "8",
        "--logging_steps",
        "10",
        "--dataloader_num_workers",
        "2",
        "--save_strategy",
        "no",
        "--report_to",
        "none",
        "--disable_tqdm",
        "True",
    ]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    shares = [line["data_wait_share"] for line in history if "data_wait_share" in line]
    return sum(shares[1:]) / len(shares[1:])


def table(name: str, args: argparse.Namespace) -> None:
    print(f"\n{name}: batches of {args.batch}, {args.steps} steps")
    print(
        f"  {'':<14}{'s/step':>9}{'samples/s':>11}{'tokens/s':>10}{'padding':>9}{'peak GB':>9}"
        f"{'TFLOP/step':>12}{'of limit':>10}"
    )
    for row in ROWS[name]:
        command = [
            sys.executable,
            __file__,
            "--child",
            name,
            row,
            "--steps",
            str(args.steps),
            "--batch",
            str(args.batch),
            "--world",
            str(args.world),
        ]
        command += ["--device", args.device] if args.device else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = next(iter(done.stderr.strip().splitlines()[-1:]), f"ended by signal {-done.returncode}")
            print(f"  {row:<14} failed: {reason}", flush=True)
            continue
        r = json.loads(done.stdout.splitlines()[-1])
        print(
            f"  {row:<14}{r['s/step']:>9.3f}{r['samples/s']:>11.2f}{r['tokens/s']:>10.0f}"
            f"{r['padding']:>9.1%}{r['peak GB']:>9.2f}{r['TFLOP/step']:>12.3f}{r['of limit']:>10.1%}",
            flush=True,
        )


def main() -> int:
    args = parse()
    if args.child:
        name, row = args.child
        print(json.dumps(measure(name, row, args)))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        args.world = args.world or Path(scratch)
        write_data(args.world)
        print(processor_name())
        for name in ROWS if args.only is None else (args.only,):
            table(name, args)
        shares = padding_of_orders(args)
        print(f"\npadding over an epoch: random order {shares['random']:.1%}, grouped {shares['grouped']:.1%}")
        waited = data_wait(args)
        print(f"waiting for data, two workers, train.py on the tiny world: {waited:.1%} of the time")
    kept, fed = shares["grouped"] <= 0.5 * shares["random"], waited < 0.1
    print(f"grouping removes at least half of the padding: {'yes' if kept else 'NO'}")
    print(f"less than a tenth of the time is spent waiting for data: {'yes' if fed else 'NO'}")
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(f"largest process: {memory / 1e6:.2f} GB resident")
    return 0 if kept and fed else 1


if __name__ == "__main__":
    sys.exit(main())
