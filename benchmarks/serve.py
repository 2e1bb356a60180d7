#!/usr/bin/env python3
"""What serving costs and gains: throughput and waiting times of a real worker under load, against its engine alone.

    python benchmarks/serve.py [--shape tiny 0.5b] [--clients 1 4 16] [--new-tokens 64] [--through worker|api]

Starts the servers as processes of their own on free ports of this machine and asks over real sockets, streaming, about
one clip that is cached after the first question. Four loads per model:

* busy: each of N clients asks again as soon as it is answered; gives the throughput;
* open: requests arrive at random moments (Poisson), whether or not others are answered, at 70 % of that throughput
  (open-loop: a slow server meets a queue, not patient clients);
* mixed: as open, but every third request brings a clip that the server has not seen, every other one a long question,
  and answers are a quarter to all of the usual length (:mod:`loads`);
* engine: the same requests in this process without a server, in turns with the busy load; the difference is the server.

All rows of a table come from one run; quote the ratios. The load generator shares the machine with the server.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from limits import processor_name
from loads import QUESTIONS, SHARE_OF_CAPACITY, LoadQuestion, known, mixed, pauses, percentiles
from random_model import CLIP, SHAPES, make_random

START_S = 300.0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", default=["tiny", "0.5b"], choices=["tiny", *SHAPES])
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--requests", type=int, default=3, help="per client and load (default %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="rounds of server and engine (default %(default)s)")
    parser.add_argument(
        "--through",
        choices=("worker", "api"),
        default="worker",
        help="ask the worker itself, or the API in front of a controller",
    )
    return parser.parse_args()


# -------------------------------------------------------------------------------------------------------------- servers


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def server(module: str, *arguments: str) -> Iterator[str]:
    """One server process; its address once it is ready."""
    import httpx

    port = free_port()
    command = [sys.executable, "-m", f"videollama2.serve.{module}", "--port", str(port), *arguments]
    command = [part.replace("PORT", str(port)) for part in command]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        try:
            url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_S
            while True:
                try:
                    if httpx.get(f"{url}/ready", timeout=5).status_code == 200:
                        break
                except httpx.HTTPError:
                    pass
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    sys.exit(f"{module} did not start:\n{log.read().decode(errors='replace')}")
                time.sleep(0.1)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def servers(model: str, through: str, slots: int) -> Iterator[str]:
    """Where to ask."""
    sizes = ("--limit-model-concurrency", str(slots), "--max-length", "1024")
    own = ("--model-path", model, "--model-name", "model", *sizes)
    if through == "worker":
        with server("model_worker", "--no-register", *own) as url:
            yield url
        return
    with server("controller") as controller:
        here = ("--controller", controller)
        worker = server("model_worker", *here, "--worker", "http://127.0.0.1:PORT", *own)
        with worker, server("openai_api", *here) as url:
            yield url


# ----------------------------------------------------------------------------------------------------------------- load


@dataclass
class LoadResult:
    """What one load gave. Seconds; ``between`` are gaps between two pieces of text of one answer, ``whole`` answers."""

    seconds: float = 0.0
    tokens: int = 0
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


class Asker:
    """Sends streaming requests."""

    def __init__(self, url: str, tokens: int) -> None:
        import httpx

        limits = httpx.Limits(max_connections=None)
        self.client = httpx.AsyncClient(base_url=url, timeout=None, limits=limits, trust_env=False)
        self.tokens = tokens
        self.clip = "data:video/mp4;base64," + base64.b64encode(Path(CLIP).read_bytes()).decode()

    def body(self, question: LoadQuestion) -> dict[str, Any]:
        video: dict[str, Any] = {"url": self.clip}
        if question.bounds is not None:
            video["start"], video["end"] = question.bounds
        parts = [{"type": "video_url", "video_url": video}, {"type": "text", "text": question.text}]
        return {
            "model": "model",
            "messages": [{"role": "user", "content": parts}],
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_completion_tokens": question.tokens,
            "min_tokens": question.tokens,
        }

    async def ask(self, question: LoadQuestion, load: LoadResult) -> None:
        start = last = time.perf_counter()
        begun = False
        async with self.client.stream("POST", "/v1/chat/completions", json=self.body(question)) as response:
            if response.status_code != 200:
                raise SystemExit(f"status {response.status_code}: {(await response.aread()).decode()}")
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise SystemExit(line)
                now = time.perf_counter()
                if any(choice["delta"].get("content") for choice in event["choices"]):
                    (load.between if begun else load.first).append(now - (last if begun else start))
                    begun, last = True, now
                if event.get("usage"):
                    load.tokens += event["usage"]["completion_tokens"]
        load.whole.append(time.perf_counter() - start)

    async def busy(self, clients: int, each: int) -> LoadResult:
        """N clients, each asking again as soon as it is answered."""
        load, start = LoadResult(), time.perf_counter()

        async def client(number: int) -> None:
            for turn in range(each):
                await self.ask(known(number + turn, self.tokens), load)

        await asyncio.gather(*(client(number) for number in range(clients)))
        load.seconds = time.perf_counter() - start
        return load

    async def open_loop(
        self, count: int, per_second: float, question: Callable[[int, int], LoadQuestion]
    ) -> LoadResult:
        """``count`` requests that arrive at random moments."""
        load, between, start = LoadResult(), pauses(per_second), time.perf_counter()
        running = []
        for number in range(count):
            running.append(asyncio.ensure_future(self.ask(question(number, self.tokens), load)))
            await asyncio.sleep(next(between))
        await asyncio.gather(*running)
        load.seconds = time.perf_counter() - start
        return load


class Bare:
    """The engine alone, in this process."""

    def __init__(self, model_path: str, slots: int, tokens: int) -> None:
        from videollama2 import Engine, model_init

        model, processor, _ = model_init(model_path)
        self.engine = Engine(model, processor, max_batch=slots, max_length=1024)
        self.tokens = tokens

    def run(self, count: int) -> float:
        """Tokens per second of so many requests handed in at once."""
        from videollama2 import Request

        requests = [
            Request(
                QUESTIONS[number % len(QUESTIONS)],
                [("video", CLIP)],
                max_new_tokens=self.tokens,
                min_new_tokens=self.tokens,
            )
            for number in range(count)
        ]
        start = time.perf_counter()
        results = self.engine.generate(requests)
        return sum(result.completion_tokens for result in results) / (time.perf_counter() - start)


# -------------------------------------------------------------------------------------------------------------- figures


async def measure(args: argparse.Namespace, name: str, path: str) -> None:
    most = max(args.clients)
    with servers(path, args.through, most) as url:
        asker = Asker(url, args.new_tokens)
        for number in range(len(QUESTIONS)):
            await asker.ask(known(number, args.new_tokens), LoadResult())  # encodes the clip, fills the prefix cache
        print(f"\n{name}, through the {args.through}; answers of {args.new_tokens} tokens about a cached clip")
        titles = "".join(f"   {title + ', ms':>22}" for title in ("first token", "between", "whole answer"))
        print(f"{'load':5} {'clients':>7} {'tokens/s':>9} {'/ one':>6}{titles}")
        print(f"{'':30}" + f"   {'p50 / p95 / p99':>22}" * 3)
        one = None
        for clients in args.clients:
            load = await asker.busy(clients, args.requests)
            one = one or load.rate
            _row("busy", clients, load, one)
            arrivals = SHARE_OF_CAPACITY * load.rate / args.new_tokens
            for kind, question in (("open", known), ("mixed", mixed)):
                _row(kind, clients, await asker.open_loop(clients * args.requests, arrivals, question), one)
        await compare(args, asker, Bare(path, most, args.new_tokens))
        await asker.client.aclose()


async def compare(args: argparse.Namespace, asker: Asker, bare: Bare) -> None:
    """Server and engine in turns, so that a slow minute of the machine slows both."""
    most = max(args.clients)
    bare.run(len(QUESTIONS))
    served, alone = [], []
    for _ in range(args.repeat):
        served.append((await asker.busy(most, 1)).rate)
        alone.append(await asyncio.to_thread(bare.run, most))
    share = 1 - statistics.median(served) / statistics.median(alone)
    print(
        f"{most} requests at once: {statistics.median(served):.0f} tokens/s served, {statistics.median(alone):.0f} by "
        f"the engine alone; the server takes {share:.1%} (target for the 0.5b shapes: below 5 %)"
    )
    bare.engine.close()


def _row(kind: str, clients: int, load: LoadResult, one: float) -> None:
    print(
        f"{kind:5} {clients:7} {load.rate:9.1f} {load.rate / one:5.2f}x"
        + "".join(f"   {percentiles(values):>22}" for values in (load.first, load.between, load.whole)),
        flush=True,
    )


def main() -> None:
    args = parse()
    print(processor_name())
    for shape in args.shape:
        with tempfile.TemporaryDirectory() as folder:
            path = "videollama2-tiny"
            if shape != "tiny":
                print("building the random model ...", file=sys.stderr)
                make_random(Path(folder), shape)
                path = folder
            asyncio.run(measure(args, shape if shape == "tiny" else f"{shape} shapes", path))
    print("\n(/ one: against one busy client; target at 16 clients 3x for the 0.5b shapes)")


if __name__ == "__main__":
    main()
