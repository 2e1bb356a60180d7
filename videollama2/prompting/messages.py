"""Turns messages as callers give them into turns as the model was trained on them.

The model was trained on conversations in which user and assistant alternate and in which the tag of a turn's only
medium stands in front of that turn. Callers write what they like: the text before the picture, two user messages in a
row, an empty system text. Every door of the package hands its messages to :func:`as_turns`, so all of them end in the
same prompt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from videollama2.errors import PromptError
from videollama2.media.kinds import TAGS

Message = dict[str, Any]

ROLES = ("system", "user", "assistant", "tool")

ANY_TAG = re.compile("|".join(map(re.escape, TAGS.values())))


def user_messages(instruct: str | Sequence[Message], modal: str | Sequence[str] = "text") -> list[Message]:
    """Turn the published form of a call into messages, of which the first begins with the media.

    Args:
        instruct: a question, or messages with ``role`` and ``content``.
        modal: ``image``, ``video``, ``text``, or a list of the first two for several media.

    Raises:
        PromptError: unknown modality, no message, or a question without text or with text that UTF-8 cannot hold.
    """
    if isinstance(instruct, str):
        check_text(instruct, "message 0 (user)")
        messages: list[Message] = [{"role": "user", "content": instruct}]
    else:
        check_messages(instruct)
        messages = [dict(message) for message in instruct]
    first = next(number for number, message in enumerate(messages) if message["role"] != "system")
    modals = [modal] if isinstance(modal, str) else list(modal)
    kinds = [kind for kind in modals if kind != "text"]
    for kind in kinds:
        if kind not in TAGS:
            raise PromptError(f"unknown modality {kind!r}; known: {', '.join(TAGS)}, text")
    content = messages[first].get("content")
    if not isinstance(content, str):
        if kinds:
            raise PromptError("give media either as 'modal' or as parts of the messages, not both")
        return messages
    # The published code puts a line break behind the tag, also where a question about text alone has none.
    text = {"type": "text", "text": content if kinds else f"\n{content}"}
    messages[first]["content"] = [*({"type": kind} for kind in kinds), text]
    return messages


def check_messages(messages: Sequence[Message]) -> None:
    """Check what a conversation must hold, whatever is to be done with it.

    Raises:
        PromptError: not a list of messages, none of them from a user, an unknown role, a user's turn with neither
            text nor medium, a medium in a system text, or text that UTF-8 cannot hold.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise PromptError(f"a question or a list of messages is needed, got {_type_name(messages)}")
    if not messages:
        raise PromptError("there is no message: a question is needed")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise PromptError(f"message {number} must be a dict with role and content, got {_type_name(message)}")
        role = message.get("role")
        if role not in ROLES:
            raise PromptError(f"message {number}: role {role!r} is not one of {', '.join(ROLES)}")
        parts = _parts(message.get("content"), number)
        _check_utf8("".join(part["text"] for part in parts if part["type"] == "text"), f"message {number} ({role})")
        if role == "system" and any(part["type"] in TAGS for part in parts):
            raise PromptError(f"message {number} (system) holds a medium: media belong into a user's turn")
    _check_questions(messages)


def check_last(messages: Sequence[Message], continue_final_message: bool) -> None:
    """Raise PromptError unless an answer can follow the messages, or continue the last one if that is asked for."""
    role = messages[-1]["role"]
    if continue_final_message and role != "assistant":
        raise PromptError(
            f"continue_final_message continues an answer of the assistant, but the last one is a {role}'s"
        )
    if role == "assistant" and not continue_final_message:
        raise PromptError(
            "the last message is the assistant's, so there is nothing to answer: end with a question, or have that "
            "message continued (continue_final_message)"
        )


def check_text(text: str, name: str) -> None:
    """Raise PromptError unless the text has words and UTF-8 can hold it; no tokenizer takes it otherwise."""
    if not text.strip():
        raise PromptError(f"{name} has no text: a prompt needs a question")
    _check_utf8(text, name)


def first_surrogate(text: str) -> str | None:
    """Describe the first half of a character in ``text`` and its place; None if UTF-8 can hold all of it.

    A lone surrogate is how Python shows a byte of a command line that is not UTF-8.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"character {error.start + 1} is {text[error.start]!a}"
    return None


def as_turns(messages: Sequence[Message]) -> list[Message]:
    """Turn checked messages into turns: contents are lists of parts, and each turn has its form of training.

    - A system text without words is not a system text.
    - Messages that the user (or the assistant) sends in a row are one turn, since roles alternated in training.
    - The tag of a turn's only medium is put in front of the turn, as published; several media stay where they are.
    - Parts of blank text are dropped. A turn of the assistant may be empty.

    Media parts keep their keys, and messages keep those beside ``role`` and ``content``.

    Raises:
        PromptError: see :func:`check_messages`.
    """
    check_messages(messages)
    return [{**turn, "content": medium_first(turn["content"])} for _, turn in _numbered_turns(messages)]


def medium_first(parts: Sequence[Message]) -> list[Message]:
    """Return the parts of one turn with its only medium in front; with several media the order stays."""
    media = [part for part in parts if part["type"] in TAGS]
    # Published training data have the tag of a single medium in front, wherever it was written. With several, their
    # places tell them apart, so they are kept.
    return [*media, *(part for part in parts if part["type"] not in TAGS)] if len(media) == 1 else list(parts)


def tagged_parts(text: str, kinds: Sequence[str]) -> list[Message]:
    """Split text with tags into parts of a turn; the n-th tag is a medium of the n-th kind, whatever its word.

    Args:
        text: with as many tags as ``kinds`` has members. A single one moves to the front, as published.
    """
    if len(kinds) == 1:
        rest = ANY_TAG.sub("", text).strip()
        return [{"type": kinds[0]}, *([{"type": "text", "text": rest}] if rest else [])]
    parts: list[Message] = []
    for number, piece in enumerate(ANY_TAG.split(text)):
        if number:
            parts.append({"type": kinds[number - 1]})
        if piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    return parts


def _numbered_turns(messages: Sequence[Message]) -> list[tuple[int, Message]]:
    """Return each turn with the number of its first message; messages that one side sends in a row are joined."""
    turns: list[tuple[int, Message]] = []
    for number, message in enumerate(messages):
        role = message["role"]
        parts = [p for p in _parts(message.get("content"), number) if p["type"] != "text" or p["text"].strip()]
        if role == "system" and not parts:
            continue
        # Results of tools may follow each other: each answers a call of its own and stays a message of its own.
        if turns and role == turns[-1][1]["role"] and role in ("user", "assistant"):
            number, before = turns.pop()
            message, parts = {**before, **message}, [*before["content"], *parts]
        turns.append((number, {**message, "content": parts}))
    return turns


def _check_questions(messages: Sequence[Message]) -> None:
    turns = [(number, turn) for number, turn in _numbered_turns(messages) if turn["role"] == "user"]
    if not turns:
        raise PromptError("the messages hold a system text but no question")
    for number, turn in turns:
        if not turn["content"]:
            raise PromptError(f"message {number} (user) has no text: a prompt needs a question")


def _parts(content: Any, number: int) -> list[Message]:
    """Return a message's content, a text or a list of parts, as a list of parts that each have a type."""
    if content is None:
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, Sequence):
        raise PromptError(f"message {number}: content must be a text or a list of parts, got {_type_name(content)}")
    for part in content:
        is_text = isinstance(part, Mapping) and part.get("type") == "text"
        if not isinstance(part, Mapping) or (is_text and not isinstance(part.get("text"), str)):
            raise PromptError(f"message {number}: a part must be a dict with a type, and its text a str, got {part!r}")
        if not is_text and part.get("type") not in TAGS:
            known = ", ".join(("text", *TAGS))
            raise PromptError(f"message {number}: unknown content part type {part.get('type')!r}; known: {known}")
    return list(content)


def _check_utf8(text: str, name: str) -> None:
    if broken := first_surrogate(text):
        raise PromptError(f"{name} is not valid UTF-8: {broken}")


def _type_name(value: Any) -> str:
    return "None" if value is None else type(value).__name__
