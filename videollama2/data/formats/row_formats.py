"""Turns rows in the forms of other programs into the published one, see :mod:`videollama2.data.record`.

Read are OpenAI's ``messages``, also under ``conversations``, with texts or with lists of parts, as LLaMA-Factory and
ms-swift also write them with media under ``images``, ``videos`` and ``audios``; the ``query``, ``response`` and
``history`` of ms-swift; and the ``prompt`` of TRL, a text or messages, with its ``completion`` or, for preferences,
``chosen`` and ``rejected``.
"""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import unquote

from videollama2.errors import DataError, shown
from videollama2.media.kinds import KINDS, TAGS

MESSAGE_KEYS = frozenset(("role", "content"))
FORM_KEYS = frozenset(("messages", "query", "response", "history"))
"""Keys that take the place of ``conversations``."""
PROMPT_KEYS = frozenset(("prompt", "completion"))
"""Keys that do so in rows without any other conversation; beside one, they are read by nothing."""

_WEIGHTS = {"loss": True, "weight": 1, "loss_scale": 1}
"""Keys of turns by which other programs weight answers, each with the value that weights them as here."""
_CALLS = ("tool_calls", "function_call")
_PART_OPTIONS = (
    *("start", "end", "video_start", "video_end"),
    *("fps", "nframes", "num_frames", "min_frames", "max_frames"),
)
"""Keys by which parts of messages choose frames in other programs."""

_ELSEWHERE = re.compile(r"^(?!file:)(?:https?:|[A-Za-z][A-Za-z0-9+.-]+:(?!//))")
"""The beginning of what is neither a path nor an address of a store; a Windows drive has one letter."""
_CONTENT = "data:"
_WRITE_IT = "write it to a file, or into a tar shard or a Parquet file"


def published_form(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the row with ``conversations`` and with media as paths; a row in the published form is returned as it is.

    Media without any tag in the text stand before the first question, as in ms-swift.

    Raises:
        DataError: the row has several of these forms, or a message does not have its form; or it asks for something
            that would change what is learned, as the weight of an answer does.
    """
    # Tables of several forms have all columns in every row, most of them empty, so only values count.
    forms = [key for key in ("conversations", "messages", "query") if raw.get(key) is not None]
    if len(forms) > 1:
        raise DataError(f"{' and '.join(map(repr, forms))} all hold the conversation: a record may have one of them")
    if forms == ["conversations"] and _are_messages(raw["conversations"]):
        raw, forms = {**raw, "conversations": None, "messages": raw["conversations"]}, ["messages"]
    if not forms and raw.get("prompt") is not None:
        raw, forms = _prompted(raw), ["messages"]
    # ms-swift and TRL write "label" beside messages; beside a conversation it may be anything.
    if raw.get("kto_tag") is False or (raw.get("label") is False and forms == ["messages"]):
        raise DataError("'kto_tag' or 'label' false marks a bad answer, which would be learned like a good one")
    if forms in ([], ["conversations"]):
        return raw
    media = {key: _paths(value, key) for kind in KINDS for key in (kind, f"{kind}s") if (value := raw.get(key))}
    turns = _messages(raw["messages"], media) if forms == ["messages"] else _queries(raw)
    if media and not any(tag in turn["value"] for turn in turns for tag in TAGS.values()):
        _tag_first_question(turns, media)
    rest = {key: value for key, value in raw.items() if key not in FORM_KEYS}
    return {**rest, **media, "conversations": turns}


def _are_messages(turns: Any) -> bool:
    """Whether turns are messages under the name of turns, as some programs write them."""
    return isinstance(turns, list) and bool(turns) and isinstance(turns[0], dict) and "role" in turns[0]


def _messages(messages: Any, media: dict[str, list[Any]]) -> list[dict[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise DataError(f"'messages' must be a list with at least one message, got {shown(messages)}")
    turns = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str | list):
            raise DataError(f"a message must be an object with 'role' and 'content', got {shown(message)}")
        refuse_weights(message, "a message")
        for key in _CALLS:
            if message.get(key):
                raise DataError(f"{key!r} of a message is not used: only texts are learned")
        content = message["content"]
        text = content if isinstance(content, str) else "".join(_text_of(part, media) for part in content)
        turns.append({"from": str(message.get("role")), "value": text})
    return turns


def _prompted(raw: dict[str, Any]) -> dict[str, Any]:
    """Return a row of TRL's form with its prompt, and its completion if there is one, as messages."""
    messages = _said("user", raw["prompt"], "prompt")
    if raw.get("completion") is not None:
        messages = [*messages, *_said("assistant", raw["completion"], "completion")]
    rest = {key: value for key, value in raw.items() if key not in PROMPT_KEYS}
    return {**rest, "messages": messages}


def _said(role: str, value: Any, key: str) -> list[Any]:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list):
        raise DataError(f"{key!r} must be a text or a list of messages, got {shown(value)}")
    return value


def refuse_weights(turn: dict[str, Any], name: str) -> None:
    """Raise a DataError if a turn or message is weighted.

    It is refused and not ignored: a record that was weighted elsewhere would silently be learned in another way here.
    """
    if _WEIGHTS.keys().isdisjoint(turn):
        return
    for key, learned in _WEIGHTS.items():
        if turn.get(key, learned) not in (learned, None):
            raise DataError(f"{key!r} of {name} is not used: every answer is learned alike")


def _refuse_options(part: dict[str, Any]) -> None:
    for key in _PART_OPTIONS:
        if part.get(key) is not None:
            raise DataError(f"{key!r} of a part is not used: 'start', 'end' and 'num_frames' stand beside the messages")


def _text_of(part: Any, media: dict[str, list[Any]]) -> str:
    """Return the text of a part of a message; the path of a medium is added to ``media``, and its tag is the text."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    if kind == "input_audio":
        raise DataError(f"{kind!r} holds a sound as text: {_WRITE_IT}, and name it in a part of type 'audio_url'")
    name = str(kind).removesuffix("_url")
    if name in KINDS and part.get(kind) is None:  # the next path under the name of the kind, beside the messages
        return f"{TAGS[name]}\n"
    if name not in KINDS:
        raise DataError(f"a part of a message must be a text, an image, a video or a sound, got {shown(part)}")
    value = part[kind]
    _refuse_options(part)
    if isinstance(value, dict):
        _refuse_options(value)
    media.setdefault(name, []).append(_path(value.get("url") if isinstance(value, dict) else value, name))
    return f"{TAGS[name]}\n"


def _queries(raw: dict[str, Any]) -> list[dict[str, str]]:
    pairs = [*(raw.get("history") or ()), (raw["query"], raw.get("response"))]
    turns = []
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise DataError(f"'query', 'response' and the pairs of 'history' must be texts, got {shown(pair)}")
        turns += [{"from": "human", "value": pair[0]}, {"from": "gpt", "value": pair[1]}]
    return turns


def _tag_first_question(turns: list[dict[str, str]], media: dict[str, list[Any]]) -> None:
    for turn in turns:
        if turn["from"] in ("user", "human"):
            tags = [TAGS[key.removesuffix("s")] for key, paths in media.items() for _ in paths]
            turn["value"] = "".join(f"{tag}\n" for tag in tags) + turn["value"]
            return


def _paths(value: Any, key: str) -> list[Any]:
    return [_path(each, key) for each in (value if isinstance(value, list) else [value])]


def _path(value: Any, key: str) -> Any:
    """Return the path of a medium that may be given as ``{"path": ...}`` or as an address of a file."""
    path = value.get("path") if isinstance(value, dict) else value
    refuse_content([path], key)
    if isinstance(path, str) and _ELSEWHERE.match(path):
        raise DataError(f"{key!r} must be a path of a file, got {path[:60]!r}")
    return _local(path) if isinstance(path, str) else path


def _local(path: str) -> str:
    """Return a path without ``file://``; most programs write the name of a file behind it, some as in web addresses."""
    if not path.startswith("file://"):
        return path
    name = path.removeprefix("file://")
    return unquote(name) if "%" in name and not os.path.exists(name) else name


def refuse_content(paths: list[Any], key: str) -> None:
    """Raise a DataError if a medium stands among the paths of a record as text (``data:image/png;base64,...``)."""
    for path in paths:
        if isinstance(path, str) and path.startswith(_CONTENT):
            raise DataError(f"{key!r} holds a medium as text, {path[:60]!r}: {_WRITE_IT}")
