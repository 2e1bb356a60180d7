#!/usr/bin/env python3
"""What answering costs, stage by stage: loading, preprocessing, encoding, first token, tokens per second, memory.

    python benchmarks/ask.py [--device cpu] [--dtype float32] [--new-tokens 32] [--only tiny|0.5b]

Two models: the built-in ``videollama2-tiny``, and one with random weights and the shapes of CLIP ViT-L/14-336, the STC
connector and a 0.5B Qwen2, made on the spot (8 frames). Each runs in a process of its own, so that start-up and peak
memory are its own. Times are medians of ``--repeat`` runs; ratios between rows of one table are what to quote.

The limits printed beside are counted, not measured: multiply-adds of each stage over the rate of a large matrix product
on the same device, and for decoding the bytes of the weights over the rate of a large copy.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CLIP = ROOT / "videollama2" / "assets" / "demo" / "moving_shapes.mp4"
QUESTION = "Which object moves first, the white cross or the red circle?"
MODELS = ("tiny", "0.5b")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default=None, choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", choices=MODELS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def make_half_billion(folder: Path, seed: int = 0) -> None:
    """Write a checkpoint of the 0.5B shapes with random weights; the tokenizer is the tiny model's."""
    import torch

    from videollama2.config import KNOWN_TOWERS, VideoLlama2Config
    from videollama2.loading import load_checkpoint
    from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
    from videollama2.processing import VideoLlama2Processor

    torch.manual_seed(seed)
    tower = "openai/clip-vit-large-patch14-336"
    config = VideoLlama2Config(
        text_config={
            "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
            "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
            "max_position_embeddings": 32768, "rope_theta": 1e6, "tie_word_embeddings": True,
        },
        vision_config=KNOWN_TOWERS[tower]["vision_config"],
        mm_vision_tower=tower,
        mm_projector_type="stc_connector",
        num_frames=8,
    )  # fmt: skip
    model = VideoLlama2ForConditionalGeneration(config)
    _, tiny = load_checkpoint("videollama2-tiny")
    from videollama2.processing import load_image_processor

    processor = VideoLlama2Processor(load_image_processor(folder, config), tiny.tokenizer, config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def median_time(run: Callable[[], object], repeat: int, sync: Callable[[], None]) -> float:
    times = []
    for _ in range(repeat):
        sync()
        start = time.perf_counter()
        run()
        sync()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(path: str, args: argparse.Namespace) -> dict[str, float]:
    """All stages of one model, in this process."""
    start = time.perf_counter()
    import torch

    from videollama2 import model_init
    from videollama2.inference.api import embed_prompts, media_cache
    from videollama2.prompting import build_prompt, user_messages

    imported = time.perf_counter()
    model, processor, tokenizer = model_init(path, device=args.device, dtype=args.dtype)
    loaded = time.perf_counter()
    device = model.get_input_embeddings().weight.device
    sync = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    result = {"import": imported - start, "load": loaded - imported}
    pixels = processor["video"](CLIP)
    image = pixels[:1]
    result["preprocess"] = median_time(lambda: processor["video"](CLIP), args.repeat, sync)
    prompt = build_prompt(user_messages(QUESTION, "video"), tokenizer, model.config.text_config.model_type)

    def generate(tokens: int, embeds: torch.Tensor, mask: torch.Tensor) -> None:
        model.generate(
            inputs_embeds=embeds, attention_mask=mask, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens,
            pad_token_id=0, eos_token_id=None, temperature=None, top_p=None, top_k=None,
        )  # fmt: skip

    with torch.inference_mode():
        frames = pixels.to(device)
        model.get_video_features(frames[None])  # warm-up
        result["encoder"] = median_time(lambda: model.model.encode_vision(frames), args.repeat, sync)
        result["vision"] = median_time(lambda: model.get_video_features(frames[None]), args.repeat, sync)
        result["image vision"] = median_time(lambda: model.get_image_features(image.to(device)), args.repeat, sync)
        embeds, mask = embed_prompts([prompt], [[pixels]], model, tokenizer)
        generate(1, embeds, mask)
        result["prefill"] = median_time(lambda: generate(1, embeds, mask), args.repeat, sync)
        whole = median_time(lambda: generate(1 + args.new_tokens, embeds, mask), args.repeat, sync)
        result["per token"] = (whole - result["prefill"]) / args.new_tokens
        media_cache(model).clear()
        result["first question"] = median_time(lambda: _ask(model, prompt, pixels, tokenizer, embed_prompts), 1, sync)
        result["second question"] = median_time(
            lambda: _ask(model, prompt, pixels, tokenizer, embed_prompts), args.repeat, sync
        )
    result.update(_limits(model, embeds.shape[1], device, sync))
    result["prompt tokens"] = embeds.shape[1]
    result["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if device.type == "cuda":
        result["memory"] = torch.cuda.max_memory_allocated() / 2**30
    result["dtype"] = str(model.dtype).removeprefix("torch.")
    result["device"] = str(device)
    return result


def _ask(model, prompt, pixels, tokenizer, embed_prompts) -> None:
    """Up to the first token: visual tokens (from the cache or not), prefill."""
    embeds, mask = embed_prompts([prompt], [[pixels]], model, tokenizer)
    model.generate(inputs_embeds=embeds, attention_mask=mask, do_sample=False, max_new_tokens=1, pad_token_id=0)


def _limits(model, prompt_tokens: int, device, sync) -> dict[str, float]:
    """Counted work over measured rates of this device, in seconds."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    dtype = model.dtype
    n = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    torch.mm(a, b)
    rate = 2 * n**3 / median_time(lambda: torch.mm(a, b), 3, sync)
    source = torch.randn(64 << 20, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / median_time(lambda: target.copy_(source), 5, sync)
    config = model.config
    side = config.vision_config.image_size
    with torch.inference_mode():
        video = torch.randn(1, config.num_frames, 3, side, side, device=device)
        with FlopCounterMode(display=False) as vision:
            model.get_video_features(video)
    decoder = sum(p.numel() for p in model.model.language_model.layers.parameters())
    read = (decoder + model.lm_head.weight.numel()) * model.lm_head.weight.element_size()
    return {
        "limit vision": vision.get_total_flops() / rate,
        "limit prefill": 2 * decoder * prompt_tokens / rate,
        "limit per token": read / bandwidth,
        "rate": rate / 1e9,
        "bandwidth": bandwidth / 1e9,
    }


def table(name: str, row: dict[str, float]) -> str:
    """One model's stages, their share of a first answer, and how far each is from its limit."""
    connector = row["vision"] - row["encoder"]
    tokens = row["new tokens"]
    stages = [
        ("preprocessing (decode, resize)", row["preprocess"], None),
        ("vision encoder", row["encoder"], None),
        ("connector", connector, None),
        ("encoder + connector", row["vision"], row["limit vision"]),
        ("prefill, first token", row["prefill"], row["limit prefill"]),
        (f"decoding, {tokens} tokens", row["per token"] * tokens, row["limit per token"] * tokens),
    ]
    total = row["preprocess"] + row["vision"] + row["prefill"] + row["per token"] * tokens
    lines = [
        f"{name}  ({row['device']}, {row['dtype']}, {row['prompt tokens']} prompt tokens; "
        f"matrix product {row['rate']:.0f} GFLOP/s, copy {row['bandwidth']:.1f} GB/s)",
        f"  {'stage':<34}{'seconds':>10}{'share':>8}{'limit':>10}{'of limit':>10}",
    ]
    for stage, seconds, limit in stages:
        share = "" if stage == "encoder + connector" else f"{100 * seconds / total:.0f} %"
        bound = "" if limit is None else f"{limit:>10.4f}{100 * limit / seconds:>8.0f} %"
        lines.append(f"  {stage:<34}{seconds:>10.4f}{share:>8}{bound}")
    lines += [
        f"  {'time to first token':<34}{row['preprocess'] + row['vision'] + row['prefill']:>10.4f}",
        f"  {'tokens per second':<34}{1 / row['per token']:>10.1f}",
        f"  {'import, load':<34}{row['import']:>10.2f}{row['load']:>10.2f}",
        f"  {'peak memory, GiB':<34}{row['memory']:>10.2f}",
        f"  {'still image / video, vision time':<34}{row['image vision'] / row['vision']:>10.2f}",
        f"  {'second / first question, same clip':<34}{row['second question'] / row['first question']:>10.2f}"
        "   (time to first token after preprocessing)",
    ]
    return "\n".join(lines)


def main() -> int:
    args = parse()
    if args.child:
        row = measure(args.child, args)
        row["new tokens"] = args.new_tokens
        print(json.dumps(row))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        for name in [args.only] if args.only else MODELS:
            path = "videollama2-tiny"
            if name == "0.5b":
                path = str(Path(folder) / "half")
                make_half_billion(Path(path))
            command = [sys.executable, __file__, "--child", path, *sys.argv[1:]]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            print(table(name, json.loads(done.stdout.splitlines()[-1])), flush=True)
            print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
