"""ASGI middleware between visitors and Gradio.

What it adds to Gradio, each against a class of vulnerability known from this field:

* a content security policy that keeps the browser on this origin, whatever stands in an answer (``![](http://...)``);
* no fetching of addresses for visitors (``/gradio_api/file=http...``, ``/gradio_api/proxy=...``);
* a bound on request bodies and on what uploads take on the disk;
* ``/health`` and ``/ready``.
"""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

API = "/gradio_api"

_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",  # Gradio's own page needs these
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    )
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"permissions-policy", b"camera=(self), microphone=(self), geolocation=()"),
)

MAX_EVENT_BYTES = 1 << 20
"""Of a request that uploads nothing: a question and the state of the widgets are some kB."""

MAX_FILES_PER_UPLOAD = 8

_MEASURED_EVERY_S = 5.0


class _BodyTooLargeError(Exception):
    """A body went beyond its bound while it was read."""


class Guard:
    """ASGI middleware, see the module.

    Args:
        app: Gradio's.
        folder: of uploads.
        max_file_bytes: of one uploaded file.
        max_folder_bytes: of all uploads on the disk; beyond it uploads are refused until old ones are deleted.
    """

    def __init__(self, app: Any, folder: Path, max_file_bytes: int, max_folder_bytes: int) -> None:
        self.app, self.folder = app, folder
        self.max_file_bytes, self.max_folder_bytes = max_file_bytes, max_folder_bytes
        self._measured, self._size = -_MEASURED_EVERY_S, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        if path in ("/health", "/ready"):
            await _reply(send, 200, {"status": "ok"})
        elif _fetches(path):
            await _reply(send, 403, {"detail": "addresses are not opened here"})
        elif _is_upload(path) and scope["method"] == "POST" and await self._is_full():
            await _reply(send, 503, {"detail": "The server has no room for uploads now. Try again later."}, 600)
        else:
            await self._bounded(scope, receive, send)

    async def _is_full(self) -> bool:
        if monotonic() - self._measured > _MEASURED_EVERY_S:
            self._measured = monotonic()
            self._size = await asyncio.to_thread(_bytes_below, self.folder)
        return self._size > self.max_folder_bytes

    async def _bounded(self, scope: Any, receive: Any, send: Any) -> None:
        bound = MAX_FILES_PER_UPLOAD * self.max_file_bytes if _is_upload(scope["path"]) else MAX_EVENT_BYTES
        taken, refused = 0, _content_length(scope) > bound
        refusal = {"detail": f"a request body may have at most {bound} bytes"}
        if refused:
            await _reply(send, 413, refusal)
            return

        async def bounded_receive() -> Any:
            nonlocal taken, refused
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > bound:
                refused = True
                raise _BodyTooLargeError
            return message

        async def headed_send(message: Any) -> None:
            if refused:
                return  # whatever Gradio makes of it, the visitor is told below
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        with suppress(_BodyTooLargeError):
            await self.app(scope, bounded_receive, headed_send)
        if refused:
            await _reply(send, 413, refusal)


def _is_upload(path: str) -> bool:
    """Whether files come, which Gradio writes to the disk; of ``/call/upload`` it would keep the body in memory."""
    return path.rstrip("/").endswith(f"{API}/upload")


def _fetches(path: str) -> bool:
    """Whether Gradio would open an address that stands in the path, behind whatever a reverse proxy puts before it."""
    if "/proxy=" in path:
        return True
    target = path.partition("/file=")[2] or path.partition("/file/")[2]
    return "://" in target or target.startswith(("http:", "https:", "//"))


def _content_length(scope: Any) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


async def _reply(send: Any, status: int, body: dict[str, Any], retry_after: int | None = None) -> None:
    data = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode()), *_HEADERS]
    if retry_after is not None:
        headers.append((b"retry-after", str(retry_after).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


def _bytes_below(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except OSError:
                continue  # deleted meanwhile
    return total
