"""Conversations as transformers represents them: one or a list of them, and the sources of their media parts."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.error import URLError
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

from videollama2.errors import MediaError, PromptError
from videollama2.media.kinds import KINDS
from videollama2.processing.options import LOADING
from videollama2.prompting import Message

_SECONDS = 30
_MAX_DOWNLOAD = 1 << 30

_URL_PARTS = {f"{kind}_url": kind for kind in KINDS}
"""OpenAI's types of media parts -> the kind of medium."""


def as_batch(conversation: Any) -> tuple[list[list[Message]], bool]:
    """Return one or several conversations as a list, with uniform media parts, and whether they were given as a list.

    Raises:
        PromptError: the value is neither messages nor lists of messages.
    """
    if not isinstance(conversation, Sequence) or isinstance(conversation, str) or not conversation:
        raise PromptError(f"a conversation is a list of messages, got {type(conversation).__name__}")
    is_batch = not isinstance(conversation[0], Mapping)
    conversations = conversation if is_batch else [conversation]
    for one in conversations:
        if not isinstance(one, Sequence) or isinstance(one, str):
            raise PromptError(f"a conversation is a list of messages, got {type(one).__name__}")
    return [[_message(message) for message in one] for one in conversations], is_batch


def media_of(conversation: Sequence[Message]) -> list[tuple[str, Any, dict[str, Any]]]:
    """Return kind, source and reading options of each media part, in reading order.

    Raises:
        PromptError: a part has no source, or an option that does not apply to its kind.
        MediaError: base64 data or a URL cannot be read.
    """
    media = []
    for message in conversation:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if part.get("type") in KINDS:
                media.append(_medium(part))
    return media


def _message(message: Any) -> Message:
    """Copy a message without None values, with which data sets fill the keys that a part does not have."""
    if not isinstance(message, Mapping):
        return message
    content = message.get("content")
    if isinstance(content, (list, tuple)):
        content = [_part(part) if isinstance(part, Mapping) else part for part in content]
    return {**{name: value for name, value in message.items() if value is not None}, "content": content}


def _part(part: Mapping[str, Any]) -> Mapping[str, Any]:
    kind = part.get("type")
    if kind == "text":
        return part
    if kind in _URL_PARTS:
        url = part.get(kind)
        return {"type": _URL_PARTS[kind], "url": url.get("url") if isinstance(url, Mapping) else url}
    return {name: value for name, value in part.items() if value is not None}


def _medium(part: Message) -> tuple[str, Any, dict[str, Any]]:
    kind = part["type"]
    sources = {name: value for name, value in part.items() if name in (kind, "path", "url", "base64")}
    if len(sources) != 1:
        raise PromptError(f"a {kind} part needs one source, under {kind!r}, 'path', 'url' or 'base64'")
    options = {name: value for name, value in part.items() if name not in ("type", "text", *sources)}
    unknown = options.keys() - LOADING[kind]
    if unknown:
        raise PromptError(f"a {kind} part has no option {', '.join(sorted(unknown))}")
    ((name, source),) = sources.items()
    if name == "base64":
        return kind, _decoded(source, kind), options
    return kind, _fetched(source) if name != "path" and isinstance(source, str) else source, options


def _decoded(text: Any, kind: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (AttributeError, TypeError, binascii.Error, ValueError) as error:
        raise MediaError(f"the base64 of a {kind} part cannot be decoded: {error}") from error


def _fetched(source: str) -> Any:
    """Return the content of a ``data:``, ``http:`` or ``https:`` URL, or the path of a ``file:`` URL or plain text."""
    scheme = urlsplit(source[:16]).scheme
    if scheme == "data":
        return _decoded(source.partition(",")[2], "data:")
    if scheme == "file":
        return unquote(urlsplit(source).path)
    if scheme not in ("http", "https"):
        return source
    try:
        with urlopen(source, timeout=_SECONDS) as reply:
            content = reply.read(_MAX_DOWNLOAD + 1)
    except (URLError, OSError, ValueError) as error:
        raise MediaError(f"{source}: cannot be fetched ({error})") from error
    if len(content) > _MAX_DOWNLOAD:
        raise MediaError(f"{source}: larger than {_MAX_DOWNLOAD >> 20} MiB")
    return content
