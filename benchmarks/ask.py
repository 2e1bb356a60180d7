#!/usr/bin/env python3
"""What answering costs, stage by stage: start, preprocessing, encoding, first token, tokens per second, memory.

    python benchmarks/ask.py [--device cpu] [--dtype float32 ...] [--new-tokens 32] [--only tiny|tiny-av|0.5b]
                            [--video clip.mp4]

Three models: the built-in ``videollama2-tiny`` and ``videollama2-tiny-av``, and one with random weights and the shapes
of CLIP ViT-L/14-336, the STC connector and a 0.5B Qwen2, made on the spot (8 frames). Each runs in a process of its
own, so that start-up and peak memory are its own. Times are medians of ``--repeat`` runs; ratios between rows of one
table are what to quote. The model that hears is also asked about a sound (more: ``benchmarks/hear.py``). Several
``--dtype`` are measured one after another; ``int8`` and ``int4`` are ``--load-8bit`` and ``--load-4bit``.

The limits printed beside are counted, not measured: multiply-adds of each stage over the rate of a large matrix product
on the same device, and for decoding the bytes of the weights over the rate of a large copy. Integers have none.

Rules are checked, and a broken one makes the exit code 1: the vision part of a still image costs at most a quarter of
that of a video of 8 frames, in multiply-adds and in time, and a second question about the same clip encodes no frame.
Time is not judged where calling the operations takes longer than their arithmetic, as in the tiny models.
"""

from __future__ import annotations

import argparse
import itertools
import json
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

from ask_report import rules, table
from limits import processor_name
from random_model import CLIP, QUESTION, SOUNDING_CLIP, make_random

MODELS = ("tiny", "tiny-av", "0.5b")
INTEGERS = {"int8": {"load_8bit": True}, "int4": {"load_4bit": True}}
"""Weights of few bits, and the options of ``model_init`` for them."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16", "float16", *INTEGERS))
    parser.add_argument("--new-tokens", type=_count, default=32)
    parser.add_argument("--repeat", type=_count, default=3)
    parser.add_argument("--only", choices=MODELS)
    parser.add_argument("--video", type=Path, default=CLIP, help="clip to ask about (default: the bundled one)")
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _weights(dtype: list[str] | None) -> dict[str, Any]:
    """Options of ``model_init`` for the only dtype of a process."""
    if dtype is None:
        return {}
    return INTEGERS.get(dtype[0], {"dtype": dtype[0]})


class Bench:
    """One loaded model and what is asked of it."""

    def __init__(self, path: str, args: argparse.Namespace) -> None:
        start = time.perf_counter()
        import torch
        from transformers.utils import logging

        from videollama2 import model_init
        from videollama2.prompting import build_prompt, user_messages

        logging.disable_progress_bar()
        imported = time.perf_counter()
        self.model, self.processor, self.tokenizer = model_init(path, device=args.device, **_weights(args.dtype))
        self.start = {"import": imported - start, "load": time.perf_counter() - imported}
        self.torch, self.args = torch, args
        self.device = self.model.get_input_embeddings().weight.device
        waits = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}
        self.sync: Callable[[], None] = waits.get(self.device.type, lambda: None)
        decoder = self.model.config.text_config.model_type
        self.others = (f"How many objects are there in second {number}?" for number in itertools.count())
        self.prompt = build_prompt(user_messages(QUESTION, "video"), self.tokenizer, decoder)

    def clock(self, run: Callable[[], Any]) -> float:
        """Seconds of one call."""
        self.sync()
        start = time.perf_counter()
        run()
        self.sync()
        return time.perf_counter() - start

    def median(self, run: Callable[[], Any]) -> float:
        """Median seconds of ``--repeat`` calls after one that warms up."""
        run()
        return statistics.median(self.clock(run) for _ in range(self.args.repeat))

    def preprocess(self) -> Any:
        return self.processor["video"](self.args.video, num_frames=self.model.config.num_frames)

    def embed(self, pixels_TCHW: Any) -> tuple[Any, Any]:
        """Prompt embeddings; visual tokens come from the cache where they are in it."""
        from videollama2.inference.api import embed_prompts

        return embed_prompts([self.prompt], [[pixels_TCHW]], self.model, self.tokenizer)

    def generate(self, tokens: int, embeds_BLD: Any, mask_BL: Any) -> list[float]:
        """Generate so many tokens; returns the seconds after which each was there."""
        stamps: list[float] = []

        def stamp(input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            self.sync()
            stamps.append(time.perf_counter() - start)
            return self.torch.zeros(len(input_ids), dtype=self.torch.bool, device=input_ids.device)

        start = time.perf_counter()
        self.model.generate(
            inputs_embeds=embeds_BLD,
            attention_mask=mask_BL,
            do_sample=False,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            pad_token_id=0,
            temperature=None,
            top_p=None,
            top_k=None,
            stopping_criteria=[stamp],
        )
        if len(stamps) != tokens:
            raise RuntimeError(f"{len(stamps)} tokens were generated, {tokens} were asked for")
        return stamps

    def forget(self) -> None:
        from videollama2.inference.api import media_cache, prefix_cache

        media_cache(self.model).clear()
        prefix_cache(self.model).clear()

    def ask(self, forget: bool, modal: str = "video") -> None:
        """From file to first token, by mm_infer; what it knows of the medium is of another question about it."""
        from videollama2 import mm_infer

        if forget:
            self.forget()
        question = QUESTION if forget else next(self.others)
        medium = self.processor["audio"](SOUNDING_CLIP, of_video=True) if modal == "audio" else self.preprocess()
        mm_infer(medium, question, self.model, self.tokenizer, modal=modal, max_new_tokens=1)


def measure(path: str, args: argparse.Namespace) -> dict[str, Any]:
    """All stages of one model, in this process."""
    bench = Bench(path, args)
    torch, model = bench.torch, bench.model
    integers = next((name for name in args.dtype or () if name in INTEGERS), None)
    result: dict[str, Any] = dict(bench.start)
    with torch.inference_mode():
        pixels_TCHW = bench.preprocess()
        result["preprocess"] = bench.median(bench.preprocess)
        result |= _vision(bench, pixels_TCHW.to(bench.device))
        embeds_BLD, mask_BL = bench.embed(pixels_TCHW)
        result |= _decoding(bench, embeds_BLD, mask_BL)
        result["first token"] = bench.median(lambda: bench.ask(forget=True))
        result |= _second_question(bench)
        if model.config.hears:
            result["first of sound"] = bench.median(lambda: bench.ask(forget=True, modal="audio"))
            result["second of sound"] = bench.median(lambda: bench.ask(forget=False, modal="audio"))
        # Before the limits: their matrices are larger than a small model.
        result["memory"] = _peak_memory(torch, bench.device)
        if integers is None:
            result |= _limits(bench, embeds_BLD.shape[1], pixels_TCHW.shape)
    result |= {
        "prompt tokens": embeds_BLD.shape[1],
        "frames": len(pixels_TCHW),
        "new tokens": args.new_tokens,
        "pixels": pixels_TCHW.shape[-1],
        "weights": _count_weights(bench) / 1e6,
        "dtype": integers or str(model.dtype).removeprefix("torch."),
        "device": str(bench.device) if bench.device.type != "cpu" else f"cpu, {torch.get_num_threads()} threads",
    }
    return result


def _count_weights(bench: Bench) -> int:
    """Number of weights, however many of them share a byte."""
    with bench.torch.device("meta"):
        return sum(p.numel() for p in type(bench.model)(bench.model.config).parameters())


def _vision(bench: Bench, frames_TCHW: Any) -> dict[str, float]:
    """Encoder, connector (both of the same runs), and both together for a still image."""
    model, spans = bench.model, []
    started = [0.0]

    def before(*_: Any) -> None:
        bench.sync()
        started[0] = time.perf_counter()

    def after(*_: Any) -> None:
        bench.sync()
        spans.append(time.perf_counter() - started[0])

    _, projector = model.model.eyes()
    hooks = [projector.register_forward_pre_hook(before), projector.register_forward_hook(after)]
    whole = bench.median(lambda: model.get_video_features(frames_TCHW[None]))
    for hook in hooks:
        hook.remove()
    connector = statistics.median(spans[1:])
    image = bench.median(lambda: model.get_image_features(frames_TCHW[:1]))
    return {"encoder": whole - connector, "connector": connector, "vision": whole, "image vision": image}


def _decoding(bench: Bench, embeds_BLD: Any, mask_BL: Any) -> dict[str, float]:
    """Prefill up to the first token, and each token after it."""
    count = bench.args.new_tokens
    runs = [bench.generate(1 + count, embeds_BLD, mask_BL) for _ in range(1 + bench.args.repeat)][1:]
    return {
        "prefill": statistics.median(stamps[0] for stamps in runs),
        "per token": statistics.median((stamps[-1] - stamps[0]) / count for stamps in runs),
    }


def _second_question(bench: Bench) -> dict[str, float]:
    """Time to first token when the clip was asked about before, and frames encoded for the two questions."""
    frames = [0]

    def count(_: Any, __: Any, output: Any) -> None:
        frames[0] += output.shape[0]

    tower: Any = bench.model.model.eyes()[0]
    hook = tower.embeddings.register_forward_hook(count)
    bench.ask(forget=True)
    first = frames[0]
    bench.ask(forget=False)
    hook.remove()
    return {
        "second token": bench.median(lambda: bench.ask(forget=False)),
        "frames first": first,
        "frames second": frames[0] - first,
    }


def _peak_memory(torch: Any, device: Any) -> float:
    """GiB: of the GPU where there is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _limits(bench: Bench, prompt_tokens: int, shape_TCHW: Any) -> dict[str, float]:
    """Counted work over measured rates of this device, in seconds."""
    from torch.utils.flop_counter import FlopCounterMode

    torch, model, device = bench.torch, bench.model, bench.device
    n = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device, dtype=model.dtype) for _ in range(2))
    rate = 2 * n**3 / bench.median(lambda: torch.mm(a, b))
    source = torch.randn(64 << 20, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / bench.median(lambda: target.copy_(source))
    video_TCHW = torch.randn(*shape_TCHW, device=device)
    with FlopCounterMode(display=False) as vision:
        model.get_video_features(video_TCHW[None])
    with FlopCounterMode(display=False) as image:
        model.get_image_features(video_TCHW[:1])
    decoder = sum(p.numel() for p in model.model.language_model.layers.parameters())
    read = (decoder + model.lm_head.weight.numel()) * model.lm_head.weight.element_size()
    return {
        "limit vision": vision.get_total_flops() / rate,
        "image work": image.get_total_flops() / vision.get_total_flops(),
        "limit prefill": 2 * decoder * prompt_tokens / rate,
        "limit per token": read / bandwidth,
        "rate": rate / 1e9,
        "bandwidth": bandwidth / 1e9,
    }


def main() -> int:
    args = parse()
    if args.build:
        from transformers.utils import logging

        logging.disable_progress_bar()
        make_random(args.build)
        return 0
    if args.child:
        print(json.dumps(measure(args.child, args)))
        return 0
    print(processor_name(), end="\n\n")
    is_met = True
    with tempfile.TemporaryDirectory() as folder:
        for name in [args.only] if args.only else MODELS:
            path = f"videollama2-{name}"
            if name == "0.5b":
                path = str(Path(folder) / "half")
                # In a process of its own too: this one keeps what it took.
                subprocess.run([sys.executable, __file__, "--build", path], check=True)
            for dtype in args.dtype or [None]:
                own = [] if dtype is None else ["--dtype", dtype]
                command = [sys.executable, __file__, *sys.argv[1:], "--child", path, *own]  # the last of a flag holds
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                row = json.loads(done.stdout.splitlines()[-1])
                print(table(name, row), end="\n\n", flush=True)
                is_met = is_met and all(met is not False for met, _ in rules(row))
    return 0 if is_met else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as failed:
        sys.exit(f"ask.py: measuring failed, see above (exit code {failed.returncode})")
