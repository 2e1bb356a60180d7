#!/usr/bin/env python3
"""What hearing costs: the audio encoder against the published formulation, and an answer about a sound, stage by stage.

    python benchmarks/hear.py [--repeat 3] [--seconds 60] [--only encoder|answer]

The encoder is a BEATs of the published shape with random weights, in float32 on the CPU, and hears one clip of 30 s.
The other side is the published formulation (:func:`published_encoder`) on the same weights: its features are compared
first. Times alternate between the two sides, and each side's memory is that of a process of its own.

The answer is that of a model with this encoder, CLIP ViT-L/14-336 and a 0.5B Qwen2, all random, about a file of
``--seconds``.

Rules are checked, and a broken one makes the exit code 1: the encoder is at least 1.3 times as fast and takes at most
0.7 times the memory; decoding the file takes less than 5 % of the answer's time; a second question about the same sound
has its first token at least 10 times sooner.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from limits import processor_name

PARTS = ("encoder", "answer")
SPEED, MEMORY, DECODING, SOONER = 1.3, 0.7, 0.05, 10.0
"""The limits of the rules, see the module."""
FRAMES, BINS = 2998, 128
NEW_TOKENS = 32


def published_encoder(model: Any) -> Callable[[Any], Any]:
    """Return the published formulation of an encoder's forward pass, on the weights of ``model``.

    The buckets of all pairs of tokens are computed as a matrix, the biases of all heads are looked up for it, and every
    layer multiplies them by its gates and adds them to its scores. The scores are those of scaled queries; their row
    maximum is subtracted before they are scaled back. Probabilities are multiplied by the values as they are.
    """
    import torch
    from torch.nn import functional as F  # noqa: N812 - the field's name for it

    from videollama2.model.encoders.beats import distance_buckets

    shrink = 32

    def attend(layer: Any, hidden_BLD: Any, bias_HLL: Any) -> Any:
        attention = layer.self_attn
        batch, length, width = hidden_BLD.shape
        heads = attention.heads

        def split(projected_BLD: Any) -> Any:
            return projected_BLD.view(batch, length, heads, -1).transpose(1, 2).reshape(batch * heads, length, -1)

        query_NLW, key_NLW, value_NLW = (
            split(proj(hidden_BLD)) for proj in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        scale = query_NLW.shape[-1] ** -0.5 / shrink
        scores_NLL = torch.bmm(query_NLW * scale, key_NLW.transpose(1, 2))
        scores_NLL = (scores_NLL - scores_NLL.max(dim=-1, keepdim=True)[0]) * shrink
        gate_BHL1 = attention.gate(query_NLW.view(batch, heads, length, -1))
        gated_NLL = gate_BHL1.view(batch * heads, -1, 1) * bias_HLL.repeat(batch, 1, 1)
        weights_NLL = F.softmax((scores_NLL + gated_NLL).float(), dim=-1).type_as(scores_NLL)
        mixed_NLW = torch.bmm(F.dropout(weights_NLL, 0.0, False), value_NLW)
        return attention.out_proj(
            mixed_NLW.view(batch, heads, length, -1).transpose(1, 2).reshape(batch, length, width)
        )

    def encode(fbank_BTF: Any) -> Any:
        encoder = model.encoder
        hidden_BLD = model.layer_norm(model.embed_patches(fbank_BTF))
        if model.post_extract_proj is not None:
            hidden_BLD = model.post_extract_proj(hidden_BLD)
        hidden_BLD = encoder.layer_norm(hidden_BLD + encoder.pos_conv[0](hidden_BLD))
        places_L = torch.arange(hidden_BLD.shape[1])
        buckets_LL = distance_buckets(places_L[None] - places_L[:, None], encoder.num_buckets, encoder.max_distance)
        bias_HLL = encoder.layers[0].self_attn.relative_attention_bias(buckets_LL).permute(2, 0, 1)
        for layer in encoder.layers:
            branch_BLD = attend(layer, hidden_BLD, bias_HLL)
            hidden_BLD = layer.self_attn_layer_norm(hidden_BLD * layer.residual_scale + branch_BLD)
            branch_BLD = layer.fc2(F.gelu(layer.fc1(hidden_BLD).float()).type_as(hidden_BLD))
            hidden_BLD = layer.final_layer_norm(hidden_BLD * layer.residual_scale + branch_BLD)
        return hidden_BLD

    return encode


def _encoder() -> tuple[Any, Any, dict[str, Callable[[Any], Any]]]:
    """Return the encoder, one filter bank, and both sides by name."""
    import torch

    from videollama2.audio_config import AudioConfig
    from videollama2.model.encoders.beats import BeatsModel

    torch.manual_seed(0)
    model = BeatsModel(AudioConfig()).eval()
    fbank_BTF = torch.randn(1, FRAMES, BINS) * 6 + 15
    return model, fbank_BTF, {"published": published_encoder(model), "ours": lambda x: model(x).last_hidden_state}


def _peak() -> float:
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def measure_memory(side: str) -> dict[str, float]:
    """MiB that one pass of a side takes beyond what the loaded encoder takes."""
    import torch

    _, fbank_BTF, sides = _encoder()
    with torch.inference_mode():
        sides[side](fbank_BTF[:, :160])  # what the libraries set up on their first call
        before = _peak()
        sides[side](fbank_BTF)
    return {"before": before, "peak": _peak()}


def measure_encoder(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both sides, in turns, and how far their features differ."""
    import torch

    _, fbank_BTF, sides = _encoder()
    spans: dict[str, list[float]] = {name: [] for name in sides}
    with torch.inference_mode():
        first, second = (run(fbank_BTF) for run in sides.values())
        for _ in range(args.repeat):
            for name, run in sides.items():
                start = time.perf_counter()
                run(fbank_BTF)
                spans[name].append(time.perf_counter() - start)
    seconds = {name: statistics.median(values) for name, values in spans.items()}
    return {**seconds, "difference": (first - second).abs().max().item(), "threads": torch.get_num_threads()}


def _write_sound(path: Path, seconds: float) -> None:
    """Write a sweep over noise as AAC, 44.1 kHz stereo."""
    import av
    import numpy as np

    rate = 44_100
    time_S = np.arange(round(seconds * rate)) / rate
    tone_S = 0.3 * np.sin(2 * np.pi * (200 + 20 * time_S) * time_S)
    noise_CS = np.random.default_rng(0).normal(0, 0.01, (2, len(tone_S)))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=rate, layout="stereo")
        frame = av.AudioFrame.from_ndarray((tone_S + noise_CS).astype(np.float32), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = rate, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def measure_answer(folder: str, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each stage of an answer about a file, and of first tokens."""
    from transformers.utils import logging

    from videollama2 import mm_infer, model_init
    from videollama2.inference.api import media_cache, prefix_cache
    from videollama2.media.audio import read_sound, sound_features

    logging.disable_progress_bar()
    path = Path(folder) / "sound.m4a"
    _write_sound(path, args.seconds)
    model, processor, tokenizer = model_init(folder, device="cpu", dtype="float32")

    def forget() -> None:
        media_cache(model).clear()
        prefix_cache(model).clear()

    def ask(question: str, tokens: int) -> None:
        mm_infer(processor["audio"](path), question, model, tokenizer, modal="audio", max_new_tokens=tokens)

    def median(run: Callable[[], Any], before: Callable[[], None] = lambda: None) -> float:
        spans = []
        for _ in range(args.repeat):
            before()
            start = time.perf_counter()
            run()
            spans.append(time.perf_counter() - start)
        return statistics.median(spans)

    ask("Is this the first sound?", 1)
    questions = (f"What is heard in second {number}?" for number in range(10**6))
    sound = read_sound(path)
    return {
        "decode": median(lambda: read_sound(path)),
        "filter bank": median(lambda: sound_features(sound, model.config.hearing)),
        "answer": median(lambda: ask("What is heard?", NEW_TOKENS), forget),
        "first token": median(lambda: ask("What is heard?", 1), forget),
        "second token": median(lambda: ask(next(questions), 1)),
    }


def rules(row: dict[str, Any]) -> list[tuple[bool, str]]:
    """What must hold of what was measured."""
    found = []
    if "ours" in row:
        speed, memory = row["published"] / row["ours"], row["memory ours"] / row["memory published"]
        found += [
            (row["difference"] < 1e-3, f"largest difference of a feature {row['difference']:.1e} (below 1e-3)"),
            (speed >= SPEED, f"speed of the encoder {speed:.2f} times that of the published one (at least {SPEED})"),
            (memory <= MEMORY, f"memory of a pass {memory:.2f} of that of the published one (at most {MEMORY})"),
        ]
    if "answer" in row:
        share, sooner = row["decode"] / row["answer"], row["first token"] / row["second token"]
        found += [
            (share < DECODING, f"decoding the sound takes {share:.1%} of an answer (less than {DECODING:.0%})"),
            (sooner >= SOONER, f"a second question is answered {sooner:.0f} times sooner (at least {SOONER:.0f})"),
        ]
    return found


def table(row: dict[str, Any], seconds: float) -> str:
    """The measurements as lines."""
    lines = []
    if "ours" in row:
        lines.append(f"BEATs of the published shape, one clip of 30 s, float32, {row['threads']} threads")
        for side in ("published", "ours"):
            lines.append(f"  {side:<24}{row[side]:>9.3f} s{row[f'memory {side}']:>10.0f} MiB of a pass")
    if "answer" in row:
        lines.append(f"0.5B model, a file of {seconds:g} s, {NEW_TOKENS} tokens")
        stages = ("decode", "filter bank", "answer", "first token", "second token")
        lines += [f"  {stage:<24}{row[stage]:>9.3f} s" for stage in stages]
    return "\n".join(lines)


def _child(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the file asked about (default 60)")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.repeat < 1 or not (math.isfinite(args.seconds) and args.seconds > 0):
        parser.error("--repeat must be at least 1 and --seconds a positive number")
    return args


def main() -> int:
    args = parse()
    if args.child:
        part, value = args.child
        measured = {"memory": measure_memory, "encoder": lambda _: measure_encoder(args)}
        measured["answer"] = lambda folder: measure_answer(folder, args)
        print(json.dumps(measured[part](value)))
        return 0
    row: dict[str, Any] = {}
    shared = ("--repeat", str(args.repeat), "--seconds", str(args.seconds))
    if args.only != "answer":
        row |= _child(*shared, "--child", "encoder", "")
        for side in ("published", "ours"):
            memory = _child("--child", "memory", side)
            row[f"memory {side}"] = memory["peak"] - memory["before"]
    if args.only != "encoder":
        from random_model import make_random

        with tempfile.TemporaryDirectory() as folder:
            make_random(Path(folder), hears=True)
            row |= _child(*shared, "--child", "answer", folder)
    print(processor_name())
    print(table(row, args.seconds))
    for is_met, text in rules(row):
        print(f"  {'ok' if is_met else 'BROKEN':<7}{text}")
    return 0 if all(is_met for is_met, _ in rules(row)) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as failed:
        sys.exit(f"hear.py: measuring failed, see above (exit code {failed.returncode})")
