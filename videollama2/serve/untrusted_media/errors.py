"""Errors about a client's media. Their texts are written here alone and never quote a library."""

from __future__ import annotations

from videollama2.errors import MediaError


class RefusedMediaError(MediaError):
    """A medium is not fetched, opened or decoded. The text may be shown to anybody.

    Args:
        message: for the client: names the rule, and no path, address or library text that the client did not send.
        code: for programs, e.g. ``invalid_media``, ``media_not_allowed``, ``media_too_large``, ``media_timeout``.
        status: of HTTP.
        detail: for the log alone.
    """

    def __init__(self, message: str, code: str = "invalid_media", status: int = 400, detail: str = "") -> None:
        super().__init__(message)
        self.code, self.status, self.detail = code, status, detail
