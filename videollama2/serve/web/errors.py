"""Defines errors that are reported to clients, with an HTTP status and OpenAI's error object.

The texts are public. They name the rule and what the client sent, never a path, an address or a library's message.
"""

from __future__ import annotations

from typing import Any

INTERNAL_CODES = {
    400: 40001,
    401: 40101,
    403: 40101,
    404: 40301,
    408: 40001,
    413: 40001,
    415: 40001,
    422: 40001,
    429: 42903,
    500: 50001,
    502: 50001,
    503: 50005,
    504: 50006,
}
"""FastChat's error numbers by status, used in the ``\\0`` protocol if an error has no number of its own."""


class ApiError(Exception):
    """A request is refused or has failed.

    Args:
        status: HTTP status code.
        message: text for the client.
        type: OpenAI's type of error, e.g. ``invalid_request_error``, ``server_error``.
        code: error code for programs, e.g. ``model_not_found``.
        param: path of the faulty field.
        retry_after: seconds after which to try again.
        internal_code: number in the ``\\0`` protocol; 0 derives it from the status.
    """

    def __init__(
        self,
        status: int,
        message: str,
        type: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        internal_code: int = 0,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.type, self.code, self.param = status, message, type, code, param
        self.retry_after = retry_after
        self.internal_code = internal_code or INTERNAL_CODES.get(status, 50001 if status >= 500 else 40001)

    def body(self) -> dict[str, Any]:
        """Return OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Return ``Retry-After`` in whole seconds if set, and the challenge of a 401 (RFC 9110, 11.6.1)."""
        found = {} if self.retry_after is None else {"retry-after": str(max(1, round(self.retry_after)))}
        return {**found, "www-authenticate": "Bearer"} if self.status == 401 else found

    @classmethod
    def of_body(cls, status: int, body: Any, retry_after: float | None = None) -> ApiError:
        """Rebuild the error that another part of this software sent. Any body is accepted."""
        fields = body.get("error") if isinstance(body, dict) else None
        fields = fields if isinstance(fields, dict) else {}
        text = {name: value for name, value in fields.items() if isinstance(value, str)}
        return cls(
            status,
            text.get("message", "") or f"the request failed with status {status}",
            text.get("type", "server_error" if status >= 500 else "invalid_request_error"),
            text.get("code"),
            text.get("param"),
            retry_after,
        )


def unauthorized(message: str = "a valid key is needed: Authorization: Bearer KEY") -> ApiError:
    """Return error 401, for a missing or wrong key."""
    return ApiError(401, message, code="invalid_api_key", internal_code=40101)


def model_not_found(model: str) -> ApiError:
    """Return error 404, for a model that no worker has."""
    name = model if len(model) <= 64 else model[:64] + "..."
    return ApiError(
        404, f"The model {name!r} does not exist", code="model_not_found", param="model", internal_code=40301
    )


def no_worker(model: str, retry_after: float = 5.0) -> ApiError:
    """Return error 503, for a model whose workers are unavailable at the moment."""
    name = model if len(model) <= 64 else model[:64] + "..."
    return ApiError(
        503,
        f"no worker serves the model {name!r} at the moment",
        type="server_error",
        code="no_worker",
        retry_after=retry_after,
        internal_code=50005,
    )


def shutting_down(retry_after: float = 2.0) -> ApiError:
    """Return error 503, for requests that arrive while a server drains."""
    return ApiError(
        503, "this server is shutting down", type="server_error", code="shutting_down", retry_after=retry_after
    )


def server_fault() -> ApiError:
    """Return error 500, for faults whose details are only in the log."""
    return ApiError(500, "the server failed to answer this request", type="server_error", internal_code=50001)


def worker_failed(message: str = "the worker broke off before the answer was complete") -> ApiError:
    """Return error 502, for an answer that broke off and cannot be restarted."""
    return ApiError(502, message, type="server_error", code="worker_failed", internal_code=50001)


def worker_timeout(message: str = "the worker did not answer in time") -> ApiError:
    """Return error 504, for a worker that took too long."""
    return ApiError(504, message, type="server_error", code="worker_timeout", internal_code=50006)
