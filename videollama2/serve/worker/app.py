"""Adds a worker's routes: its status, the published ``\\0``-stream, metrics, and the OpenAI routes over its engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from time import monotonic
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response

from videollama2.serve.api.routes import openai_router
from videollama2.serve.cluster.protocol import WorkerStatus
from videollama2.serve.legacy import STREAM_PATH, FrameStream, GenerateRequest, chat_request, error_reply, frame
from videollama2.serve.settings import Security
from videollama2.serve.web.app import make_app
from videollama2.serve.web.errors import ApiError, shutting_down
from videollama2.serve.web.metrics import CONTENT_TYPE
from videollama2.serve.web.streaming import while_connected
from videollama2.serve.worker.handlers import WorkerHandlers
from videollama2.serve.worker.metrics import ServeMetrics
from videollama2.serve.worker.service import ChatService

if TYPE_CHECKING:
    from videollama2.inference.answer import Answer, Result

SPEED_TOKENS = 16
"""Minimum number of tokens for an answer to be used as a measurement of speed."""


def speed_of(result: Result) -> float:
    """Return the tokens per second after the first token; 0 if the answer is too short for a measurement."""
    count = result.completion_tokens
    if count < SPEED_TOKENS:
        return 0.0
    return round((count - 1) / max(result.timings.total - result.timings.first_token, 1e-6), 3)


class WorkerService(ChatService):
    """The chat service of a worker, which also counts its work.

    Args: as for :class:`ChatService`, except ``metrics``, which is created here.
    """

    speed = 1.0
    """Tokens per second of a single answer. This is the best measurement, since other work can only slow an answer."""
    is_speed_fixed = False
    taken = 0
    """Number of requests so far, including refused ones."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.metrics = ServeMetrics(self.model_name, self._gauges, self._watch_speed)

    def _watch_speed(self, result: Result) -> None:
        if not self.is_speed_fixed:
            self.speed = max(self.speed, speed_of(result))

    def status(self) -> WorkerStatus:
        """Return the status for the controller."""
        from videollama2.processing import media_kinds

        load = self.engine.load
        # All work in hand, also what is not in the engine yet: the controller sends the next request to the worker with
        # the shortest queue.
        queue = load["decoding"] + load["prefilling"] + load["waiting"] + self.preparing
        config = self.engine.processor.model_config
        return WorkerStatus(
            model_names=[self.model_name],
            speed=self.speed,
            queue_length=queue,
            num_frames=config.num_frames,
            max_model_len=self.engine.max_length,
            kinds=list(media_kinds(config)),
        )

    async def handed_in(self, work: Coroutine[Any, Any, list[Answer]], kinds: Sequence[str] = ()) -> list[Answer]:
        """See :class:`ChatService`."""
        start = monotonic()
        self.taken += 1
        try:
            answers = await work
        except ApiError as error:
            self.metrics.rejected(error.code or str(error.status))
            raise
        self.metrics.read(kinds)
        for answer in answers:
            self.metrics.watch(answer, monotonic() - start, has_media=bool(kinds))
        return answers

    def _gauges(self) -> dict[str, float]:
        load, caches = self.engine.load, self.engine.caches
        running = load["decoding"] + load["prefilling"]
        frames = self.sandbox.cache
        return {
            "num_requests_running": running,
            "num_requests_waiting": load["waiting"] + self.preparing,
            "kv_cache_usage_perc": min(1.0, running / self.engine.max_batch),
            "encoder_cache_queries_total": caches.media_hits + caches.media_misses,
            "encoder_cache_hits_total": caches.media_hits,
            "encoder_cache_bytes": caches.media_bytes,
            "mm_cache_queries_total": frames.hits + frames.misses,
            "mm_cache_hits_total": frames.hits,
            "mm_cache_bytes": frames.used_size,
            "prefix_cache_bytes": caches.prefix_bytes,
            "decoding_processes_started_total": self.sandbox.started,
        }


def make_worker_app(
    service: WorkerService, security: Security, stream_interval: int = 1, lifespan: Any = None
) -> FastAPI:
    """Return the web application of a worker.

    Args:
        stream_interval: number of pieces of text after which a frame of the ``\\0``-stream is sent.
    """

    def ready() -> str | None:
        return "the engine has stopped" if service.engine.closed else None

    app = make_app("VideoLLaMA 2 worker", security, ready=ready, lifespan=lifespan)
    app.include_router(openai_router(WorkerHandlers(service)))

    @app.post("/worker_get_status")
    async def worker_get_status() -> WorkerStatus:
        if app.state.gate.closing:
            raise shutting_down()
        return service.status()

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.expose(), media_type=CONTENT_TYPE)

    @app.post(STREAM_PATH)
    async def worker_generate_stream(body: GenerateRequest, request: Request) -> Response:
        try:
            return await while_connected(request, FrameStream.begin(_frames(service, body, stream_interval)))
        except ApiError as error:
            return error_reply(error)

    return app


# ------------------------------------------------------------------------------------------------------ the \0-stream


async def _frames(service: WorkerService, body: GenerateRequest, interval: int) -> AsyncGenerator[bytes, None]:
    """Yield frames, each with the whole text so far. The last one also has the usage and the finish reason.

    Raises:
        ApiError: there is no answer, or it broke off.
    """
    # In a thread, since megabytes of base64 are decoded to find out what kind of media they are.
    request = await asyncio.to_thread(chat_request, body, service.model_name)
    # Errors up to here have a status of their own, since the reply begins with the first frame.
    (answer,) = await service.submit(request)
    text, count = body.prompt if body.echo else "", 0
    try:
        with service.faults():
            async with aclosing(aiter(answer)) as deltas:
                async for delta in deltas:
                    # A frame holds the whole text so far, as clients of this protocol replace what they show. That is
                    # quadratic in the length, hence the interval.
                    text, count = text + delta, count + 1
                    if count % interval == 0 or count == 1:
                        yield frame({"text": text, "error_code": 0, "usage": None, "finish_reason": None})
            result = answer.result()
        if result.finish_reason not in ("stop", "length"):
            raise shutting_down()
        usage = {"prompt_tokens": result.prompt_tokens, "completion_tokens": result.completion_tokens}
        usage["total_tokens"] = sum(usage.values())
        yield frame({"text": text, "error_code": 0, "usage": usage, "finish_reason": result.finish_reason})
    finally:
        if not answer.done:
            answer.cancel()
