"""Turns the engine's answers into replies of OpenAI's Responses API, complete or as a stream."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from fastapi import Response

from videollama2.serve.api.request import ChatRequest
from videollama2.serve.api.responses import ResponsesRequest
from videollama2.serve.api.tools import CallReader, FoundCall
from videollama2.serve.web.sse import event as sse_event
from videollama2.serve.worker.answers import Answers
from videollama2.serve.worker.chat_reply import chat_answers
from videollama2.serve.worker.replies import Reply, send
from videollama2.serve.worker.service import ChatService

if TYPE_CHECKING:
    from videollama2.inference.answer import Result


async def answer_response(service: ChatService, body: ResponsesRequest) -> Response:
    """See :func:`send`."""
    chat = body.as_chat()
    return await send(
        chat_answers(service, chat), lambda answers: ResponsesReply(service, body, chat, answers), bool(body.stream)
    )


class ResponsesReply(Reply):
    """A reply of ``/v1/responses``: a list of items, each a message or a call of one of the client's functions."""

    id_prefix, chunk_kind = "resp", "response"

    def __init__(self, service: ChatService, body: ResponsesRequest, chat: ChatRequest, answers: Answers) -> None:
        super().__init__(service, chat, answers)
        self.id = self.id.replace("-", "_", 1)
        self._body, self._use = body, chat.tool_use
        self._number = 0

    async def whole(self) -> bytes:
        """See :class:`Reply`."""
        (result,) = await self.answers.results()
        text, calls = (result.text, []) if self._use is None else self._use.read(result.text)
        items = [_message(f"msg_{uuid4().hex}", text)] if text or not calls else []
        items += [_call(f"fc_{uuid4().hex}", call) for call in calls]
        return json.dumps(self._response(items, result)).encode("ascii")

    async def events(self) -> AsyncGenerator[bytes, None]:
        """See :class:`Reply`."""
        reader = None if self._use is None else CallReader(self._use)
        items = _Items(self)
        begun = False
        async with aclosing(self.answers.deltas()) as deltas:
            async for _, item in deltas:
                pieces = []
                if not begun:
                    begun = True
                    opening = ("response.created", "response.in_progress")
                    pieces = [self.event(kind, response=self._response([], None)) for kind in opening]
                text = item if isinstance(item, str) else ""
                # The events are made from the deltas of a chat stream, so that both routes find calls in the text by
                # the same reader.
                found = [{"content": text}] if reader is None and text else []
                if reader is not None:
                    found = reader.feed(text) if isinstance(item, str) else reader.end()
                for delta in found:
                    pieces += items.take(delta)
                if not isinstance(item, str):
                    pieces += items.end()
                    is_cut = item.finish_reason == "length"
                    kind = "response.incomplete" if is_cut else "response.completed"
                    pieces.append(self.event(kind, response=self._response(items.done, item)))
                if pieces:  # in one, as in a chat's stream
                    yield b"".join(pieces)

    def event(self, kind: str, **fields: Any) -> bytes:
        """Return one event with its sequence number."""
        content = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return sse_event(content, kind)

    def _response(self, items: list[dict[str, Any]], result: Result | None) -> dict[str, Any]:
        """Return the response object; ``result`` is None while the answer is being generated."""
        body = self._body
        is_cut = result is not None and result.finish_reason == "length"
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": "in_progress" if result is None else "incomplete" if is_cut else "completed",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": self.service.model_name,
            "output": items,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": body.temperature,
            "text": {"format": _dumped(body.text.format if body.text else None) or {"type": "text"}},
            "tool_choice": _dumped(body.tool_choice) or "auto",
            "tools": [{"strict": True, "parameters": None, **_dumped(tool)} for tool in body.tools or ()],
            "top_p": body.top_p,
            "truncation": body.truncation or "disabled",
            "usage": None if result is None else self._usage(),
            "user": body.user,
            "metadata": body.metadata or {},
        }

    def _usage(self) -> dict[str, Any]:
        usage = self.answers.usage()
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": usage.prompt_tokens_details.cached_tokens,
                "cache_write_tokens": 0,
            },
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.total_tokens,
        }


class _Items:
    """Turns deltas of a chat stream into events about items, of which one is open at a time."""

    def __init__(self, reply: ResponsesReply) -> None:
        self._reply = reply
        self.done: list[dict[str, Any]] = []
        self._message: str | None = None
        self._text = ""
        self._call: dict[str, Any] | None = None

    def take(self, delta: dict[str, Any]) -> list[bytes]:
        """Return the events for one delta."""
        if "content" in delta:
            return [*self._open_message(), *self._add_text(delta["content"])]
        return [one for call in delta["tool_calls"] for one in self._take_call(call)]

    def end(self) -> list[bytes]:
        """Return the events that close the open item. An answer without text gets an empty message."""
        # Clients expect at least one item in a response.
        opened = self._open_message() if not self.done and self._call is None else []
        return [*opened, *self._close_message(), *self._close_call()]

    def _event(self, kind: str, **fields: Any) -> bytes:
        return self._reply.event(kind, output_index=len(self.done), **fields)

    def _open_message(self) -> list[bytes]:
        if self._message is not None:
            return []
        self._message = f"msg_{uuid4().hex}"
        item = {**_message(self._message, ""), "status": "in_progress", "content": []}
        part = _part("")
        return [
            self._event("response.output_item.added", item=item),
            self._event("response.content_part.added", item_id=self._message, content_index=0, part=part),
        ]

    def _add_text(self, text: str) -> list[bytes]:
        self._text += text
        fields = {"item_id": self._message, "content_index": 0, "delta": text, "logprobs": []}
        return [self._event("response.output_text.delta", **fields)]

    def _close_message(self) -> list[bytes]:
        if self._message is None:
            return []
        name, self._message = self._message, None
        place = {"item_id": name, "content_index": 0}
        item = _message(name, self._text)
        events = [
            self._event("response.output_text.done", **place, text=self._text, logprobs=[]),
            self._event("response.content_part.done", **place, part=_part(self._text)),
            self._event("response.output_item.done", item=item),
        ]
        self.done.append(item)
        return events

    def _take_call(self, call: dict[str, Any]) -> list[bytes]:
        # The first delta of a call carries its id and opens a new item. Further deltas only extend its arguments.
        function, events = call["function"], []
        if "id" in call:
            events = [*self._close_message(), *self._close_call()]
            self._call = _call(f"fc_{uuid4().hex}", FoundCall(function["name"], "", call["id"]))
            item = {**self._call, "status": "in_progress"}
            events.append(self._event("response.output_item.added", item=item))
        if function["arguments"] and self._call is not None:
            self._call["arguments"] += function["arguments"]
            fields = {"item_id": self._call["id"], "delta": function["arguments"]}
            events.append(self._event("response.function_call_arguments.delta", **fields))
        return events

    def _close_call(self) -> list[bytes]:
        if self._call is None:
            return []
        item, self._call = self._call, None
        fields = {"item_id": item["id"], "name": item["name"], "arguments": item["arguments"]}
        events = [
            self._event("response.function_call_arguments.done", **fields),
            self._event("response.output_item.done", item=item),
        ]
        self.done.append(item)
        return events


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _message(name: str, text: str) -> dict[str, Any]:
    return {"id": name, "type": "message", "role": "assistant", "status": "completed", "content": [_part(text)]}


def _call(name: str, call: FoundCall) -> dict[str, Any]:
    return {
        "id": name,
        "type": "function_call",
        "status": "completed",
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
    }


def _dumped(value: Any) -> Any:
    return value.model_dump(by_alias=True, exclude_none=True) if hasattr(value, "model_dump") else value
