"""A worker's routes: its own status, the published ``\\0``-stream, metrics, and the OpenAI routes over its engine."""

from __future__ import annotations

import asyncio
import mimetypes
from collections.abc import AsyncIterator
from contextlib import aclosing
from time import monotonic
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from pydantic import ValidationError

from videollama2.errors import MediaError
from videollama2.media.kinds import KINDS, VIDEO, kind_of
from videollama2.prompting import ANY_TAG, tagged_parts
from videollama2.serve.api.request import ChatRequest
from videollama2.serve.cluster.protocol import GenerateStream, WorkerStatus, error_frame, frame
from videollama2.serve.settings import Security
from videollama2.serve.untrusted_media.urls import FRAME_LIST_TYPE, decode_base64
from videollama2.serve.web.app import make_app
from videollama2.serve.web.errors import ApiError, shutting_down
from videollama2.serve.web.metrics import CONTENT_TYPE
from videollama2.serve.web.streaming import ClientGoneError, EventStream, while_connected
from videollama2.serve.worker.chat_routes import ChatService, chat_router
from videollama2.serve.worker.metrics import ServeMetrics

if TYPE_CHECKING:
    from videollama2.inference.answer import Answer, Result

_GREEDY_BELOW = 1e-3
"""Published: a temperature up to this takes the most likely token."""


SPEED_TOKENS = 16
"""An answer tells the speed from so many tokens on."""


def speed_of(result: Result) -> float:
    """Tokens per second after the first; 0 where the answer is too short to tell."""
    count = result.completion_tokens
    if count < SPEED_TOKENS:
        return 0.0
    return round((count - 1) / max(result.timings.total - result.timings.first_token, 1e-6), 3)


class WorkerService(ChatService):
    """The chat service of a worker: counts what it does.

    Args: of :class:`ChatService`; ``metrics`` is made here.
    """

    speed = 1.0
    """Tokens per second of one answer alone: the best that was seen, since whatever else runs can only take from it."""
    is_speed_fixed = False
    taken = 0
    """Requests so far, refused ones too."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.metrics = ServeMetrics(self.model_name, self._gauges, self._watch_speed)

    def _watch_speed(self, result: Result) -> None:
        if not self.is_speed_fixed:
            self.speed = max(self.speed, speed_of(result))

    def status(self) -> WorkerStatus:
        """For the controller."""
        load = self.engine.load
        queue = load["decoding"] + load["prefilling"] + load["waiting"] + self.preparing
        frames = self.engine.processor.model_config.num_frames
        return WorkerStatus(model_names=[self.model_name], speed=self.speed, queue_length=queue, num_frames=frames)

    async def _submit(self, request: ChatRequest, count: int) -> list[Answer]:
        start = monotonic()
        self.taken += 1
        try:
            answers = await super()._submit(request, count)
        except ApiError as error:
            self.metrics.rejected(error.code or str(error.status))
            raise
        has_media = any(not isinstance(message.content, str) for message in request.messages)
        for answer in answers:
            self.metrics.watch(answer, monotonic() - start, has_media)
        return answers

    def _gauges(self) -> dict[str, float]:
        load, engine = self.engine.load, self.engine
        running = load["decoding"] + load["prefilling"]
        media, frames = engine.media.cache, self.sandbox.cache
        return {
            "num_requests_running": running,
            "num_requests_waiting": load["waiting"] + self.preparing,
            "kv_cache_usage_perc": min(1.0, running / engine.max_batch),
            "encoder_cache_queries_total": media.hits + media.misses,
            "encoder_cache_hits_total": media.hits,
            "encoder_cache_bytes": media.used_bytes,
            "mm_cache_queries_total": frames.hits + frames.misses,
            "mm_cache_hits_total": frames.hits,
            "mm_cache_bytes": frames.used_bytes,
            "prefix_cache_bytes": engine.prefixes.used_bytes,
            "decoding_processes_started_total": self.sandbox.started,
        }


class FrameStream(EventStream):
    """A ``\\0``-stream on its way."""

    media_type = "application/octet-stream"


def make_worker_app(
    service: WorkerService, security: Security, stream_interval: int = 1, lifespan: Any = None
) -> FastAPI:
    """The application.

    Args:
        stream_interval: a frame of the ``\\0``-stream is sent every so many pieces of text.
    """

    def ready() -> str | None:
        return "the engine has stopped" if service.engine.closed else None

    app = make_app("VideoLLaMA 2 worker", security, ready=ready, lifespan=lifespan)
    app.include_router(chat_router(service))

    @app.post("/worker_get_status")
    async def worker_get_status() -> WorkerStatus:
        if app.state.gate.closing:
            raise shutting_down()
        return service.status()

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.expose(), media_type=CONTENT_TYPE)

    @app.post("/worker_generate_stream")
    async def worker_generate_stream(body: GenerateStream, request: Request) -> Response:
        try:
            return await while_connected(request, _begin(service, body, stream_interval))
        except ApiError as error:
            return Response(error_frame(error), error.status, error.headers(), FrameStream.media_type)
        except ClientGoneError:
            return Response(status_code=499)

    return app


# ------------------------------------------------------------------------------------------------------ the \0-stream


async def _begin(service: WorkerService, body: GenerateStream, interval: int) -> Response:
    answer = await _submit(service, body)
    frames = _frames(service, answer, body.prompt if body.echo else "", interval)
    try:
        # What goes wrong before the first token still has a status of its own, and can be tried elsewhere.
        first = await anext(frames)
    except BaseException:
        await frames.aclose()
        answer.cancel()
        raise
    return FrameStream(first, frames)


async def _submit(service: WorkerService, body: GenerateStream) -> Answer:
    # Beside the event loop: media of megabytes are decoded from base64 to see what they are.
    request = await asyncio.to_thread(chat_request, body, service.model_name)
    try:
        return await service.submit(request)
    except ApiError as error:
        if error.code != "context_length_exceeded":
            raise
        # Published: fewer tokens than were asked for, where no more fit.
        return await service.submit(request.model_copy(update={"max_completion_tokens": None}))


async def _frames(service: WorkerService, answer: Answer, text: str, interval: int) -> AsyncIterator[bytes]:
    """Each with the whole text so far; the last one with usage and reason."""
    begun = False
    try:
        with service.faults():
            count = 0
            async with aclosing(aiter(answer)) as deltas:
                async for delta in deltas:
                    text, count = text + delta, count + 1
                    if count % interval == 0 or not begun:
                        begun = True
                        yield frame({"text": text, "error_code": 0, "usage": None, "finish_reason": None})
            result = answer.outcome()
            if result.finish_reason not in ("stop", "length"):
                raise shutting_down()
        usage = {"prompt_tokens": result.prompt_tokens, "completion_tokens": result.completion_tokens}
        usage["total_tokens"] = sum(usage.values())
        yield frame({"text": text, "error_code": 0, "usage": usage, "finish_reason": result.finish_reason})
    except ApiError as error:
        if not begun:
            raise
        yield error_frame(error)
    finally:
        if not answer.done:
            answer.cancel()


def chat_request(body: GenerateStream, model: str) -> ChatRequest:
    """A request of the ``\\0`` protocol as a chat request.

    ``<image>`` and ``<video>`` in the prompt mark the places of its media, in order, as in an annotation; without such
    marks the media come first, and without media they are text like any other.

    Raises:
        ApiError: media that are neither base64 nor ``data:`` URLs, or whose number is not that of the marks.
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
    }
    try:
        return ChatRequest.model_validate(fields)
    except ValidationError as error:
        raise ApiError(400, str(error.errors()[0]["msg"])[:300], internal_code=40001) from error


def _content(prompt: str, media: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parts of a message from a prompt with marks; a single mark is read as the tag of an annotation."""
    texts = ANY_TAG.split(prompt)
    if len(texts) == 1:
        return [*media, {"type": "text", "text": prompt}]
    if len(texts) != len(media) + 1:
        raise ApiError(
            400,
            f"there are {len(media)} images and {len(texts) - 1} places for them in the prompt",
            param="images",
            internal_code=40001,
        )
    if len(media) == 1:
        return [*media, *tagged_parts(prompt, [media[0]["type"]])[1:]]
    parts = [{"type": "text", "text": texts[0]}]
    for part, text in zip(media, texts[1:], strict=True):
        parts += [part, {"type": "text", "text": text}]
    return [part for part in parts if part.get("text") != ""]


def _media_part(item: str) -> dict[str, Any]:
    """A medium of the ``\\0`` protocol as a part of a chat message.

    Never a path or an address: only what carries its own bytes. What it is, its content tells; the type that a
    ``data:`` URL states counts where the content says nothing known.
    """
    head, comma, text = item.partition(",") if item[:5].lower() == "data:" else ("", "", item)
    stated = head[5:].partition(";")[0].lower()
    if stated == FRAME_LIST_TYPE:
        return _url_part(VIDEO, item)
    try:
        kind = kind_of(decode_base64(text), f"images{mimetypes.guess_extension(stated) or ''}")
    except ValueError as error:
        rule = str(error) if isinstance(error, MediaError) else "images must be base64 or data: URLs"
        raise ApiError(400, rule, param="images", internal_code=40001) from error
    mime = stated if KINDS[kind].fits_mime(stated) else KINDS[kind].mime
    return _url_part(kind, f"data:{mime};base64,{text}")


def _url_part(kind: str, url: str) -> dict[str, Any]:
    name = f"{kind}_url"
    return {"type": name, name: {"url": url}}
