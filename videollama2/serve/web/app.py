"""Builds all web applications but the page on one frame: errors, guards, health checks and metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from videollama2.errors import VideoLlama2Error
from videollama2.serve.settings import Security
from videollama2.serve.web.body import JSONRoute, place_of_fault
from videollama2.serve.web.errors import ApiError, server_fault
from videollama2.serve.web.guard import Gate, RequestGuard, error_response
from videollama2.serve.web.metrics import CONTENT_TYPE, WebMetrics
from videollama2.serve.web.streaming import CLIENT_GONE, ClientGoneError

IGNORED_HEADER = "x-ignored-fields"
"""Header of a reply that lists the request's fields that were ignored."""

EXPOSED_HEADERS = ("x-request-id", IGNORED_HEADER, "retry-after", "www-authenticate")
"""Headers of replies that scripts of other origins may read, in addition to those that they always may."""

OPEN_PATHS = ("/health", "/ready")
BODY_TIMEOUT_S = 30.0
_MESSAGE_LENGTH = 500

_log = logging.getLogger(__name__)


def make_app(
    title: str,
    security: Security,
    *,
    open_paths: Collection[str] = OPEN_PATHS,
    worker_paths: Collection[str] = (),
    ready: Callable[[], str | None] | None = None,
    lifespan: Any = None,
    metrics: WebMetrics | None = None,
    body_timeout_s: float = BODY_TIMEOUT_S,
) -> FastAPI:
    """Make an application with ``/health`` and ``/ready`` that reports errors as OpenAI's error objects.

    It is wrapped in a :class:`~videollama2.serve.web.guard.RequestGuard`. ``state.gate`` of the application knows
    whether it is draining.

    Args:
        open_paths: paths that need no key.
        worker_paths: paths that need the worker token.
        ready: returns what the application is waiting for, or None if it is ready.
        lifespan: FastAPI's lifespan.
        metrics: counts requests, and is served at ``/metrics``.
        body_timeout_s: seconds for a request's body to arrive.
    """
    # FastAPI's documentation pages would load scripts from other hosts.
    app = FastAPI(title=title, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.router.route_class = JSONRoute
    gate = app.state.gate = Gate()
    app.add_middleware(
        RequestGuard,
        security=security,
        gate=gate,
        open_paths=open_paths,
        worker_paths=worker_paths,
        body_timeout_s=body_timeout_s,
        observe=None if metrics is None else metrics.seen,
    )
    if security.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(security.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # clients send their own, as the openai package for browsers its x-stainless-...
            expose_headers=EXPOSED_HEADERS,
        )
    _add_error_handlers(app)
    _add_health(app, gate, ready)
    if metrics is not None:
        _add_metrics(app, metrics)
    return app


def _add_error_handlers(app: FastAPI) -> None:
    app.exception_handler(ApiError)(_on_api_error)
    app.exception_handler(RequestValidationError)(_on_validation_error)
    app.exception_handler(HTTPException)(_on_http_error)
    app.exception_handler(VideoLlama2Error)(_on_own_error)
    app.exception_handler(ClientGoneError)(_on_client_gone)


def _add_health(app: FastAPI, gate: Gate, ready: Callable[[], str | None] | None) -> None:
    @app.get("/health", tags=["health"])
    async def health() -> dict[str, str]:
        """Whether this process is running."""
        return {"status": "ok"}

    @app.get("/ready", tags=["health"], responses={503: {"description": "Not now"}})
    async def is_ready() -> Response:
        """Whether this server is ready for requests."""
        reason = "shutting down" if gate.closing else ready() if ready is not None else None
        if reason is None:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": reason}, 503, {"retry-after": "2"})


def _add_metrics(app: FastAPI, metrics: WebMetrics) -> None:
    @app.get("/metrics", tags=["health"])
    async def expose() -> Response:
        """Return metrics for Prometheus."""
        return Response(await metrics.page(), media_type=CONTENT_TYPE)


# ------------------------------------------------------------------------------------------------------------- errors


async def _on_api_error(request: Request, error: ApiError) -> Response:
    return error_response(error)


async def _on_own_error(request: Request, error: VideoLlama2Error) -> Response:
    _log.error("a request failed", exc_info=error)
    return error_response(server_fault())


async def _on_client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


async def _on_http_error(request: Request, error: HTTPException) -> Response:
    texts = {
        404: "there is nothing at this path",
        405: "this path does not take that method",
        400: "the body cannot be read",
    }
    message = texts.get(error.status_code, f"the request was refused with status {error.status_code}")
    return error_response(ApiError(error.status_code, message), error.headers)


_CODES = {
    "json_invalid": "invalid_json",
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "unsupported_parameter": "unsupported_parameter",
}


async def _on_validation_error(request: Request, error: RequestValidationError) -> Response:
    """Report the first fault, with status 400 as OpenAI does for a malformed request."""
    first = error.errors()[0]
    kind = first.get("type", "")
    if kind == "json_invalid":
        return error_response(ApiError(400, "the body is not valid JSON", code="invalid_json"))
    place = place_of_fault({**first, "loc": first.get("loc", ())[1:]}, error.body)
    message = str(first.get("msg", "the request is malformed"))
    if place:
        message = f"{place}: {message}"
    code = _CODES.get(kind, "invalid_value")
    return error_response(ApiError(400, message[:_MESSAGE_LENGTH], code=code, param=place[:200] or None))
