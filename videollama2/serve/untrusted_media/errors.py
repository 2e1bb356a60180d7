"""Defines errors about a client's media. All their texts are written by this package and never quote a library."""

from __future__ import annotations

from videollama2.errors import MediaError


class RefusedMediaError(MediaError):
    """Raised when a medium is not fetched, opened or decoded. The text is safe to show to anyone.

    Args:
        message: text for the client. It names the rule, and no path, address or library text that the client did not
            send.
        code: error code for programs, e.g. ``invalid_media``, ``media_not_allowed``, ``media_too_large``,
            ``media_timeout``.
        status: HTTP status code.
        detail: further information for the server's log only.
    """

    def __init__(self, message: str, code: str = "invalid_media", status: int = 400, detail: str = "") -> None:
        super().__init__(message)
        self.code, self.status, self.detail = code, status, detail
