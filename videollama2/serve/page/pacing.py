"""Sets the pace at which a growing answer is drawn, and stops it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

INTERVAL_S = 0.05
"""Seconds between two updates of a growing answer; text that arrives in between is drawn together."""


async def paced(
    pieces: AsyncGenerator[str, None], stop: asyncio.Event, interval: float = INTERVAL_S
) -> AsyncGenerator[str, None]:
    """Yield the text so far at most once per interval, until it ends or ``stop`` is set; then close ``pieces``.

    Raises:
        Any error that ``pieces`` raises, after the text that came before it.
    """
    found: list[str] = []

    async def collect() -> None:
        async with aclosing(pieces):
            async for piece in pieces:
                found.append(piece)

    # One task collects the pieces and another one waits for the stop. The loop wakes up when either is done, or after
    # an interval, and yields the text if it has grown since the last time.
    collecting, stopping = asyncio.create_task(collect()), asyncio.create_task(stop.wait())
    drawn = 0
    try:
        while not collecting.done() and not stop.is_set():
            await asyncio.wait({collecting, stopping}, timeout=interval, return_when=asyncio.FIRST_COMPLETED)
            if len(found) > drawn:
                drawn = len(found)
                yield "".join(found)
    finally:
        stopping.cancel()
        if not collecting.done():
            collecting.cancel()
            await asyncio.wait({collecting})
    if len(found) > drawn:
        yield "".join(found)
    if not collecting.cancelled():
        collecting.result()
