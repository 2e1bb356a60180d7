"""Defines errors about a client's media. All their texts are written by this package and never quote a library."""

from __future__ import annotations

from typing import Any

from videollama2.errors import MediaError
from videollama2.media.kinds import AUDIO

_MESSAGES = {
    "unreadable": "the {kind} cannot be read: it is damaged, holds no pictures, is not of an accepted format, or is "
    "larger than {pixels:,} pixels",
    "unheard": "the {kind} cannot be heard: it is damaged, or not of an accepted format",
    "memory": "decoding the {kind} takes more memory than one medium may use",
    "timeout": "decoding the {kind} took longer than the {seconds:g} s that one medium may take",
    "crash": "the {kind} cannot be decoded",
}
_CODES = {"memory": "media_too_large", "timeout": "media_timeout"}


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


def decoding_refusal(kind: str, reason: str, policy: Any, detail: str = "") -> RefusedMediaError:
    """Return the error for a medium that could not be decoded.

    Args:
        kind: ``image``, ``video`` or ``audio``.
        reason: ``unreadable``, ``memory``, ``timeout`` or ``crash``; any other word counts as ``crash``.
        policy: ``max_pixels`` and ``decode_timeout_s`` of :class:`videollama2.serve.settings.MediaPolicy`.
    """
    if reason == "unreadable" and kind == AUDIO:
        reason = "unheard"
    message = _MESSAGES.get(reason, _MESSAGES["crash"])
    text = message.format(kind=kind, pixels=policy.max_pixels, seconds=policy.decode_timeout_s)
    return RefusedMediaError(text, _CODES.get(reason, "invalid_media"), detail=detail)
