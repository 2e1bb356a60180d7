#!/usr/bin/env python3
"""What time and memory grow with: frames, prompt, clients, clips per node, training tokens. Tables and a plot.

    python benchmarks/cost.py [--measure] [--plot docs/cost.svg] [--peak 989e12] [--bandwidth 3.35e12] [--share 0.5]

Counted: the operations of encoder, connector and decoder (CLIP, 8 frames, STC connector, Mistral-7B) over ``--share``
of the ``--peak`` operations per second of a GPU, and the bytes that a decode step reads over ``--bandwidth``; weights,
key-values and activations in bfloat16. The defaults are an H100 and half of its peak, which is an assumption.

Measured, with ``--measure``: processor seconds of the built-in model on this machine, as multiples of the first row,
beside the counted multiples of the same model. A small model grows more slowly than counted: more of its time goes into
what does not grow.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from limits import processor_name
from lock_step import MODELS, Costs, operations

from videollama2.config import VideoLlama2Config
from videollama2.constants import IGNORE_INDEX
from videollama2.inference.decoder import Decoder
from videollama2.model.connectors import tokens_of_clip
from videollama2.model.connectors.base import Shown
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration

SHAPE = "CLIP, 8 frames, stc_connector, Mistral-7B"
FRAMES = (8, 16, 32, 64, 128, 256, 512)
PROMPTS = (128, 512, 2048, 8192, 32768)
CLIENTS = (1, 2, 4, 8, 16, 32, 64)
GPUS = (1, 2, 4, 8)
TRAINING = (1e8, 1e9, 1e10)
CLIPS, TRAINING_STEPS = (1, 2, 4, 8, 16), (1, 2, 4, 8)
"""Sizes that are only measured."""
QUESTION, ANSWER = 170, 100
"""Tokens of text in a prompt, with the system text, and of a caption."""

TEXT = 0.15
"""Share of training tokens that are text and learn; the rest are visual."""

BYTES = 2
"""Of a number in bfloat16."""


@dataclass(frozen=True)
class Measurement:
    """One size, its seconds, and its bytes."""

    size: float
    seconds: float
    memory: float


class ModelCosts:
    """Operations and bytes of a model, by counting on the meta device."""

    def __init__(self, config: VideoLlama2Config) -> None:
        self.config, self.text = config, config.text_config
        with torch.device("meta"):
            self.model = VideoLlama2ForConditionalGeneration(config)
        self.costs = Costs(config)
        self.weights = sum(p.numel() for p in self.model.parameters())
        self.decoder = sum(p.numel() for p in self.model.model.language_model.layers.parameters())
        self.head = self.model.lm_head.weight.numel()
        heads = self.text.num_key_value_heads
        self.width = getattr(self.text, "head_dim", None) or self.text.hidden_size // self.text.num_attention_heads
        self.key_values = 2 * self.text.num_hidden_layers * heads * self.width * BYTES
        self.patches = config.patches_per_side**2

    def visual(self, frames: int) -> int:
        return tokens_of_clip(self.config, frames)

    def vision(self, frames: int) -> float:
        """Operations of encoder and connector."""
        features = torch.zeros(frames, self.patches, self.config.mm_hidden_size, device="meta")
        _, connector = self.model.model.eyes()
        return frames * self.costs.frame + operations(connector, features, [Shown(frames, frames)])

    def prefill(self, tokens: int) -> float:
        """Operations of a prompt: all layers, and the head at its last position."""
        return tokens * self.costs.token + tokens**2 * self.costs.pair + 2 * self.head

    def activations(self, frames: int) -> float:
        """Bytes of the largest tensors alive together: in the encoder's MLP, or in the connector's first stage."""
        vision = self.config.sight
        encoder = self.patches * (vision.hidden_size + vision.intermediate_size)
        return BYTES * frames * max(encoder, 3 * self.patches * self.text.hidden_size)

    def training_bytes(self) -> float:
        """Bytes of activations that a token of the decoder keeps for the backward pass, if nothing is recomputed."""
        hidden, inner = self.text.hidden_size, self.text.intermediate_size
        keys = self.text.num_key_value_heads * self.width
        return BYTES * self.text.num_hidden_layers * (6 * hidden + 2 * keys + 4 * inner)


class Gpu:
    """Turns operations and bytes into seconds."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.rate, self.bandwidth = args.share * args.peak, args.bandwidth

    def computes(self, count: float) -> float:
        return count / self.rate

    def step(self, model: ModelCosts, rows: int, positions: int) -> float:
        """Seconds of a decode step: what is slower, reading the weights and key-values or computing."""
        read = BYTES * (model.decoder + model.head) + rows * positions * model.key_values
        count = rows * (model.costs.token + 2 * model.head + 2 * positions * model.costs.pair)
        return max(read / self.bandwidth, self.computes(count))


def caption_seconds(model: ModelCosts, gpu: Gpu, batch: int = 64) -> float:
    """GPU seconds of a caption of one clip, decoded in batches."""
    prompt = model.visual(model.config.num_frames) + QUESTION
    before = model.vision(model.config.num_frames) + model.prefill(prompt)
    return gpu.computes(before) + ANSWER * gpu.step(model, batch, prompt + ANSWER // 2) / batch


def counted(model: ModelCosts, gpu: Gpu) -> dict[str, list[Measurement]]:
    """Seconds and bytes of every size."""
    weights, prompt = BYTES * model.weights, model.visual(model.config.num_frames) + QUESTION
    tables: dict[str, list[Measurement]] = {}
    tables["frames of a clip (to the first token)"] = [
        Measurement(
            frames,
            gpu.computes(model.vision(frames) + model.prefill(model.visual(frames) + QUESTION)),
            weights + (model.visual(frames) + QUESTION) * model.key_values + model.activations(frames),
        )
        for frames in FRAMES
    ]
    tables["tokens of a prompt (to the first token)"] = [
        Measurement(tokens, gpu.computes(model.prefill(tokens)), weights + tokens * model.key_values)
        for tokens in PROMPTS
    ]
    tables["clients (a decode step of all, a clip each)"] = [
        Measurement(rows, gpu.step(model, rows, prompt), weights + rows * prompt * model.key_values) for rows in CLIENTS
    ]
    caption = caption_seconds(model, gpu)
    tables["GPUs of a node (1,000 captions of clips, memory of each)"] = [
        Measurement(count, 1000 * caption / count, weights + 64 * (prompt + ANSWER) * model.key_values)
        for count in GPUS
    ]
    tables["training tokens (all weights but the encoder's learn, memory of each of 8 ranks)"] = [
        Measurement(tokens, gpu.computes(training_operations(model, tokens)), training_memory(model))
        for tokens in TRAINING
    ]
    return tables


def training_operations(model: ModelCosts, tokens: float) -> float:
    """Operations for so many tokens in clips and their texts: forwards and twice that backwards, nothing recomputed."""
    frames = model.config.num_frames
    clips = (1 - TEXT) * tokens / model.visual(frames)
    each = model.visual(frames) / (1 - TEXT)
    decoder = tokens * (model.costs.token + each * model.costs.pair) + TEXT * tokens * 2 * model.head
    return 3 * (decoder + clips * model.costs.clip) + clips * frames * model.costs.frame


def training_memory(model: ModelCosts, ranks: int = 8, tokens: int = 4096) -> float:
    """Bytes of a rank under ZeRO-3 with AdamW in mixed precision (16 per weight), and activations of a micro-batch."""
    return 16 * model.weights / ranks + tokens * model.training_bytes()


# -------------------------------------------------------------------------------------------------------- measured


def processor_seconds(run: Callable[[], Any], repeat: int = 3) -> float:
    run()
    times = []
    for _ in range(repeat):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return statistics.median(times)


@torch.inference_mode()
def measured() -> dict[str, list[tuple[int, float, float]]]:
    """(size, processor seconds, operations) of the built-in model, for the sizes that two cores reach."""
    from videollama2 import model_init

    model, _, _ = model_init("videollama2-tiny", device="cpu")
    formulas = ModelCosts(model.config)
    side, hidden = model.config.sight.image_size, model.config.text_config.hidden_size
    tables: dict[str, list[tuple[int, float, float]]] = {"frames": [], "prompt": []}
    width = tokens_of_clip(model.config, 8) + QUESTION
    for frames in FRAMES:
        pixels_TCHW = torch.randn(frames, 3, side, side)
        seconds = processor_seconds(lambda pixels_TCHW=pixels_TCHW: model.get_video_features(pixels_TCHW[None]))
        tables["frames"].append((frames, seconds, formulas.vision(frames)))
    for tokens in (*PROMPTS[:3], 4096):
        embeds_BLD = torch.randn(1, tokens, hidden)
        seconds = processor_seconds(lambda e=embeds_BLD: model(inputs_embeds=e, use_cache=False, logits_to_keep=1))
        tables["prompt"].append((tokens, seconds, formulas.prefill(tokens)))
    tables["clients, a decode step of all"] = [_measured_step(model, formulas, rows, width) for rows in CLIENTS]
    tables["clips, an answer about each"] = [_measured_clips(model, formulas, clips) for clips in CLIPS]
    return tables


def _measured_step(model: Any, formulas: ModelCosts, rows: int, positions: int) -> tuple[int, float, float]:
    """A decode step of so many clients, each with a clip in its key-values."""
    decoder = Decoder(model, rows, positions + 1)
    embeds_B1D = torch.randn(rows, 1, model.config.text_config.hidden_size)

    def run() -> None:
        decoder.slots.select(0, [positions] * rows, 1)
        decoder.run(embeds_B1D, masked=rows > 1, last=[0] * rows)

    count = rows * (formulas.costs.token + 2 * formulas.head + 2 * positions * formulas.costs.pair)
    return rows, processor_seconds(run, 9), count


def _measured_clips(model: Any, formulas: ModelCosts, clips: int) -> tuple[int, float, float]:
    """Answers about so many different clips, as a node is given them at once."""
    frames, side = model.config.num_frames, model.config.sight.image_size
    pixels_NTCHW = torch.randn(clips, frames, 3, side, side)
    tokens = formulas.visual(frames) + QUESTION
    embeds_BLD = torch.randn(1, tokens, model.config.text_config.hidden_size)

    def run() -> None:
        for pixels_TCHW in pixels_NTCHW:
            model.get_video_features(pixels_TCHW[None])
            model(inputs_embeds=embeds_BLD, use_cache=False, logits_to_keep=1)

    return clips, processor_seconds(run), clips * (formulas.vision(frames) + formulas.prefill(tokens))


def measured_training(steps: Sequence[int] = TRAINING_STEPS) -> list[tuple[int, float, float]]:
    """Training steps of the built-in model, all weights but the encoder's: tokens, processor seconds, operations."""
    from videollama2 import model_init

    model, _, _ = model_init("videollama2-tiny", device="cpu")
    formulas, tokens = ModelCosts(model.config), 512
    model.train()
    tower, _ = model.model.eyes()
    tower.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    embeds_BLD = torch.randn(1, tokens, model.config.text_config.hidden_size)
    labels_BL = torch.randint(0, model.config.text_config.vocab_size, (1, tokens))
    labels_BL[:, : int((1 - TEXT) * tokens)] = IGNORE_INDEX

    def run(count: int) -> None:
        for _ in range(count):
            model(inputs_embeds=embeds_BLD, labels=labels_BL, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    count = 3 * (tokens * formulas.costs.token + tokens**2 * formulas.costs.pair + TEXT * tokens * 2 * formulas.head)
    return [(n * tokens, processor_seconds(lambda n=n: run(n)), n * count) for n in steps]


# --------------------------------------------------------------------------------------------------------- printing


def _size(value: float) -> str:
    return f"{value:.0e}" if value >= 1e6 else f"{value:.0f}"


def print_counted(tables: dict[str, list[Measurement]]) -> None:
    for name, rows in tables.items():
        print(f"\n| {name} | seconds, counted | GB, counted |\n|---:|---:|---:|")
        for row in rows:
            print(f"| {_size(row.size)} | {row.seconds:,.3g} | {row.memory / 1e9:.1f} |")


def print_measured(tables: dict[str, list[tuple[int, float, float]]]) -> None:
    for name, rows in tables.items():
        print(f"\n| {name} | processor seconds, measured | of the first row | operations, of the first row |")
        print("|---:|---:|---:|---:|")
        for size, seconds, count in rows:
            print(f"| {size} | {seconds:.3f} | {seconds / rows[0][1]:.1f} | {count / rows[0][2]:.1f} |")


def plot(path: Path, tables: dict[str, list[Measurement]], timed: dict[str, list[tuple[int, float, float]]]) -> None:
    """Draw seconds above and bytes below, a column for each table; below them what was measured, if anything was."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows_of_axes = 3 if timed else 2
    figure = Figure(figsize=(3 * len(tables), 2.5 * rows_of_axes), layout="constrained")
    axes: Sequence[Sequence[Any]] = figure.subplots(rows_of_axes, len(tables))
    for column, (name, rows) in enumerate(tables.items()):
        sizes, seconds = [row.size for row in rows], [row.seconds for row in rows]
        for place, values in ((0, seconds), (1, [row.memory / 1e9 for row in rows])):
            axes[place][column].plot(sizes, values, marker="o")
            axes[place][column].set(xscale="log", ylabel=("seconds, counted", "GB, counted")[place])
            axes[place][column].minorticks_off()
            axes[place][column].set_xticks(sizes, list(map(_size, sizes)), fontsize=7)
        axes[0][column].set(yscale="log")
        axes[0][column].yaxis.set_major_formatter("{x:g}")
        axes[0][column].yaxis.set_minor_formatter("{x:g}" if max(seconds) < 10 * min(seconds) else "")
        axes[0][column].set_title(name.partition(" (")[0], fontsize=9)
        axes[1][column].set_ylim(bottom=0)
    for column, (name, rows) in enumerate(timed.items()):
        _plot_measured(axes[2][column], name, rows)
    # Text stays text, and the same numbers give the same file.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "cost"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _plot_measured(axes: Any, name: str, rows: list[tuple[int, float, float]]) -> None:
    """Draw processor seconds and operations of the built-in model as multiples of those of the first size."""
    sizes = [size for size, _, _ in rows]
    axes.plot(sizes, [seconds / rows[0][1] for _, seconds, _ in rows], marker="o", label="measured")
    axes.plot(sizes, [count / rows[0][2] for _, _, count in rows], linestyle="--", label="counted")
    axes.set(xscale="log", yscale="log", ylabel="times the first, small model")
    axes.minorticks_off()
    axes.set_xticks(sizes, list(map(_size, sizes)), fontsize=7)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title(name, fontsize=9)
    axes.legend(fontsize=7)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="also time the built-in model on this machine")
    parser.add_argument("--plot", type=Path, help="draw the tables into this file")
    parser.add_argument("--peak", type=float, default=989e12, help="operations per second (default an H100's)")
    parser.add_argument("--bandwidth", type=float, default=3.35e12, help="bytes per second (default an H100's)")
    parser.add_argument("--share", type=float, default=0.5, help="share of the peak that products reach")
    args = parser.parse_args()
    if not 0 < args.share <= 1:
        parser.error("--share must be above 0 and at most 1")
    model, gpu = ModelCosts(MODELS[SHAPE]), Gpu(args)
    print(
        f"{SHAPE}; {args.peak:.3g} operations and {args.bandwidth:.3g} bytes per second, {args.share:.0%} of the first"
    )
    tables = counted(model, gpu)
    print_counted(tables)
    hours = 1e6 * caption_seconds(model, gpu) / 3600
    print(f"\na million captions of {ANSWER} tokens: {hours:,.0f} GPU hours, counted")
    if args.measure:
        print(f"\nmeasured on {processor_name()}")
    timed = {**measured(), "training tokens": measured_training()} if args.measure else {}
    print_measured(timed)
    if args.plot:
        plot(args.plot, tables, timed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
