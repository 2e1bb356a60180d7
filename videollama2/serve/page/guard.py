"""Stands between visitors and Gradio, as ASGI middleware.

It adds the following to Gradio, each against a known class of vulnerabilities of such pages:

* a content security policy that keeps the browser on this origin, even if an answer contains ``![](http://...)``;
* a ban on requests that make the server fetch addresses (``/gradio_api/file=http...``, ``/gradio_api/proxy=...``);
* a check of the name by which the server is addressed (``Host``) and of the page that calls it (``Origin``);
* limits on the size of request bodies, on the time they take to arrive, and on the disk space of uploads;
* the routes ``/health`` and ``/ready``.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

from videollama2.serve.web.app import BODY_TIMEOUT_S
from videollama2.serve.web.guard import MIN_BODY_RATE
from videollama2.serve.web.origins import is_known_name, name_of

API = "/gradio_api"

_POLICY = (
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
)

MAX_EVENT_BYTES = 1 << 20
"""Maximum size of a request that uploads nothing; a question and the state of the widgets take a few kB."""

MAX_FILES_PER_UPLOAD = 8

_MEASURED_EVERY_S = 5.0


class _BodyRefusedError(Exception):
    """Raised while a body is read if it exceeds its limit or takes too long."""


class Guard:
    """ASGI middleware that applies the rules of this module.

    Args:
        app: Gradio's application.
        folder: folder of the uploads.
        max_file_bytes: maximum size of one uploaded file.
        max_folder_bytes: maximum size of all uploads on disk; once reached, uploads are refused until some expire.
        names: host names of this server, besides ``localhost`` and IP addresses.
        embedded_in: origins of pages that may show this one in a frame.
        body_timeout_s: seconds for a request's body to arrive, plus the time for its size at :data:`MIN_BODY_RATE`.
    """

    def __init__(
        self,
        app: Any,
        folder: Path,
        max_file_bytes: int,
        max_folder_bytes: int,
        *,
        names: Collection[str] = (),
        embedded_in: Collection[str] = (),
        body_timeout_s: float = BODY_TIMEOUT_S,
    ) -> None:
        self.app, self.folder = app, folder
        self.names, self.body_timeout_s = tuple(names), body_timeout_s
        self._headers = _headers(embedded_in)
        self.max_file_bytes, self.max_folder_bytes = max_file_bytes, max_folder_bytes
        self._measured, self._size = -_MEASURED_EVERY_S, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        if path in ("/health", "/ready"):
            await self._reply(send, 200, {"status": "ok"})
        elif stranger := self._stranger(scope):
            await self._reply(send, 403, {"detail": f"{stranger}; see --allowed-host"})
        elif _fetches(path):
            await self._reply(send, 403, {"detail": "addresses are not opened here"})
        elif _is_upload(path) and scope["method"] == "POST" and await self._is_full():
            await self._reply(send, 503, {"detail": "The server has no room for uploads now. Try again later."}, 600)
        else:
            await self._bounded(scope, receive, send)

    def _stranger(self, scope: Any) -> str:
        """Return what is wrong with the names in a request's headers, or an empty text if nothing is.

        Browsers send ``Origin`` with every request that changes something, and a page cannot forge it.
        """
        authority = _header(scope, b"host")
        host = name_of(authority)
        # A request without this header comes from no browser, and is accepted.
        if authority and not is_known_name(host, self.names):
            return f"this page is not served under the name {authority[:100]!r}"
        origin = _header(scope, b"origin")
        if origin and name_of(origin) != host and not is_known_name(name_of(origin), self.names):
            return "pages of this origin may not call"
        return ""

    async def _is_full(self) -> bool:
        if monotonic() - self._measured > _MEASURED_EVERY_S:
            self._measured = monotonic()
            self._size = await asyncio.to_thread(_bytes_below, self.folder)
        return self._size > self.max_folder_bytes

    async def _bounded(self, scope: Any, receive: Any, send: Any) -> None:
        bound = MAX_FILES_PER_UPLOAD * self.max_file_bytes if _is_upload(scope["path"]) else MAX_EVENT_BYTES
        taken, refused = 0, _content_length(scope) > bound
        refusal = 413, {"detail": f"a request body may have at most {bound} bytes"}
        if refused:
            await self._reply(send, *refusal)
            return
        start, is_complete = monotonic(), False

        async def bounded_receive() -> Any:
            nonlocal taken, refused, refusal, is_complete
            if is_complete:
                return await receive()  # waits for the client to disconnect
            left = start + self.body_timeout_s + taken / MIN_BODY_RATE - monotonic()
            try:
                message = await asyncio.wait_for(receive(), max(left, 0))
            except asyncio.TimeoutError:
                refused, refusal = True, (408, {"detail": "the body of the request did not arrive in time"})
                raise _BodyRefusedError from None
            taken += len(message.get("body", b""))
            is_complete = not message.get("more_body", False)
            if taken > bound:
                refused = True
                raise _BodyRefusedError
            return message

        async def headed_send(message: Any) -> None:
            if refused:
                return  # Gradio's response is dropped; the refusal is sent below
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *self._headers]}
            await send(message)

        with suppress(_BodyRefusedError):
            await self.app(scope, bounded_receive, headed_send)
        if refused:
            await self._reply(send, *refusal)

    async def _reply(self, send: Any, status: int, body: dict[str, Any], retry_after: int | None = None) -> None:
        data = json.dumps(body).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode()), *self._headers]
        if retry_after is not None:
            headers.append((b"retry-after", str(retry_after).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": data})


def _is_upload(path: str) -> bool:
    """Return whether Gradio will write the body to disk. Uploads to ``/call/upload`` it would keep in memory."""
    return path.rstrip("/").endswith(f"{API}/upload")


def _fetches(path: str) -> bool:
    """Return whether Gradio would fetch an address in the path, whatever prefix a reverse proxy puts in front of it."""
    if "/proxy=" in path:
        return True
    target = path.partition("/file=")[2] or path.partition("/file/")[2]
    return "://" in target or target.startswith(("http:", "https:", "//"))


def _headers(embedded_in: Collection[str]) -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers that every response carries."""
    policy = "; ".join((*_POLICY, " ".join(("frame-ancestors 'self'", *embedded_in))))
    return (
        (b"content-security-policy", policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"permissions-policy", b"camera=(self), microphone=(self), geolocation=()"),
    )


def _header(scope: Any, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _content_length(scope: Any) -> int:
    length = _header(scope, b"content-length")
    return int(length) if length.isdecimal() else 0


def _bytes_below(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except OSError:
                continue  # deleted in the meantime
    return total
