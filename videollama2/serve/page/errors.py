"""Explains errors to visitors of the page: what went wrong, and what they can do about it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from uuid import uuid4

from videollama2.errors import ConfigError, EngineError, MediaError, PromptError, QueueFullError, RequestTooLongError
from videollama2.serve.untrusted_media.errors import RefusedMediaError
from videollama2.serve.web.errors import ApiError

NO_MODEL = (
    "No model is running at the moment. Wait a minute and try again; if this server is yours, start a worker: "
    "python -m videollama2.serve.model_worker --model-path videollama2-tiny --worker http://localhost:40000"
)
BUSY = "Too many questions are waiting. Wait a few seconds, then press Regenerate."
BUSY_DRAWING = "Many videos are being read at the moment. Ask your question, or choose the file again in a few seconds."
TOO_LONG = (
    "The conversation with its frames is longer than this model can read. Press Clear and start again, or set fewer "
    "frames under Advanced."
)
UNREACHABLE = (
    "The page cannot reach the server with the models. Wait a minute and press Regenerate; if this server is yours, "
    "check whether the controller is running."
)
GONE = "This model is not running any more. Choose another one and press Regenerate."
TOO_MANY = "The conversation has more videos, pictures and sounds than the server takes. Press Clear and start again."
TOO_LARGE = (
    "The files of this conversation are larger than the server takes at once. Press Clear and start "
    "again, with smaller or shorter files."
)
BROKE_OFF = "The server that was answering stopped. Press Regenerate to ask once more."
NOT_TAKEN = "This model cannot take such a file. Choose another model, or another use of videos."
EMPTY_ANSWER = "The model had nothing to say. Ask in other words, or press Regenerate."

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Explained:
    """The text to show. ``media_failed`` says that an image or video caused the error."""

    text: str
    media_failed: bool = False


def explain(error: Exception) -> Explained:
    """Explain an error. An unknown one is logged under a reference, which is shown to the visitor."""
    if isinstance(error, MediaError):
        return Explained(bad_media(error), media_failed=True)
    if isinstance(error, ApiError):
        return _explain_api(error)
    if isinstance(error, QueueFullError):
        return Explained(BUSY)
    if isinstance(error, RequestTooLongError):
        return Explained(TOO_LONG)
    if isinstance(error, (PromptError, ConfigError)):
        return Explained(f"The question cannot be asked like this: {error}.")
    return unexpected(error)


def bad_media(error: MediaError) -> str:
    """Explain an error about a file. Only texts written for clients are repeated; others may name server paths."""
    reason = str(error) if isinstance(error, RefusedMediaError) else "the file cannot be read"
    return (
        f"This file cannot be used: {reason}. Try another file (mp4, webm, mov, gif, jpg, png, wav, mp3, flac), a "
        "shorter one, or another clip range under Advanced."
    )


def unexpected(error: Exception) -> Explained:
    """Explain an unexpected error, or one that the visitor can do nothing about."""
    reference = uuid4().hex[:8]
    level = logging.WARNING if isinstance(error, EngineError) else logging.ERROR
    _log.log(level, "reference %s: %s", reference, error, exc_info=error)
    return Explained(
        f"Something went wrong on the server. Press Regenerate to try again; if it happens again, tell the operator "
        f"this reference: {reference}."
    )


_KNOWN = {
    "no_worker": NO_MODEL,
    "model_not_found": GONE,
    "context_length_exceeded": TOO_LONG,
    "too_many_media": TOO_MANY,
    "request_too_large": TOO_LARGE,
    "unreachable": UNREACHABLE,
    "worker_failed": BROKE_OFF,
    "worker_timeout": BROKE_OFF,
    "shutting_down": BROKE_OFF,
}


def _explain_api(error: ApiError) -> Explained:
    code = error.code or ""
    if code in _KNOWN:
        return Explained(_KNOWN[code])
    if code == "modality_not_supported":
        return Explained(f"{NOT_TAKEN} ({error.message.rstrip('.')}.)", media_failed=True)
    if "media" in code:
        return Explained(bad_media(RefusedMediaError(error.message.rstrip("."))), media_failed=True)
    if error.status in (429, 503):
        return Explained(BUSY)
    if error.status in (400, 422):
        return Explained(f"The question cannot be asked like this: {error.message.rstrip('.')}.")
    return unexpected(error)
