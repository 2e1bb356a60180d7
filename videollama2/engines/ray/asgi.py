"""Calls a web application in this process, without a network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from starlette.types import ASGIApp, Message

Head = tuple[int, dict[str, str]]
"""HTTP status and headers."""


async def post(
    app: ASGIApp, path: str, content: bytes, headers: Mapping[str, str]
) -> AsyncGenerator[Head | bytes, None]:
    """Post JSON to an application; yield the head of its reply, then the body as it arrives.

    Bytes that arrive while the caller is busy are yielded together. Closing the generator cancels the request.
    """
    replies: asyncio.Queue[Message | None] = asyncio.Queue()
    requests: asyncio.Queue[Message] = asyncio.Queue()
    requests.put_nowait({"type": "http.request", "body": content, "more_body": False})

    async def send(message: Message) -> None:
        replies.put_nowait(message)

    async def run() -> None:
        try:
            await app(_scope(path, content, headers), requests.get, send)
        finally:
            replies.put_nowait(None)

    running = asyncio.ensure_future(run())
    try:
        head = await replies.get()
        if head is not None:
            names = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.get("headers", ())}
            yield head["status"], names
        while head is not None and (message := await replies.get()) is not None:
            body = [message.get("body", b"")]
            while not replies.empty() and (message := replies.get_nowait()) is not None:
                body.append(message.get("body", b""))
            if whole := b"".join(body):
                yield whole
            if message is None:
                break
        await running  # raises the error of an application that broke off
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def _scope(path: str, content: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    sent = {"content-type": "application/json", "content-length": str(len(content)), **headers}
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in sent.items()],
        "client": None,
        "server": None,
        "state": {},
    }
