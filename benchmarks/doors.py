#!/usr/bin/env python3
"""How much sooner a second question and a second turn about a clip begin, through every door of the package.

    python benchmarks/doors.py [--shape 0.5b | --model FOLDER] [--rounds 2]

A row per door, in seconds to the first piece of text: a question about a clip that no cache holds, another question
about it, and a second turn of the conversation. Doors: the engine in this process; ``mm_infer``; a worker's and the
API's chat requests; the back end of the web page; and the controller's published protocol for old clients, which has no
turns.

The servers run as processes of their own. Each door and round has a clip of its own, because the doors of a server
share its caches. The medians of the rounds are printed. Both must begin at least ten times sooner than the first
question, or the exit code is 1; of the built-in model, which takes longer to read a clip than to answer, this is not
asked.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from limits import processor_name
from random_model import QUESTION, SHAPES, make_random
from serve import server

OTHER_QUESTION = "How many objects are there in the clip?"
SOONER = 10
"""Least gain over the first question."""

TOKENS = 2

Ask = Callable[[Path, str, bool], float | None]


class Doors:
    """Times the first text of first questions, second questions and second turns, and prints a row per door.

    ``is_met`` says whether every second question and turn began soon enough.
    """

    def __init__(self, rounds: int, clips: Sequence[Path]) -> None:
        self.rounds, self.is_met = rounds, True
        self._unseen = iter(clips)
        print(processor_name())
        print(f"{'door':22} {'first, s':>9} {'second question':>22} {'second turn':>22}", flush=True)

    def measure(self, door: str, ask: Ask) -> None:
        """Time a door. ``ask`` gets a clip, a question, and whether it is a second turn; it returns seconds or None."""
        row: tuple[list[float], list[float], list[float]] = ([], [], [])
        for _ in range(self.rounds):
            clip = next(self._unseen)
            for place, (question, is_turn) in enumerate(
                ((QUESTION, False), (OTHER_QUESTION, False), (OTHER_QUESTION, True))
            ):
                seconds = ask(clip, question, is_turn)
                if seconds is not None:
                    row[place].append(seconds)
        self._print(door, row)

    def _print(self, door: str, columns: Sequence[Sequence[float]]) -> None:
        """Print the row of a door, as soon as it is measured."""
        if not columns[0]:
            print(f"{door:22} no answer had text: random weights may end one at once; try more --rounds", flush=True)
            return
        first = statistics.median(columns[0])
        cells = []
        for values in columns[1:]:
            seconds = statistics.median(values) if values else None
            cells.append("-" if seconds is None else f"{seconds:.3f} s ({first / seconds:.1f}x sooner)")
            self.is_met &= seconds is None or first >= SOONER * seconds
        print(f"{door:22} {first:9.3f} {cells[0]:>22} {cells[1]:>22}", flush=True)


def conversation(part: dict[str, Any], question: str, is_turn: bool) -> list[dict[str, Any]]:
    """Return messages: one question, or a second one after an answered first."""
    if not is_turn:
        return [{"role": "user", "content": [part, {"type": "text", "text": question}]}]
    first = {"role": "user", "content": [part, {"type": "text", "text": QUESTION}]}
    return [first, {"role": "assistant", "content": "The cross."}, {"role": "user", "content": question}]


def in_process(doors: Doors, path: str) -> None:
    """The engine, and ``mm_infer`` on pixels, of which it knows only their content."""
    from videollama2 import Engine, Request, mm_infer, model_init

    model, processor, tokenizer = model_init(path)

    def ask(clip: Path, question: str, is_turn: bool) -> float | None:
        part = {"type": "video", "path": clip}
        request = Request(conversation(part, question, is_turn), max_new_tokens=TOKENS, min_new_tokens=TOKENS)
        return engine.submit_request(request).result().timings.first_token

    with Engine(model, processor, max_batch=1, max_length=1024, background=False) as engine:
        doors.measure("engine", ask)

    def infer(clip: Path, question: str, is_turn: bool) -> float | None:
        if is_turn:
            return None  # it takes one question
        start = time.perf_counter()
        pixels = processor["video"](clip)
        mm_infer(pixels, question, model, tokenizer, modal="video", max_new_tokens=1)
        return time.perf_counter() - start

    doors.measure("mm_infer", infer)


async def first_piece(pieces: AsyncIterator[Any], has_text: Callable[[Any], bool], start: float) -> float | None:
    """Return the seconds from ``start`` to the first piece with text, after reading all of them."""
    first = None
    async for piece in pieces:
        if first is None and has_text(piece):
            first = time.perf_counter() - start
    return first


def _url(clip: Path) -> str:
    return "data:video/mp4;base64," + base64.b64encode(clip.read_bytes()).decode()


def through_http(url: str) -> Ask:
    """Chat requests of a worker or of the API."""
    import httpx

    async def ask(clip: Path, question: str, is_turn: bool) -> float | None:
        part = {"type": "video_url", "video_url": {"url": _url(clip)}}
        body = {
            "model": "model",
            "messages": conversation(part, question, is_turn),
            "temperature": 0,
            "stream": True,
            "max_completion_tokens": TOKENS,
            "min_tokens": TOKENS,
        }
        start = time.perf_counter()
        async with (
            httpx.AsyncClient(timeout=None, trust_env=False) as client,
            client.stream("POST", f"{url}/v1/chat/completions", json=body) as response,
        ):
            if response.status_code != 200:
                raise SystemExit((await response.aread()).decode())
            return await first_piece(response.aiter_lines(), _event_has_text, start)

    return lambda *asked: asyncio.run(ask(*asked))


def _event_has_text(line: str) -> bool:
    if not line.startswith("data: {"):
        return False
    event = json.loads(line[6:])
    if "error" in event:
        raise SystemExit(line)
    return any(choice["delta"].get("content") for choice in event["choices"])


def through_page(controller: str) -> Ask:
    """What the web page calls for an answer."""
    from videollama2.serve.cluster.client import ControllerClient
    from videollama2.serve.page.backends import ControllerBackend
    from videollama2.serve.settings import MediaPolicy

    async def ask(clip: Path, question: str, is_turn: bool) -> float | None:
        backend = ControllerBackend(ControllerClient(controller), MediaPolicy(decode_processes=1))
        part = {"type": "video", "path": clip}
        start = time.perf_counter()
        try:
            pieces = backend.stream("model", conversation(part, question, is_turn), {"max_new_tokens": TOKENS})
            return await first_piece(pieces, bool, start)
        finally:
            backend.close()

    return lambda *asked: asyncio.run(ask(*asked))


def through_old_protocol(controller: str) -> Ask:
    """The published protocol of the controller."""
    import httpx

    async def ask(clip: Path, question: str, is_turn: bool) -> float | None:
        if is_turn:
            return None
        body = {"model": "model", "prompt": f"<video>\n{question}", "images": [_url(clip)], "max_new_tokens": TOKENS}
        start = time.perf_counter()
        async with (
            httpx.AsyncClient(timeout=None, trust_env=False) as client,
            client.stream("POST", f"{controller}/worker_generate_stream", json=body | {"echo": False}) as response,
        ):
            return await first_piece(response.aiter_bytes(), _frame_has_text, start)

    return lambda *asked: asyncio.run(ask(*asked))


def _frame_has_text(received: bytes) -> bool:
    texts = [json.loads(frame) for frame in received.split(b"\0") if frame]
    if any(frame["error_code"] for frame in texts):
        raise SystemExit(received.decode())
    return any(frame["text"] for frame in texts)


def make_clips(folder: Path, count: int) -> list[Path]:
    """Draw different clips of two seconds."""
    sets = ("-m", "videollama2.shapes.sets", "--videos", str(count), "--seed", "7")
    command = [sys.executable, *sets, "--out", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return sorted(folder.rglob("*.mp4"))[:count]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--shape", choices=["tiny", *SHAPES], default="0.5b")
    chosen.add_argument("--model", help="a checkpoint instead of a random one")
    parser.add_argument("--rounds", type=int, default=2, help="clips per door (default %(default)s)")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    with tempfile.TemporaryDirectory() as folder:
        doors = Doors(args.rounds, make_clips(Path(folder) / "clips", 6 * args.rounds))
        path = args.model or "videollama2-tiny"
        if not args.model and args.shape != "tiny":
            path = str(Path(folder) / "model")
            make_random(Path(path), args.shape)
        in_process(doors, path)
        with server("controller") as controller:
            own = ("--model-path", path, "--model-name", "model", "--max-length", "1024")
            here = ("--controller", controller)
            with server("model_worker", *here, "--worker", "http://127.0.0.1:PORT", *own) as worker:
                doors.measure("worker", through_http(worker))
                doors.measure("controller, page", through_page(controller))
                doors.measure("controller, old", through_old_protocol(controller))
                with server("openai_api", *here) as api:
                    doors.measure("API", through_http(api))
    if doors.is_met or args.shape == "tiny":
        return 0
    print(f"BROKEN: each must begin at least {SOONER} times sooner")
    return 1


if __name__ == "__main__":
    sys.exit(main())
