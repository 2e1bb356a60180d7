"""Checks requests before their routes run: ids, keys, limits on bodies, and a gate that closes while draining.

This is plain ASGI middleware, because a stream must notice when its client disconnects, which Starlette's
BaseHTTPMiddleware hides.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import socket
import time
from collections.abc import Callable, Collection, Mapping
from contextvars import ContextVar
from uuid import uuid4

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from videollama2.serve.settings import Security
from videollama2.serve.web.body import LONG_SPANS, BodyScanner
from videollama2.serve.web.errors import ApiError, server_fault, shutting_down, unauthorized
from videollama2.serve.web.origins import is_known_name, name_of

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="-")
"""Id of the request that the current task works for; it appears in log lines."""

BODIES_HELD = 8
"""Number of maximum-size bodies that are held in memory at the same time; beyond it, requests are refused."""

MIN_BODY_RATE = 64 << 10
"""Bytes per second at which a body must arrive after its first seconds."""

_NEVER_PUBLIC = (".localhost", ".local", ".internal", ".lan", ".home.arpa")
"""Domains (RFC 6761, 6762, 8375) in which strangers cannot register names. The same holds for names without a dot."""

_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_LINGER_S, _LINGER_BYTES = 2.0, 16 << 20
_QUIET = {"/metrics", "/receive_heart_beat", "/list_models", "/list_max_model_lens", "/get_worker_address"}
"""Paths that monitoring and other parts ask for all the time: successful requests are logged at DEBUG only."""
_log = logging.getLogger(__name__)


class Gate:
    """Counts running requests, and admits no new ones once it is closed."""

    def __init__(self) -> None:
        self.closing = False
        self.active = 0
        self._idle = asyncio.Event()

    def close(self) -> None:
        """Refuse work from now on. Must be called in the event loop."""
        self.closing = True
        self._notice()

    async def wait_idle(self, timeout_s: float) -> bool:
        """Wait until all running requests have ended; return whether they did so in time."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except asyncio.TimeoutError:
            return False
        return True

    def enter(self) -> None:
        self.active += 1

    def leave(self) -> None:
        self.active -= 1
        self._notice()

    def _notice(self) -> None:
        if self.closing and not self.active:
            self._idle.set()


class RequestGuard:
    """Middleware around the whole application.

    Args:
        open_paths: paths that need no key and are also served while draining.
        worker_paths: paths that need the worker token.
        body_timeout_s: seconds for a body to arrive, plus the time for its size at :data:`MIN_BODY_RATE`.
        observe: called with path, status and seconds of every finished request.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        security: Security,
        gate: Gate,
        open_paths: Collection[str],
        worker_paths: Collection[str],
        body_timeout_s: float,
        observe: Callable[[str, int, float], None] | None = None,
    ) -> None:
        self.app, self.security, self.gate = app, security, gate
        self.open_paths, self.worker_paths = frozenset(open_paths), frozenset(worker_paths)
        self.quiet_paths = self.open_paths | _QUIET
        self.body_timeout_s, self._observe = body_timeout_s, observe
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = _Outgoing(send, _request_id(scope))
        scope.setdefault("state", {})["request_id"] = reply.id
        REQUEST_ID.set(reply.id)
        self.gate.enter()
        start, body = time.monotonic(), _Body(receive, self, _has_no_body(scope))
        try:
            self._check(scope)
            if not body.is_complete:
                await self._read(scope, body)
            await self.app(scope, body.receive, reply.send)
        except _ClientLeftError:
            pass
        except ApiError as error:
            await reply.refuse(error, body)
        except Exception:
            # This is the last place where a fault can become a reply with an id, rather than a closed connection.
            _log.exception("%s %.200r failed", scope["method"], scope["path"])
            if reply.status:
                raise  # the connection is closed, so that the client notices
            await reply.refuse(server_fault(), body)
        finally:
            self._held -= body.size
            self.gate.leave()
            is_usual = scope["path"] in self.quiet_paths and 0 < reply.status < 400
            level = logging.DEBUG if is_usual else logging.INFO
            seconds = time.monotonic() - start
            if self._observe is not None:
                self._observe(scope["path"], reply.status, seconds)
            _log.log(level, "%s %.200r %s %.3f s", scope["method"], scope["path"], reply.status or "left", seconds)

    def _check(self, scope: Scope) -> None:
        path = scope["path"]
        if path in self.open_paths:
            return
        bearer = _bearer(scope)
        if path in self.worker_paths:
            if not self.security.is_worker(bearer):
                raise unauthorized("the worker token of this installation is needed: Authorization: Bearer TOKEN")
        elif not self.security.is_client(bearer):
            raise unauthorized()
        if not self.security.api_keys:
            self._check_names(scope, bearer)
        if self.gate.closing and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            raise shutting_down()

    def _check_names(self, scope: Scope, bearer: str | None) -> None:
        """Keep other people's web pages out. A browser sends no key, so this matters for servers without one.

        Raises:
            ApiError: 403, the page or the host name is not allowed.
        """
        if self.security.worker_token is not None and self.security.is_worker(bearer):
            return  # the caller is a part of this installation
        if not self._is_own_page(scope):
            raise ApiError(403, "web pages of this origin may not call; see --cors-origin", code="forbidden")
        # Browsers send no Origin with a plain read, so the host name that was requested is checked instead.
        host = name_of((_header(scope, b"host") or b"").decode("latin-1"))
        names = {*map(name_of, self.security.cors_origins), socket.gethostname().lower(), *_NEVER_PUBLIC}
        is_reading = scope["method"] in ("GET", "HEAD") and _header(scope, b"origin") is None
        if is_reading and "." in host and "*" not in self.security.cors_origins and not is_known_name(host, names):
            raise ApiError(
                403, "without keys, this server does not answer to this host name; see --api-key-file", code="forbidden"
            )

    def _is_own_page(self, scope: Scope) -> bool:
        """Return whether the request comes from no web page at all, or from one that is allowed.

        CORS alone is not enough: a page whose name was made to resolve to this machine (DNS rebinding) has the same
        origin. Browsers send the origin with every POST; this machine's own pages are recognised by an IP address or
        localhost.
        """
        origin = (_header(scope, b"origin") or b"").decode("latin-1")
        if not origin or {origin, "*"} & set(self.security.cors_origins):
            return True
        return is_known_name(name_of(origin))

    async def _read(self, scope: Scope, body: _Body) -> None:
        """Read the whole body before the application sees anything of the request."""
        length = _header(scope, b"content-length")
        if length is not None and int(length) > self.security.max_body_bytes:
            raise self.too_large()
        if (_header(scope, b"content-encoding") or b"identity").strip().lower() != b"identity":
            raise ApiError(415, "the body must not be compressed", code="unsupported_media_type")
        await body.read(self.body_timeout_s)
        scope["state"][LONG_SPANS] = body.long_spans
        kind = (_header(scope, b"content-type") or b"").split(b";")[0].strip().lower()
        # Other content types could be sent by a foreign web page without permission (CSRF).
        if body.size and kind != b"application/json" and not kind.endswith(b"+json"):
            raise ApiError(415, "the body must be JSON: Content-Type: application/json", code="unsupported_media_type")

    def hold(self, count: int, size: int) -> None:
        """Account for ``count`` more bytes of a body, whose size is now ``size``.

        Raises:
            ApiError: the body is too large, or all bodies together are.
        """
        if size > self.security.max_body_bytes:
            raise self.too_large()
        if self._held + count > BODIES_HELD * self.security.max_body_bytes:
            raise ApiError(
                503,
                "too many large requests at the moment; try again later",
                type="server_error",
                code="overloaded",
                retry_after=2.0,
            )
        self._held += count

    def too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self.security.max_body_bytes} bytes", code="request_too_large")


class _ClientLeftError(Exception):
    """Raised if the client disconnects before its request is complete."""


class _Body:
    """A request's body, which is first read completely and then passed on in one piece."""

    def __init__(self, receive: Receive, guard: RequestGuard, is_empty: bool) -> None:
        self._receive, self._guard = receive, guard
        self._content = io.BytesIO()  # grows without being copied, and returns what it holds without a copy
        self._is_pending = False
        self.is_complete = is_empty
        self.size = 0
        self._scanner = BodyScanner()

    @property
    def long_spans(self) -> list[tuple[int, int]]:
        """See :class:`BodyScanner`."""
        return self._scanner.long_spans

    async def read(self, timeout_s: float) -> None:
        start = time.monotonic()
        while not self.is_complete:
            left = start + timeout_s + self.size / MIN_BODY_RATE - time.monotonic()
            try:
                message = await asyncio.wait_for(self._receive(), max(left, 0))
            except asyncio.TimeoutError:
                raise ApiError(408, "the body of the request did not arrive in time", code="request_timeout") from None
            if message["type"] == "http.disconnect":
                raise _ClientLeftError
            chunk = message.get("body", b"")
            self._guard.hold(len(chunk), self.size + len(chunk))
            self.size += len(chunk)
            self._scanner.feed(chunk)
            self._content.write(chunk)
            self.is_complete = not message.get("more_body", False)
        self._is_pending = True

    async def receive(self) -> Message:
        if self._is_pending:
            self._is_pending = False
            content, self._content = self._content.getvalue(), io.BytesIO()
            return {"type": "http.request", "body": content, "more_body": False}
        return await self._receive()

    async def discard(self) -> None:
        """Read some of the remaining body, because closing the connection at once could lose the reply on its way."""
        deadline, size = time.monotonic() + _LINGER_S, 0
        while not self.is_complete and size < _LINGER_BYTES:
            try:
                message = await asyncio.wait_for(self._receive(), max(deadline - time.monotonic(), 0))
            except asyncio.TimeoutError:
                return
            size += len(message.get("body", b""))
            self.is_complete = message["type"] == "http.disconnect" or not message.get("more_body", False)


class _Outgoing:
    """The response on its way to the client. It always carries the request's id."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send, self.id = send, request_id
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), (b"x-request-id", self.id.encode())]
            message = {**message, "headers": headers}
        await self._send(message)

    async def refuse(self, error: ApiError, body: _Body) -> None:
        response = error_response(error)
        headers = list(response.raw_headers)
        if not body.is_complete:
            headers.append((b"connection", b"close"))
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": response.body, "more_body": True})
        if not body.is_complete and error.status != 408:
            await body.discard()
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})


def _request_id(scope: Scope) -> str:
    """Return the client's request id if it is valid, or else a new one."""
    given = _header(scope, b"x-request-id") or b""
    return given.decode() if _ID.fullmatch(given) else uuid4().hex


def _header(scope: Scope, name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key == name), None)


def _bearer(scope: Scope) -> str | None:
    scheme, _, token = (_header(scope, b"authorization") or b"").partition(b" ")
    return token.strip().decode("latin-1") if scheme.lower() == b"bearer" else None


def _has_no_body(scope: Scope) -> bool:
    length = _header(scope, b"content-length")
    return _header(scope, b"transfer-encoding") is None and (length is None or length == b"0")


def with_request_id(record: logging.LogRecord) -> bool:
    """Add a ``request_id`` to a record, as a filter of log handlers."""
    record.request_id = REQUEST_ID.get()
    return True


def error_response(error: ApiError, headers: Mapping[str, str] | None = None) -> Response:
    """Return the error as a response."""
    # ASCII, because a client's text may hold half a surrogate pair, which UTF-8 cannot encode.
    content = json.dumps(error.body()).encode("ascii")
    return Response(content, error.status, {**(headers or {}), **error.headers()}, "application/json")
