"""Answers the page's questions: by a model in this process, or workers behind a controller.

Messages have OpenAI's form; media are parts with a local ``path`` and options
(:meth:`videollama2.serve.page.conversation.Medium.part`). This module imports neither torch nor a model; an
:class:`LocalBackend` is given its engines.
"""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import httpx

from videollama2.constants import NUM_FRAMES
from videollama2.errors import MediaError, RequestTooLongError
from videollama2.media.kinds import SEEN, VIDEO, kind_of, mime_type
from videollama2.media.pixels import FrameResize
from videollama2.serve.cluster.worker_call import bearer, make_client
from videollama2.serve.long_text import LongText
from videollama2.serve.page.thumbnails import EDGE, MediaDecoder
from videollama2.serve.untrusted_media.errors import RefusedMediaError
from videollama2.serve.untrusted_media.parts import decode_part
from videollama2.serve.untrusted_media.sandbox import Sandbox
from videollama2.serve.web.errors import ApiError, model_not_found
from videollama2.serve.web.sse import read_events

Message = dict[str, Any]

_BICUBIC = 3  # Pillow's number
_ENCODED_AT_ONCE = 3 << 16  # bytes; a multiple of three, so that the pieces in base64 join to one
_API_NAMES = {"use_audio": "use_audio_in_video"}


class PageBackend(Protocol):
    """The interface that the page needs.

    ``options`` are ``temperature``, ``top_p``, ``max_new_tokens`` and ``seed``. Closing the iterator of an answer stops
    its generation.
    """

    async def models(self, refresh: bool = False) -> list[str]:
        """Return the names of the available models. ``refresh`` asks for an up-to-date list."""
        ...

    async def num_frames(self, model: str) -> int:
        """Return the number of frames that the model looks at if a request does not give a number."""
        ...

    async def kinds(self, model: str) -> tuple[str, ...]:
        """Return the kinds of media that the model takes."""
        ...

    def reader(self, model: str) -> MediaDecoder:
        """Return the reader that decodes media as the model sees them."""
        ...

    def stream(self, model: str, messages: Sequence[Message], options: Mapping[str, Any]) -> AsyncGenerator[str, None]:
        """Yield the pieces of an answer as they are generated.

        Raises:
            VideoLlama2Error, ApiError: there is no answer, or it broke off.
        """
        ...

    def close(self) -> None:
        """Close processes and connections."""
        ...


class LocalBackend:
    """A back end with engines in this process.

    Args:
        engines: :class:`videollama2.Engine` objects by the names that the page shows.
        policy: limits for uploaded media, which are decoded in separate processes.
    """

    def __init__(self, engines: Mapping[str, Any], policy: Any) -> None:
        self.engines = dict(engines)
        # Models that read media in the same way share the decoding processes.
        made: dict[Any, Sandbox] = {}
        self._sandboxes: dict[str, Sandbox] = {}
        for name, engine in self.engines.items():
            sandbox = Sandbox.of(policy, engine.processor)
            self._sandboxes[name] = made.setdefault((sandbox.resize, sandbox.num_frames, sandbox.rules), sandbox)

    async def models(self, refresh: bool = False) -> list[str]:
        return list(self.engines)

    async def num_frames(self, model: str) -> int:
        return self._engine(model).processor.model_config.num_frames

    async def kinds(self, model: str) -> tuple[str, ...]:
        from videollama2.processing import media_kinds

        return media_kinds(self._engine(model).processor.model_config)

    def reader(self, model: str) -> Sandbox:
        self._engine(model)
        return self._sandboxes[model]

    def _engine(self, model: str) -> Any:
        if model not in self.engines:
            raise model_not_found(model)
        return self.engines[model]

    async def stream(
        self, model: str, messages: Sequence[Message], options: Mapping[str, Any]
    ) -> AsyncGenerator[str, None]:
        decoded = [await self._decoded(model, message) for message in messages]
        try:
            async with aclosing(self._answer(model, decoded, options)) as answer:
                async for delta in answer:
                    yield delta
        except RequestTooLongError:
            # This is raised only before the first token. max_new_tokens is an upper bound chosen by the visitor, so the
            # answer is retried with as many tokens as the context leaves.
            if options.get("max_new_tokens") is None:
                raise
            async with aclosing(self._answer(model, decoded, {**options, "max_new_tokens": None})) as answer:
                async for delta in answer:
                    yield delta

    async def _answer(
        self, model: str, messages: list[Message], options: Mapping[str, Any]
    ) -> AsyncGenerator[str, None]:
        answer = self._engine(model).submit(messages, **options)
        try:
            async for delta in answer:
                yield delta
        finally:
            if not answer.done:
                answer.cancel()

    async def _decoded(self, model: str, message: Message) -> Message:
        """Return the message with decoded frames and sounds in place of files."""
        if isinstance(message["content"], str):
            return message
        parts = [part if part["type"] == "text" else await self._read(model, part) for part in message["content"]]
        return {**message, "content": parts}

    async def _read(self, model: str, part: Message) -> Message:
        kind = part["type"]
        if kind not in await self.kinds(model):
            raise ApiError(400, f"this model takes no {kind}", code="modality_not_supported")
        options = {name: value for name, value in part.items() if name not in ("type", "path")}
        return (await decode_part(self.reader(model), kind, Path(part["path"]), options)).part

    def close(self) -> None:
        for sandbox in set(self._sandboxes.values()):
            sandbox.close()
        for engine in self.engines.values():
            engine.close()


class ControllerBackend:
    """A back end with workers behind a controller.

    Args:
        client: :class:`videollama2.serve.cluster.client.ControllerClient`.
        credential: worker token or API key, sent to the workers.
        policy: limits for uploaded media; the frames that the page draws are decoded in separate processes.
        refresh: whether the page may ask the controller for an up-to-date list of models.
    """

    def __init__(self, client: Any, policy: Any, *, credential: str | None = None, refresh: bool = True) -> None:
        self.client, self._refresh, self._headers = client, refresh, bearer(credential)
        self._known: list[str] | None = None
        self._sandbox = Sandbox(policy, FrameResize(EDGE, _BICUBIC))
        self._statuses: dict[str, dict[str, Any]] = {}

    async def models(self, refresh: bool = False) -> list[str]:
        # With --model-list-mode once, an empty list is still asked for again: a page that starts before its workers
        # would otherwise never have a model.
        known = self._known
        if not known or (refresh and self._refresh):
            known = self._known = await self.client.models(refresh=True)
            self._statuses.clear()
        return known

    async def num_frames(self, model: str) -> int:
        found = (await self._status(model)).get("num_frames")
        return found if isinstance(found, int) and found > 0 else NUM_FRAMES

    async def kinds(self, model: str) -> tuple[str, ...]:
        found = (await self._status(model)).get("kinds")
        return tuple(map(str, found)) if isinstance(found, list) else SEEN

    async def _status(self, model: str) -> dict[str, Any]:
        if model not in self._statuses:
            self._statuses[model] = await self._ask_status(model)
        return self._statuses[model]

    async def _ask_status(self, model: str) -> dict[str, Any]:
        """Return a worker's status. Only what is drawn depends on it, so a missing reply is not an error."""
        address = await self.client.worker_address(model)
        try:
            async with make_client() as http:
                reply = await http.post(f"{address}/worker_get_status", headers=self._headers, timeout=5.0)
            found = reply.json()
        except (httpx.HTTPError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def reader(self, model: str) -> Sandbox:
        return self._sandbox

    async def stream(
        self, model: str, messages: Sequence[Message], options: Mapping[str, Any]
    ) -> AsyncGenerator[str, None]:
        body = {
            "model": model,
            "messages": [await asyncio.to_thread(_with_data, message) for message in messages],
            "stream": True,
            "temperature": options.get("temperature", 0.0),
            "top_p": options.get("top_p", 1.0),
            **({"seed": options["seed"]} if "seed" in options else {}),
        }
        limit = options.get("max_new_tokens")
        try:
            async with aclosing(self._answer({**body, "max_completion_tokens": limit})) as answer:
                async for delta in answer:
                    yield delta
        except ApiError as error:
            if error.code in ("model_not_found", "no_worker"):
                self._known = None  # the known list is out of date, so the page asks for it again
            if error.code != "context_length_exceeded" or limit is None:
                raise
            # As in LocalBackend, retry with as many tokens as the context leaves; no token has been sent yet.
            async with aclosing(self._answer(body)) as answer:
                async for delta in answer:
                    yield delta

    async def _answer(self, body: dict[str, Any]) -> AsyncGenerator[str, None]:
        async with (
            self.client.open_chat(body, uuid4().hex) as stream,
            aclosing(read_events(aiter(stream))) as events,
        ):
            async for event in events:
                for choice in event.get("choices", ()):
                    text = choice.get("delta", {}).get("content")
                    if text:
                        yield text

    def close(self) -> None:
        self._sandbox.close()


def _with_data(message: Message) -> Message:
    """Return the message with ``data:`` URLs in place of files."""
    if isinstance(message["content"], str):
        return message
    return {**message, "content": [_data_part(part) for part in message["content"]]}


def _data_part(part: Message) -> Message:
    kind = part["type"]
    if kind == "text":
        return part
    path = Path(part["path"])
    try:
        data = _in_base64(path)
    except OSError as error:
        raise RefusedMediaError("the file is gone: upload it once more", detail=str(error)) from error
    name = f"{kind}_url"
    options = {_API_NAMES.get(key, key): value for key, value in part.items() if key not in ("type", "path")}
    # The API takes a sound for that of a video if its type says so.
    mime = mime_type(VIDEO if options.pop("of_video", False) else kind, path)
    found: Message = {"type": name, name: {"url": LongText(data, 0, len(data), f"data:{mime};base64,")}}
    if options:
        found["mm_processor_kwargs"] = options
    return found


def _in_base64(path: Path) -> bytes:
    """Return a file's content in base64, encoded in pieces so that other threads can run in between."""
    written = io.BytesIO()
    with path.open("rb") as file:
        while piece := file.read(_ENCODED_AT_ONCE):
            written.write(base64.b64encode(piece))
    return written.getvalue()


def kind_of_upload(path: str | Path) -> str:
    """Return the kind of an uploaded file, see :func:`videollama2.media.kinds.kind_of`.

    Raises:
        RefusedMediaError: the file is of no supported kind, or cannot be opened.
    """
    upload = Path(path)
    try:
        with upload.open("rb") as file:
            return kind_of(file, upload.name)
    except OSError as error:
        raise RefusedMediaError("the file is gone: upload it once more", detail=str(error)) from error
    except MediaError as error:
        raise RefusedMediaError(str(error)) from error
