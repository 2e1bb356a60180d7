"""Speaks the ``\\0`` protocol (FastChat's) of the published workers and controllers, for existing clients.

A request to ``/worker_generate_stream`` holds a prompt and its media. The reply is a sequence of JSON objects, each
with the whole text so far and followed by a zero byte. This module has the parts that workers and controllers share. A
worker answers such requests as chat requests (:func:`chat_request`); a controller forwards the replies.
"""

from __future__ import annotations

import json
import mimetypes
from typing import Annotated, Any

from fastapi import Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from videollama2.errors import MediaError
from videollama2.media.kinds import KINDS, VIDEO, kind_of
from videollama2.prompting import ANY_TAG, tagged_parts
from videollama2.serve.api.fields import MediaText
from videollama2.serve.api.request import ChatRequest
from videollama2.serve.long_text import Text, beginning, pieces, with_head
from videollama2.serve.untrusted_media.urls import FRAME_LIST_TYPE, decode_base64
from videollama2.serve.web.errors import ApiError
from videollama2.serve.web.streaming import Stream

STREAM_PATH = "/worker_generate_stream"
SEPARATOR = b"\0"

_MAX_HEAD = 1024
"""Maximum number of characters of a ``data:`` URL in front of its data."""

_GREEDY_BELOW = 1e-3
"""Published value: below this temperature, the most likely token is taken."""


class GenerateRequest(BaseModel):
    """The request body: a question with its media, as base64 or ``data:`` URLs, in the order of the prompt.

    With ``echo``, the text begins with the prompt, as in the published worker. ``images`` may hold sounds as well; with
    ``use_audio``, an extension, the sound of videos is used too.
    """

    # Other implementations send additional fields, which are ignored.
    model_config = ConfigDict(extra="ignore")

    model: Annotated[str, StringConstraints(max_length=512)] = ""
    prompt: str
    images: list[MediaText] = Field(default=[], max_length=64)
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    max_new_tokens: int = Field(256, ge=1, le=10**6)
    stop: str | list[str] | None = None
    echo: bool = True
    use_audio: bool = False


def frame(content: dict[str, Any]) -> bytes:
    """Return one object of the stream as bytes."""
    return json.dumps(content).encode("ascii") + SEPARATOR


def error_frame(error: ApiError) -> bytes:
    """Return the last object of a stream that failed."""
    return frame({"text": error.message, "error_code": error.internal_code, "message": error.message})


class FrameStream(Stream):
    """A stream of such objects as a reply to the client."""

    media_type = "application/octet-stream"

    @staticmethod
    def render_error(error: ApiError) -> bytes:
        return error_frame(error)


def error_reply(error: ApiError) -> Response:
    """Return the reply if no stream began: one object of the stream, with an HTTP status for other clients."""
    return Response(error_frame(error), error.status, error.headers(), FrameStream.media_type)


def chat_request(body: GenerateRequest, model: str) -> ChatRequest:
    """Convert a request of the ``\\0`` protocol into a chat request.

    ``<image>``, ``<video>`` and ``<audio>`` in the prompt mark the positions of its media, in order, as in an
    annotation. Without such marks the media come first; without media the marks are ordinary text.

    Raises:
        ApiError: media are neither base64 nor ``data:`` URLs, or do not match the number of marks.
    """
    content: Any = body.prompt
    if body.images:
        content = _content(body.prompt, [_media_part(item) for item in body.images])
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    fields = {
        "model": body.model or model,
        "messages": [{"role": "user", "content": content}],
        "max_completion_tokens": body.max_new_tokens,
        "temperature": 0.0 if body.temperature <= _GREEDY_BELOW else body.temperature,
        "top_p": body.top_p,
        "stop": [text for text in stops if text] or None,
        "stream": True,
        "mm_processor_kwargs": {"use_audio_in_video": True} if body.use_audio else None,
    }
    try:
        return ChatRequest.model_validate(fields)
    except ValidationError as error:
        raise ApiError(400, str(error.errors()[0]["msg"])[:300], internal_code=40001) from error


def _content(prompt: str, media: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Split a prompt with marks into the parts of a message; a single mark is read as the tag of an annotation."""
    texts = ANY_TAG.split(prompt)
    if len(texts) == 1:
        return [*media, {"type": "text", "text": prompt}]
    if len(texts) != len(media) + 1:
        raise ApiError(
            400,
            f"there are {len(media)} media and {len(texts) - 1} places for them in the prompt",
            param="images",
            internal_code=40001,
        )
    if len(media) == 1:
        return [*media, *tagged_parts(prompt, [media[0]["type"]])[1:]]
    parts = [{"type": "text", "text": texts[0]}]
    for part, text in zip(media, texts[1:], strict=True):
        parts += [part, {"type": "text", "text": text}]
    return [part for part in parts if part.get("text") != ""]


def _media_part(item: Text) -> dict[str, Any]:
    """Convert a medium of the ``\\0`` protocol into a part of a chat message.

    Only embedded data is accepted, never a path or a URL to fetch. The kind is determined from the content; the type
    that a ``data:`` URL states is used only if the content is not recognised.
    """
    start = beginning(item, _MAX_HEAD)
    head, comma, _ = start.partition(",") if start[:5].lower() == "data:" else ("", "", "")
    stated = head[5:].partition(";")[0].lower()
    if stated == FRAME_LIST_TYPE:
        return _url_part(VIDEO, item)
    try:
        content = decode_base64(pieces(item, len(head + comma)))
        kind = kind_of(content, f"images{mimetypes.guess_extension(stated) or ''}")
    except ValueError as error:
        rule = str(error) if isinstance(error, MediaError) else "images must be base64 or data: URLs"
        raise ApiError(400, rule, param="images", internal_code=40001) from error
    mime = stated if KINDS[kind].fits_mime(stated) else KINDS[kind].mime
    return _url_part(kind, with_head(item, len(head + comma), f"data:{mime};base64,"))


def _url_part(kind: str, url: Text) -> dict[str, Any]:
    name = f"{kind}_url"
    return {"type": name, name: {"url": url}}
