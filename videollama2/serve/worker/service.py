"""Answers chat requests with one engine: checks them, reads their media and submits them."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from videollama2.errors import (
    ConfigError,
    EngineError,
    MediaError,
    PromptError,
    QueueFullError,
    RequestTooLongError,
    VideoLlama2Error,
)
from videollama2.prompting import check_last, check_messages
from videollama2.prompting.template import template_variables
from videollama2.serve.api.messages import (
    CHARACTERS_PER_TOKEN,
    TextGuard,
    engine_messages,
    kinds_asked,
)
from videollama2.serve.api.request import ChatRequest
from videollama2.serve.api.sampling import AnswerForm
from videollama2.serve.untrusted_media.fetch import MediaFetcher
from videollama2.serve.untrusted_media.parts import DecodedPart
from videollama2.serve.untrusted_media.sandbox import Sandbox
from videollama2.serve.web.errors import ApiError, model_not_found, server_fault, shutting_down
from videollama2.serve.worker.budget import Budget, WaitingBudget
from videollama2.serve.worker.media import MediaDesk, with_media

if TYPE_CHECKING:
    from videollama2.inference.answer import Answer
    from videollama2.inference.back_end import BackEnd
    from videollama2.inference.structure import Structure

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChatLimits:
    """Limits on the resources that all requests together may use.

    Attributes:
        max_requests: maximum number of requests whose media are being read or that wait in the engine.
        max_raw_bytes: bytes of encoded media that are being fetched and decoded. Further media wait.
        max_frame_bytes: bytes of decoded media of running answers. Further requests are refused for the moment.
        retry_after_s: seconds after which a refused client is asked to retry.
    """

    max_requests: int = 256
    max_raw_bytes: int = 2 << 30
    max_frame_bytes: int = 1 << 30
    retry_after_s: float = 2.0


class ChatService:
    """Answers chat requests with one engine.

    Args:
        engine: an engine with a thread of its own.
        model_name: the name by which clients call the model.
        policy: :class:`videollama2.serve.settings.MediaPolicy`.
        sandbox: decodes media; created with :meth:`~videollama2.serve.untrusted_media.sandbox.Sandbox.of` the
            processor.
        limits: limits on the resources of all requests together.
        log_prompts: whether to write questions to the log.
        fetcher: fetches media; None creates a fetcher that applies ``policy``.
    """

    def __init__(
        self,
        engine: BackEnd,
        model_name: str,
        policy: Any,
        sandbox: Sandbox,
        limits: ChatLimits | None = None,
        log_prompts: bool = False,
        fetcher: MediaFetcher | None = None,
    ) -> None:
        self.engine, self.model_name, self.policy, self.sandbox = engine, model_name, policy, sandbox
        self.limits, self.log_prompts = limits or ChatLimits(), log_prompts
        self.closing = False
        """Whether new requests are refused; running ones are finished."""
        self.preparing = 0
        """Number of requests whose media are being fetched and decoded."""
        config = engine.processor.model_config
        self.guard = TextGuard(
            engine.processor.tokenizer, config.placeholder_ids, CHARACTERS_PER_TOKEN * engine.max_length
        )
        self.media = MediaDesk(
            config,
            fetcher or MediaFetcher(policy),
            sandbox,
            WaitingBudget(self.limits.max_raw_bytes),
            self.limits.retry_after_s,
        )
        self.frames = Budget(self.limits.max_frame_bytes)

    @property
    def tokenizer(self) -> Any:
        return self.engine.processor.tokenizer

    async def submit(self, request: ChatRequest, count: int = 1) -> list[Answer]:
        """Submit a chat request for ``count`` answers. Cancelling this call also stops the reading of media.

        Raises:
            ApiError: the request is refused, or cannot be answered at the moment.
        """
        return await self.handed_in(self._chat(request, count), kinds_asked(request))

    async def handed_in(self, work: Coroutine[Any, Any, list[Answer]], kinds: Sequence[str] = ()) -> list[Answer]:
        """Return the result of ``work``, which submits a request. Subclasses override this to count requests.

        Args:
            kinds: kind of each medium of the request.
        """
        return await work

    @contextmanager
    def faults(self) -> Iterator[None]:
        """Turn errors of the engine that are raised in the block into errors for the client."""
        try:
            yield
        except VideoLlama2Error as error:
            raise as_api_error(error, self.limits.retry_after_s, self.engine) from error

    async def close(self) -> None:
        """Take no more requests. The engine and the sandbox are closed by their owner."""
        self.closing = True

    async def _chat(self, request: ChatRequest, count: int) -> list[Answer]:
        self.admit(request.model)
        self.preparing += 1
        try:
            return await self._prepare(request, count)
        finally:
            self.preparing -= 1

    def admit(self, model: str) -> None:
        """Check that a request for this model can be taken now.

        Raises:
            ApiError: it cannot.
        """
        if self.closing or self.engine.closed:
            raise shutting_down(self.limits.retry_after_s)
        if model != self.model_name:
            raise model_not_found(model)
        waiting = self.engine.load["waiting"]
        # Requests whose media are still being read are on their way to the engine's queue, so they count as if they
        # were in it.
        if waiting >= self.engine.max_queue or self.preparing + waiting >= self.limits.max_requests:
            raise queue_full(self.limits.retry_after_s)

    async def _prepare(self, request: ChatRequest, count: int) -> list[Answer]:
        # In a thread, since tokenising long texts takes a while and other answers are streaming.
        messages, asked = await asyncio.to_thread(engine_messages, request, self.guard)
        with self.faults():
            # The messages are checked before any medium is fetched.
            check_messages(messages)
            if request.add_generation_prompt is not False or request.continue_final_message:
                check_last(messages, bool(request.continue_final_message))
        if self.log_prompts:
            _log.info("messages: %s", messages)
        if len(asked) > self.policy.max_media:
            raise ApiError(
                400,
                f"{len(asked)} media are more than the maximum of {self.policy.max_media}",
                code="too_many_media",
                param="messages",
            )
        # From here on, memory is held. Raw bytes are bounded while media are read, and requests wait for room. Decoded
        # frames live as long as an answer, for minutes, so a request that finds no room is refused at once.
        media = await self.media.read_all(asked)
        held = sum(part.size for part in media)
        if held and not self.frames.take(held):
            raise ApiError(
                503,
                "too many media are in use; try again later",
                type="server_error",
                code="overloaded",
                retry_after=self.limits.retry_after_s,
            )
        try:
            with self.faults():
                # Rendering, tokenising and compiling a schema may each take a while.
                answers = await asyncio.to_thread(self._hand_in, request, messages, media, count)
        except BaseException:
            self.frames.give_back(held)
            raise
        # However the answers end, their frames count as free once the last of them is garbage-collected.
        share = _Share(self.frames, held, count)
        for answer in answers:
            weakref.finalize(answer, share.leave)
        return answers

    def _hand_in(
        self, request: ChatRequest, messages: Sequence[dict[str, Any]], media: Sequence[DecodedPart], count: int
    ) -> list[Answer]:
        # Values that the template does not read are left out, so that a client may send enable_thinking to any model.
        known = template_variables(self.tokenizer)
        template = {name: value for name, value in (request.chat_template_kwargs or {}).items() if name in known}
        if request.tool_use is not None and self.guard.template_knows_tools:
            template["tools"] = request.tool_use.as_templates_read_it
        options = {
            "structure": structure_of(request.forms()),
            "template_options": template,
            "continue_final_message": bool(request.continue_final_message),
            "add_generation_prompt": request.add_generation_prompt is not False,
            **request.handling,
        }

        def submit(choice: int, limit: int | None) -> Answer:
            # The answers share the decoded arrays and not the lists of parts, which the engine may fill in.
            own = list(with_media(messages, media))
            return self.engine.submit(own, **request.sampling(choice, limit), **options)

        return self.submit_each(submit, count, request.limit)

    def submit_each(self, submit: Callable[[int, int | None], Answer], count: int, limit: int | None) -> list[Answer]:
        """Submit several answers. If the context has fewer tokens left than ``limit``, they get what is left (as
        OpenAI).

        Args:
            submit: submits one answer, given its index and limit.
        """
        answers: list[Answer] = []
        try:
            for choice in range(count):
                try:
                    answers.append(submit(choice, limit))
                except RequestTooLongError:
                    if limit is None:
                        raise
                    # Without a limit, the engine gives what is left of the context.
                    answers.append(submit(choice, None))
        except BaseException:
            for answer in answers:
                answer.cancel()
            raise
        return answers


class _Share:
    """Bytes that several answers hold together. Members leave in finalizers, which may run on any thread."""

    def __init__(self, budget: Budget, held: int, members: int) -> None:
        self._budget, self._held, self._members = budget, held, members
        # Reentrant, because the garbage collector may run a finalizer inside another one on the same thread.
        self._lock = threading.RLock()

    def leave(self) -> None:
        with self._lock:
            self._members -= 1
            if not self._members:
                self._budget.give_back(self._held)


def queue_full(retry_after_s: float) -> ApiError:
    """Return error 429, for a full queue."""
    return ApiError(
        429,
        "too many requests are waiting; try again later",
        type="rate_limit_error",
        code="queue_full",
        retry_after=retry_after_s,
        internal_code=42903,
    )


def structure_of(forms: Sequence[AnswerForm]) -> Structure | None:
    """Return the engine's constraint for the form of an answer.

    Raises:
        ApiError: a schema is not valid JSON.
        ConfigError: a schema is not valid.
    """
    from videollama2.inference.structure import Structure

    if not forms:
        return None
    (form,) = forms
    if form.kind == "json_object":
        return Structure.json_object()
    value = form.value
    if form.kind == "json_schema" and isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ApiError(400, "the JSON Schema of the answer is not valid JSON") from None
    return getattr(Structure, form.kind)(value)


def as_api_error(error: VideoLlama2Error, retry_after_s: float, engine: BackEnd) -> ApiError:
    """Return the error that a client gets for an error of the engine. Further details are only logged."""
    if isinstance(error, QueueFullError):
        return queue_full(retry_after_s)
    if isinstance(error, RequestTooLongError):
        message = (
            f"this model's maximum context length is {engine.max_length} tokens, but the prompt alone has "
            f"{error.prompt_tokens}: send less text, or fewer or shorter media"
        )
        return ApiError(400, message, code="context_length_exceeded", param="messages", internal_code=40303)
    if isinstance(error, (PromptError, ConfigError)):
        param = "messages" if isinstance(error, PromptError) else None
        return ApiError(400, str(error), param=param, internal_code=40302)
    if isinstance(error, MediaError):
        _log.info("media that were decoded are of no use: %s", error)
        return ApiError(400, "a medium cannot be used", code="invalid_media", param="messages")
    if isinstance(error, EngineError) and engine.closed:
        return shutting_down(retry_after_s)
    _log.error("an answer failed: %s", error, exc_info=error)
    return server_fault()
