#!/usr/bin/env python3
"""What the engine gains and costs: batching, prefix and media caches, against transformers' own generate.

    python benchmarks/engine.py [--device cpu] [--dtype float32] [--shape 0.5b] [--new-tokens 64] [--concurrent 8]

The model has random weights and the shapes of CLIP ViT-L/14-336, the STC connector and a Qwen2 of 0.5B, or on a GPU 7B
(8 frames). All rows of a table come from one run; quote the ratios. Beside the rates stand the limits: of decoding, the
bytes of the weights over the rate at which memory is copied or read, for a step that reads each once; of a prompt, its
multiplications over the rate of one large product of matrices.

Two more tables: a decode step of 1 to 16 rows against its floor, which is the time in which its bytes are read or its
products are computed at the rate for so many rows, whichever is longer, and the same step with the kernels that torch
chooses by itself and with packed weights; and ``--clients`` different questions about one clip, asked at once, to their
first tokens. Then ``--mixed`` short and long questions about known and new clips arrive at 70 % of the rate at which
they are answered (:mod:`loads`). ``--parts`` chooses among them.

On a GPU, decode steps are replayed as CUDA graphs, and the first table has the same steps without them.

The random model also hears (a BEATs of the published shape): first tokens are timed for a clip that is seen and for its
sound. ``benchmarks/hear.py`` has more about sounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from limits import memory_rate, processor_name, product_rate, synchronize, timed
from loads import print_mixed
from random_model import CLIP, QUESTION, SHAPES, SOUNDING_CLIP, make_random
from steps import ROWS, print_steps

DECODING_FRAMES = 2
"""Frames of the clip where decoding alone is measured: generate prefills every row anew, which takes minutes."""

MAX_LENGTH = 2048
"""Length of a slot: a sound takes 1496 tokens."""

PARTS = ("decoding", "prefill", "start", "steps", "together", "mixed", "equal")

OTHER_QUESTION = "How many objects are there in the clip?"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default=None, choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--concurrent", type=int, default=8)
    parser.add_argument("--clients", type=int, default=16, help="questions about one clip (default %(default)s)")
    parser.add_argument("--mixed", type=int, default=24, help="requests of the mixed load (default %(default)s)")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--model", help="a checkpoint instead of the random one")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="default 7b on a GPU, else 0.5b")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)")
    return parser.parse_args()


def _part(is_heard: bool = False, frames: int = 8) -> dict[str, Any]:
    """The clip as a part of a message, or the sound of another."""
    if is_heard:
        return {"type": "audio", "path": SOUNDING_CLIP, "of_video": True}
    return {"type": "video", "path": CLIP, "num_frames": frames}


class Bench:
    """One model, measured in alternation: the engine, and transformers at the same work."""

    def __init__(self, args: argparse.Namespace, path: str) -> None:
        import torch

        from videollama2 import model_init
        from videollama2.inference.engine import Engine
        from videollama2.inference.request import Request

        self.args, self.torch, self.Request = args, torch, Request
        self.model, self.processor, _ = model_init(path, device=args.device, dtype=args.dtype)
        self.engine = Engine(
            self.model,
            self.processor,
            max_batch=max(args.concurrent, args.clients, *ROWS),
            max_length=MAX_LENGTH,
            background=False,
            cuda_graphs=self.model.device.type == "cuda",
        )
        self.fixed = self.engine.decoder.fixed
        self.engine._end_ids = frozenset()  # random weights must not end an answer early
        self.device = self.model.get_input_embeddings().weight.device

    def request(
        self, question: str = QUESTION, tokens: int | None = None, frames: int = 8, is_heard: bool = False
    ) -> Any:
        return self.Request(question, [_part(is_heard, frames)], max_new_tokens=tokens or self.args.new_tokens)

    def static(self, batch: int) -> float:
        """Decoded tokens per second of transformers' generate with one static batch."""
        torch, model, tokens = self.torch, self.model, self.args.new_tokens
        medium = self.engine.reader.read(self.request(frames=DECODING_FRAMES).media[0])
        pixels = self.processor["video"](CLIP, num_frames=DECODING_FRAMES)
        stamps: list[float] = []

        def stamp(input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            stamps.append(time.perf_counter())
            return torch.zeros(batch, dtype=torch.bool, device=self.device)

        with torch.inference_mode():
            self.engine.media.encode([medium])
            prompt = self.processor.prompt(self.request().messages)
            prepared = self.processor.prepare([prompt] * batch, [[pixels]] * batch)
            embeds = model.model.embed(prepared["input_ids"].to(self.device), (), [medium.encoded] * batch)
            model.generate(
                inputs_embeds=embeds,
                attention_mask=prepared["attention_mask"].to(self.device),
                do_sample=False,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                pad_token_id=0,
                eos_token_id=None,
                temperature=None,
                top_p=None,
                top_k=None,
                stopping_criteria=[stamp],
            )
        return batch * (len(stamps) - 1) / (stamps[-1] - stamps[0])

    def concurrent(self, count: int) -> float:
        """Decoded tokens per second of ``count`` requests that run in the engine together."""
        answers = [self.engine.submit_request(self.request(frames=DECODING_FRAMES)) for _ in range(count)]
        while self.engine.load["decoding"] < count:
            self.engine.step()
        synchronize()
        start, steps = time.perf_counter(), 0
        while self.engine.load["decoding"] == count:
            self.engine.step()
            steps += 1
        seconds = time.perf_counter() - start
        assert all(answer.result().completion_tokens == self.args.new_tokens for answer in answers)
        return count * steps / seconds

    def without_graphs(self, count: int) -> float:
        """As :meth:`concurrent`, with every kernel of a step started by itself."""
        self.engine.decoder.fixed = None
        try:
            return self.concurrent(count)
        finally:
            self.engine.decoder.fixed = self.fixed

    def equal_without_graphs(self, count: int) -> int:
        """Return how many of so many answers have the same tokens with and without graphs."""
        answers = []
        for fixed in (None, self.fixed):
            self.engine.decoder.fixed = fixed
            asked = [self.request(f"{QUESTION} Say it in {number} words.") for number in range(count)]
            answers.append([self.engine.submit_request(request) for request in asked])
            answers[-1] = [answer.result().token_ids for answer in answers[-1]]
        return sum(one == other for one, other in zip(*answers, strict=True))

    def prefill(self) -> tuple[float, int]:
        """Seconds and tokens of a prompt of which nothing is known but its visual tokens."""
        torch, decoder = self.torch, self.engine.decoder
        medium = self.engine.reader.read(self.request().media[0])
        self.engine.media.encode([medium])
        embeds_BLD = medium.encoded.unsqueeze(0).to(self.model.dtype)
        count = embeds_BLD.shape[1]

        def run() -> None:
            decoder.slots.select(0, [0], count)
            decoder.run(embeds_BLD, masked=False, last=[count - 1])

        with torch.inference_mode():
            run()
            return timed(run, self.args.repeat), count

    def together(self, clients: int) -> list[float]:
        """Seconds to the first token of each of so many questions about one clip, whose visual tokens are known."""
        self.engine.prefixes.clear()
        asked = [f"{QUESTION} Say it in {number} words." for number in range(2, clients + 2)]
        answers = [self.engine.submit_request(self.request(question, 2)) for question in asked]
        return sorted(answer.result().timings.first_token for answer in answers)

    def first_token(self, request: Any) -> Any:
        return self.engine.submit_request(request).result()

    def start_up(self, is_heard: bool = False) -> dict[str, Any]:
        """First question, another question and second turn about one clip that is seen, or about its sound."""
        self.engine.prefixes.clear()
        self.engine.media.cache.clear()
        first = self.first_token(self.request(QUESTION, 1, is_heard=is_heard))
        other = self.first_token(self.request(OTHER_QUESTION, 1, is_heard=is_heard))
        answered = self.first_token(self.request(QUESTION, 8, is_heard=is_heard))
        messages = [
            {"role": "user", "content": [_part(is_heard), {"type": "text", "text": QUESTION}]},
            {"role": "assistant", "content": answered.text or "."},
            {"role": "user", "content": OTHER_QUESTION},
        ]
        turn = self.first_token(self.Request(messages, max_new_tokens=1))
        return {"first question": first, "second question": other, "second turn": turn}


def equal_answers(dtype: str, device: str | None) -> str:
    """Share of the tiny model's answers that are the same alone and in company, in a type that rounds."""
    from videollama2 import model_init
    from videollama2.inference.engine import Engine
    from videollama2.inference.request import Request

    model, processor, _ = model_init("videollama2-tiny", dtype=dtype, device=device)
    things = ("circle", "square", "triangle", "cross", "white object", "red object", "blue object", "yellow object")
    asked = ("What colour is the {}?", "Where is the {}?", "Which way does the {} move?", "Describe the {}.")
    requests = [
        Request(question.format(thing), [("video", CLIP)], max_new_tokens=16) for thing in things for question in asked
    ]
    answers = {}
    for batch in (1, 16):
        engine = Engine(model, processor, max_batch=batch, background=False)
        answers[batch] = [result.token_ids for result in engine.generate(requests)]
    equal = sum(a == b for a, b in zip(answers[1], answers[16], strict=True))
    return f"{dtype}: {equal} of {len(requests)} answers of the tiny model are the same alone and in a batch of 16"


def print_equal(device: str | None) -> None:
    print()
    for dtype in ("float32", "bfloat16"):
        print(equal_answers(dtype, device))


def print_start_up(bench: Bench) -> None:
    """Print the time to the first token of questions about a clip, and about its sound if the model hears."""
    print(f"\n{'to first token':24} {'seconds':>8} {'sooner':>8} {'prompt':>7} {'prefilled':>10}")
    for is_heard in (False, True) if bench.model.config.hears else (False,):
        starts = bench.start_up(is_heard)
        base = starts["first question"].timings.first_token
        for name, result in starts.items():
            seconds = result.timings.first_token
            prefilled = result.prompt_tokens - result.cached_tokens
            name = f"{name}, sound" if is_heard else name
            print(f"{name:24} {seconds:8.3f} {base / seconds:7.1f}x {result.prompt_tokens:7} {prefilled:10}")


def print_decoding(bench: Bench, limit: float) -> None:
    """Print decoded tokens per second beside transformers' generate; ``limit`` is the most for one request."""
    n = bench.args.concurrent
    runs = {
        ("generate", 1): lambda: bench.static(1),
        ("engine", 1): lambda: bench.concurrent(1),
        ("generate", n): lambda: bench.static(n),
        ("engine", n): lambda: bench.concurrent(n),
    }
    if bench.fixed is not None:
        runs |= {("no graphs", count): lambda count=count: bench.without_graphs(count) for count in (1, n)}
    for run in (bench.concurrent, *([bench.without_graphs] if bench.fixed is not None else [])):
        run(n)  # warm-up; from here on, the prompt's key-values are known to the engine, and the steps are recorded
    rates: dict[tuple[str, int], list[float]] = {key: [] for key in runs}
    for _ in range(bench.args.repeat):  # in turns, so that a slow minute of the machine slows all of them
        for key, run in runs.items():
            rates[key].append(run())
    middle = {key: statistics.median(values) for key, values in rates.items()}
    print(f"\n{'decoding':10} {'requests':>8} {'tokens/s':>9} {'/ generate x1':>14} {'of bandwidth':>13}")
    for (name, count), rate in middle.items():
        share = rate / (limit * count)
        print(f"{name:10} {count:8} {rate:9.1f} {rate / middle['generate', 1]:13.2f}x {share:12.0%}")
    print(f"\nengine x{n} / engine x1:   {middle['engine', n] / middle['engine', 1]:.2f} (target 2.7)")
    print(f"engine x{n} / generate x{n}: {middle['engine', n] / middle['generate', n]:.2f} (target 0.9)")
    print(f"engine x1 / generate x1: {middle['engine', 1] / middle['generate', 1]:.2f} (target 0.95)")
    if bench.fixed is not None:
        print(f"{bench.equal_without_graphs(n)} of {n} answers have the same tokens with graphs and without")


def print_prefill(bench: Bench) -> None:
    """Print the rate of a prompt, and its share of the rate of a large product."""
    seconds, count = bench.prefill()
    decoder: Any = bench.model.get_decoder()
    operations = 2 * count * sum(p.numel() for p in decoder.layers.parameters())
    peak = product_rate(bench.torch, bench.device, bench.model.dtype)
    print(
        f"prefill of {count} tokens: {count / seconds:.0f} tokens/s, {operations / seconds / peak:.0%} of the rate "
        f"of a large product of matrices ({peak / 1e12:.2f} TFLOP/s)"
    )


def print_together(bench: Bench) -> None:
    """Print the first tokens of a crowd that asks about one clip."""
    firsts = bench.together(bench.args.clients)
    middle = statistics.median(firsts)
    print(f"\n{len(firsts)} questions about one clip: first token of the first {firsts[0]:.3f} s, p50 {middle:.3f} s")
    print(f"({middle / firsts[0]:.2f} times the first), last {firsts[-1]:.3f} s")


def main() -> None:
    args = parse()
    import torch

    shape = args.shape or ("7b" if torch.cuda.is_available() and args.device != "cpu" else "0.5b")
    with tempfile.TemporaryDirectory() as folder:
        if not args.model:
            print("building the random model ...", file=sys.stderr)
            make_random(Path(folder), shape, hears=True)
        bench = Bench(args, args.model or folder)
    decoder: Any = bench.model.get_decoder()
    weights = sum(p.nbytes for p in {*decoder.layers.parameters(), *bench.model.lm_head.parameters()})
    rate = memory_rate(torch, bench.device)
    dtype = str(bench.model.dtype).removeprefix("torch.")
    name = args.model or f"{shape} shapes"
    graphs = ", CUDA graphs" if bench.fixed is not None else ""
    is_gpu, threads = bench.device.type == "cuda", torch.get_num_threads()
    device = torch.cuda.get_device_name() if is_gpu else f"{processor_name()}, {threads} threads"
    print(f"{name} on {device}, {dtype}{graphs}; answers of {args.new_tokens} tokens")
    print(f"({DECODING_FRAMES} frames while decoding, 8 to the first token)")
    parts: dict[str, Callable[[], None]] = {
        "decoding": lambda: print_decoding(bench, rate / weights),
        "prefill": lambda: print_prefill(bench),
        "start": lambda: print_start_up(bench),
        "steps": lambda: print_steps(bench.model, bench.engine.decoder, weights, rate, args.repeat),
        "together": lambda: print_together(bench),
        "mixed": lambda: print_mixed(bench.engine, args.mixed, args.new_tokens, frames=8),
        "equal": lambda: print_equal(args.device),
    }
    for part in args.parts:
        parts[part]()


if __name__ == "__main__":
    main()
