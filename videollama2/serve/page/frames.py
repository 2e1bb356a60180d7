"""Shows the media beside a question: their options, and the strip of frames that the model will see."""

from __future__ import annotations

import asyncio
from typing import Any

from videollama2.errors import MediaError, VideoLlama2Error
from videollama2.media.kinds import AUDIO, VIDEO
from videollama2.serve.page import errors as page_errors
from videollama2.serve.page.backends import PageBackend, kind_of_upload
from videollama2.serve.page.conversation import Medium
from videollama2.serve.page.layout import HEAR_ONLY, SEE_AND_HEAR, Widgets
from videollama2.serve.page.notices import alert
from videollama2.serve.page.thumbnails import EMPTY, Thumbnails
from videollama2.serve.untrusted_media.errors import RefusedMediaError
from videollama2.serve.web.errors import ApiError

Values = dict[Any, Any]
"""Widgets of the page, mapped to their values at the time of an event."""

_MAX_DRAWING = 32
"""Maximum number of visitors whose frames are drawn at the same time."""


class FrameStrips:
    """Draws the frames of the visitors' media.

    Args:
        backend: back end whose readers decode media as its models see them.
        widgets: widgets of the page.
        max_media: maximum number of media of one question.
    """

    def __init__(self, backend: PageBackend, widgets: Widgets, max_media: int) -> None:
        self.backend, self.widgets, self.max_media = backend, widgets, max_media
        self._thumbnails: dict[int, Thumbnails] = {}
        self._drawing = 0

    def media(self, values: Values) -> tuple[Medium, ...]:
        """Return the files beside the question, with the current options."""
        w = self.widgets
        options = {
            "num_frames": int(values[w.num_frames] or 0) or None,
            "start": seconds_of("Clip from", values[w.start]),
            "end": seconds_of("Clip to", values[w.end]),
        }
        options = {name: value for name, value in options.items() if value is not None}
        found = []
        for path in (values[w.files] or ())[: self.max_media]:
            found.append(_medium(str(path), options, values[w.senses]))
        return tuple(found)

    async def show_frames(self, values: Values) -> str:
        """Return HTML of the frames that the model will see, or of the last question's if no files are attached."""
        if self._drawing >= _MAX_DRAWING:
            return alert(page_errors.BUSY_DRAWING)
        self._drawing += 1
        try:
            return await self._frames(values)
        except MediaError as error:
            return alert(page_errors.bad_media(error))
        except (VideoLlama2Error, ApiError) as error:
            return alert(page_errors.explain(error).text)
        finally:
            self._drawing -= 1

    async def _frames(self, values: Values) -> str:
        w = self.widgets
        model, conversation = values[w.model], values[w.conversation]
        media = await asyncio.to_thread(self.media, values)
        if not media:
            given = [turn.media for turn in conversation.turns if turn.media and not turn.media_failed]
            media = given[-1] if given else ()
        if not media or not model:
            return EMPTY
        default = await self.backend.num_frames(model)
        thumbnails = self._thumbnails_of(model)
        kinds = await self.backend.kinds(model)
        refused = next((medium.kind for medium in media if medium.kind not in kinds), None)
        if refused is not None:
            return alert(page_errors.NOT_TAKEN)
        return "".join([await thumbnails.strip(medium, default) for medium in media])

    def _thumbnails_of(self, model: str) -> Thumbnails:
        reader = self.backend.reader(model)
        return self._thumbnails.setdefault(id(reader), Thumbnails(reader))


def _medium(path: str, options: dict[str, Any], senses: str) -> Medium:
    """Return an uploaded file with its options.

    Args:
        options: the visitor's options for videos.
        senses: what a video is used for, one of :data:`videollama2.serve.page.layout.SENSES`.
    """
    kind = kind_of_upload(path)
    bounds = {name: value for name, value in options.items() if name != "num_frames"}
    if kind == AUDIO:
        return Medium(AUDIO, path, bounds)
    if kind != VIDEO:
        return Medium(kind, path)
    if senses == HEAR_ONLY:
        return Medium(AUDIO, path, {**bounds, "of_video": True})
    return Medium(VIDEO, path, {**options, "use_audio": True} if senses == SEE_AND_HEAR else options)


def seconds_of(label: str, text: str | None) -> float | None:
    """Return the time entered in a box, or None if the box is empty.

    Raises:
        RefusedMediaError: the text is not a number of seconds.
    """
    if not (text or "").strip():
        return None
    try:
        seconds = float(str(text).strip().replace(",", "."))
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise RefusedMediaError(f"{label}: {text!r} is not a number of seconds")
    return seconds
