"""Defines the engine's input: requests, their messages, and the media that the messages refer to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from videollama2.errors import ConfigError, PromptError
from videollama2.inference.sampling import SamplingOptions
from videollama2.media.kinds import AUDIO, TAGS, VIDEO
from videollama2.processing import as_media
from videollama2.processing.read_options import ReadOptions
from videollama2.prompting import Message, check_last, check_messages, user_messages

_SOURCES = ("path", "url", "source")
"""Keys under which a media part may hold its source, besides its own type."""


@dataclass(frozen=True)
class TokenPrompt:
    """A prompt that is already tokenised; replaces a :class:`videollama2.prompting.Prompt`.

    Attributes:
        ids: the token ids.
        text: the text from which they were made, for logging only.
    """

    ids: tuple[int, ...]
    text: str = ""

    def token_ids(self, tokenizer: Any) -> list[int]:
        """Return the token ids."""
        return list(self.ids)


@dataclass(frozen=True)
class MediaPart:
    """One medium of a request: its kind, its source, and the options for reading it."""

    kind: str
    source: Any
    options: ReadOptions = field(default_factory=ReadOptions)


class Request:
    """One question, or a conversation.

    Args:
        messages: a question; a :class:`TokenPrompt`, which the answer continues; or messages with ``role`` and
            ``content``, where content is text or a list of parts:
            ``{"type": "text", "text": ...}``, ``{"type": "video", "path": ..., "start": 3.5, "num_frames": 16}``,
            ``{"type": "image", "image": picture}``, ``{"type": "audio", "path": ...}``. A video part with
            ``"use_audio": True`` is used with its sound. Sources are paths, bytes, PIL images, arrays, lists of frames,
            :class:`~videollama2.media.audio.Sound` objects, or outputs of the processor. A video and its sound may also
            be given apart, as ``{"video": ..., "audio": ...}``.
        media: sources for the parts that have none, in reading order. With a plain question, pairs
            ``("video", source)`` or parts as above, which are then placed before it.
        add_generation_prompt: end the prompt with the template's beginning of an answer of the assistant.
        continue_final_message: treat the last message as the beginning of the assistant's answer and continue it.
        template_options: ``tools``, ``documents`` and variables of the model's chat template.
        priority: a waiting request with a lower number runs before those with a higher one; equal ones run in the order
            in which they came.
        truncate_prompt_tokens: use only the last tokens of the prompt, this many at most; -1 for as many as leave room
            for the answer. Only text in front of the first medium can be cut.
        options: options of :class:`SamplingOptions`.

    Raises:
        PromptError: messages or media are invalid.
        ConfigError: an option is out of range.
    """

    def __init__(
        self,
        messages: str | Sequence[Message] | TokenPrompt,
        media: Sequence[Any] = (),
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_options: Mapping[str, Any] | None = None,
        priority: int = 0,
        truncate_prompt_tokens: int | None = None,
        **options: Any,
    ) -> None:
        if truncate_prompt_tokens is not None and (truncate_prompt_tokens < -1 or truncate_prompt_tokens == 0):
            raise ConfigError(f"truncate_prompt_tokens must be -1 or at least 1, got {truncate_prompt_tokens!r}")
        self.priority, self.truncate_prompt_tokens = priority, truncate_prompt_tokens
        self.options = SamplingOptions(**options)
        self.prompt = messages if isinstance(messages, TokenPrompt) else None
        """The prompt that is used instead of messages, if any."""
        if isinstance(messages, TokenPrompt):
            if media:
                raise PromptError("a prompt of tokens has no places for media")
            messages = "."
        if isinstance(messages, str):
            parts = [_as_part(item) for item in media]
            messages, media = user_messages(messages, [part["type"] for part in parts] or "text"), ()
            messages[0]["content"][: len(parts)] = parts
        check_messages(messages)
        check_last(messages, continue_final_message)
        self.messages, self.media = _resolve(messages, list(media))
        self.prompt_options = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "template_options": template_options,
        }
        """Options with which :func:`videollama2.prompting.build_prompt` renders the messages."""


def _as_part(item: Any) -> Message:
    if isinstance(item, dict):
        return item
    if isinstance(item, tuple) and len(item) == 2 and item[0] in TAGS:
        return {"type": item[0], item[0]: item[1]}
    raise PromptError(
        f"beside a plain question each medium is a pair ({' or '.join(map(repr, TAGS))}, source) or a part "
        f'{{"type": ...}}, got {type(item).__name__}'
    )


def _resolve(messages: Sequence[Message], media: list[Any]) -> tuple[list[Message], list[MediaPart]]:
    """Separate media from messages; returns messages with bare media parts, and the media in reading order."""
    given = len(media)
    found: list[MediaPart] = []
    bare: list[Message] = []
    for message in messages:
        content = message.get("content")
        if content is not None and not isinstance(content, str):
            parts = []
            for part in content:
                kind = part.get("type")
                if kind in TAGS:
                    own = media_parts(part, kind, media)
                    found += own
                    part = {"type": kind, "use_audio": True} if len(own) > 1 else {"type": kind}
                parts.append(part)
            content = parts
        bare.append({**message, "content": content})
    if media:
        raise PromptError(f"{given} media are given but the messages have places for {given - len(media)}")
    return bare, found


def split_sounds(messages: Sequence[Message], media: Sequence[Any]) -> tuple[list[Message], list[Any]]:
    """Mark videos that have sound in the messages, and place each sound after its video in the media.

    Args:
        media: media in reading order; a video with sound is ``{"video": ..., "audio": ...}``, as processors return it.
    """
    remaining = iter(media)
    marked: list[Message] = []
    for message in messages:
        content = message.get("content")
        if not isinstance(content, str) and content is not None:
            content = [_marked(part, remaining) if part.get("type") in TAGS else part for part in content]
        marked.append({**message, "content": content})
    return marked, [value for medium in media for value in as_media(medium)]


def _marked(part: Message, remaining: Iterator[Any]) -> Message:
    return {**part, "use_audio": True} if isinstance(next(remaining, None), Mapping) else part


def media_parts(part: Message, kind: str, media: list[Any]) -> list[MediaPart]:
    """Return the medium of a message part; for a video with sound, the frames and the sound as two media.

    Args:
        media: sources for parts that have none; if this part has none, the first source is removed and used.
    """
    options = {name: value for name, value in part.items() if name not in ("type", kind, *_SOURCES)}
    source = next((part[name] for name in (kind, *_SOURCES) if part.get(name) is not None), None)
    if source is None:
        if not media:
            raise PromptError(f"a {kind} part names no source and no medium is left for it")
        source = media.pop(0)
    read = ReadOptions.of(kind, options)
    seen = replace(read, use_audio=False, windows="published")
    if isinstance(source, Mapping):  # as processor["video"](..., va=True) returns it
        pictures, its_sound = source[VIDEO], source[AUDIO]
        return [MediaPart(VIDEO, pictures, seen), MediaPart(AUDIO, its_sound, read.of_its_sound)]
    sound = [MediaPart(AUDIO, source, read.of_its_sound)] if read.use_audio else []
    return [MediaPart(kind, source, seen), *sound]
