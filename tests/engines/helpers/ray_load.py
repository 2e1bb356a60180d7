"""Clients that ask the API on a Ray cluster for one stream after another, and count how the streams end."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

MODEL = "videollama2-tiny"
KEY = "sk-ray"
CLIENTS = 32
HEADERS = {"authorization": f"Bearer {KEY}"}


def wait_until(holds: Callable[[], bool], seconds: float, what: str) -> float:
    """Return the seconds until it held."""
    start = time.monotonic()
    while not holds():
        assert time.monotonic() - start < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.2)
    return time.monotonic() - start


def body(question: str, **fields: object) -> dict:
    return {"model": MODEL, "messages": [{"role": "user", "content": question}], "temperature": 0, **fields}


@dataclass
class Load:
    """Clients that ask for one stream after another.

    Attributes:
        ends: how many streams ended in which way: ``complete``, ``error event``, ``error 503`` (before the first byte),
            or in a way that tells the client nothing.
        slowest: seconds to the first token of the slowest complete stream.
    """

    url: str
    tokens: int
    ends: Counter = field(default_factory=Counter)
    slowest: float = 0.0
    texts: dict[str, set[str]] = field(default_factory=dict)
    is_over: bool = False
    strange: list[str] = field(default_factory=list)

    async def client(self, number: int) -> None:
        async with httpx.AsyncClient(base_url=self.url, headers=HEADERS, timeout=300, trust_env=False) as client:
            while not self.is_over:
                self.ends[await self.one(client, f"What is number {number % 8}?")] += 1

    async def one(self, client: httpx.AsyncClient, question: str) -> str:
        asked = body(question, stream=True, max_tokens=self.tokens, min_tokens=self.tokens)
        start, first, text = time.monotonic(), None, ""
        try:
            async with client.stream("POST", "/v1/chat/completions", json=asked) as reply:
                if reply.status_code != 200:
                    return self._refused(reply.status_code, await reply.aread())
                async for line in reply.aiter_lines():
                    if not line.startswith("data: "):
                        continue
                    if line == "data: [DONE]":
                        self.slowest = max(self.slowest, first or 0.0)
                        self.texts.setdefault(question, set()).add(text)
                        return "complete"
                    event = json.loads(line[6:])
                    if "error" in event:
                        assert event["error"]["code"] == "worker_failed" and text
                        return "error event"
                    first = first or time.monotonic() - start
                    text += event["choices"][0]["delta"].get("content") or ""
        except httpx.HTTPError as error:
            self.strange.append(repr(error))
            return "connection broke"
        return "ended without an end"

    def _refused(self, status: int, content: bytes) -> str:
        try:
            json.loads(content)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            self.strange.append(f"{status} {content[:200]!r}")
            return f"{status} that is not OpenAI's"
        return f"error {status}"


def under_load(url: str, act: Callable[[Load], dict[str, float]], tokens: int = 48, clients: int = CLIENTS) -> Load:
    """Run ``act`` in a thread while clients ask; print the figures."""
    load = Load(url, tokens)

    async def everything() -> dict[str, float]:
        asking = [asyncio.ensure_future(load.client(number)) for number in range(clients)]
        try:
            return await asyncio.to_thread(act, load)
        finally:
            load.is_over = True
            await asyncio.gather(*asking)

    start = time.monotonic()
    times = asyncio.run(everything())
    rate = sum(load.ends.values()) / (time.monotonic() - start)
    told = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in times.items())
    ends = ", ".join(f"{count} {end}" for end, count in sorted(load.ends.items()))
    print(f"\n{clients} clients: {ends}; {rate:.1f} streams/s; slowest first token {load.slowest:.1f} s; {told}")
    return load


def check(load: Load) -> None:
    """Every stream was complete or ended with one clear error, and complete answers to one question are equal."""
    assert set(load.ends) <= {"complete", "error event"}, (load.ends, load.strange)
    assert load.ends["complete"] > load.ends["error event"]
    assert all(len(texts) == 1 for texts in load.texts.values()), load.texts


def some_more(load: Load, count: int) -> None:
    """Wait for so many more complete streams."""
    wanted = load.ends["complete"] + count
    wait_until(lambda: load.ends["complete"] >= wanted, 300, "answers")
