"""Converts chat requests into the engine's messages, and makes users' text harmless.

In the engine's messages, media are separate parts and never tags in the text, so ``<video>`` in a question remains
plain text. A tokenizer, however, recognises the names of its control tokens anywhere in a text: ``<|im_end|>`` typed by
a user would end the user's turn, and could begin another one in the name of the system. Such names are therefore split
by a space, and the tokens of every text are checked before it is passed on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from videollama2.media.kinds import AUDIO, IMAGE, VIDEO
from videollama2.prompting.template import reads_tools
from videollama2.serve.api.request import (
    AnyMediaPart,
    AssistantMessage,
    AudioPart,
    ChatMessage,
    ChatRequest,
    ImagePart,
    InputAudioPart,
    RefusalPart,
    TextPart,
    ToolMessage,
    VideoPart,
)
from videollama2.serve.api.tools import call_text, response_text, template_call
from videollama2.serve.long_text import Text
from videollama2.serve.web.errors import ApiError

CHARACTERS_PER_TOKEN = 32
"""Text with more characters than this times the tokens of a slot is refused before it is tokenised: it cannot fit, and
tokenising megabytes of text would delay all other requests. Ordinary text has three to five characters per token."""

_ROLES = {"developer": "system"}
_MOST_PASSES = 4
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class MediumAsked:
    """One medium of a request.

    Attributes:
        options: options of :class:`videollama2.media.frames.FrameSampling` or, for a sound,
            :class:`videollama2.media.audio.SoundSampling`.
        param: its path in the body.
        use_audio: whether the sound of this video is used too.
        windows: windows of that sound; None takes the published ones.
    """

    kind: str
    url: Text
    options: dict[str, Any]
    param: str
    use_audio: bool = False
    windows: str | None = None


class TextGuard:
    """Keeps control tokens and media placeholders out of users' text.

    Args:
        tokenizer: the model's tokenizer.
        placeholders: token ids that represent media.
        max_characters: maximum number of characters of all text of a request.
    """

    def __init__(self, tokenizer: Any, placeholders: Iterable[int], max_characters: int) -> None:
        self._tokenizer, self.max_characters = tokenizer, max_characters
        special = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
        added = getattr(tokenizer, "added_tokens_decoder", {})
        special |= {number: str(token) for number, token in added.items() if token.special}
        names = set(special.values())
        # Tokens for single bytes and the unknown token are allowed although some tokenizers list them as special,
        # because they also occur in ordinary text.
        self._forbidden = {number for number, name in special.items() if not _BYTE.fullmatch(name)} | set(placeholders)
        if tokenizer.unk_token_id not in (tokenizer.eos_token_id, tokenizer.bos_token_id):
            self._forbidden.discard(tokenizer.unk_token_id)
        names = {name for name in names if name.strip()}
        longest_first = sorted(names, key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, longest_first))) if names else None

    @cached_property
    def template_knows_tools(self) -> bool:
        """Whether the model's chat template supports tools, calls and their results."""
        return reads_tools(self._tokenizer)

    def checked(self, text: str, param: str) -> str:
        """Return the text unchanged after checking it.

        Raises:
            ApiError: the text has characters that UTF-8 cannot encode.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ApiError(400, "the text is not valid Unicode: it holds half a character", param=param) from None
        return text

    def clean(self, text: str, param: str) -> str:
        """Return the text with the names of control tokens split by a space.

        Raises:
            ApiError: the text still holds a control token, or has characters that UTF-8 cannot encode.
        """
        text = self.checked(text, param)
        for _ in range(_MOST_PASSES):
            if self._names is None or not self._names.search(text):
                break
            text = self._names.sub(_broken_up, text)
        if self._forbidden.intersection(self._tokenizer(text, add_special_tokens=False).input_ids):
            raise ApiError(400, "the text holds a control token of the model", code="invalid_text", param=param)
        return text


def _broken_up(found: re.Match[str]) -> str:
    name = found[0]
    return f"{name[0]} {name[1:]}" if len(name) > 1 else " "


def engine_messages(request: ChatRequest, guard: TextGuard) -> tuple[list[dict[str, Any]], list[MediumAsked]]:
    """Return messages whose media parts have no source yet, and the media in reading order.

    Raises:
        ApiError: the text is too long, or :class:`TextGuard` refuses it.
    """
    check_length(sum(map(len, _texts(request))), guard, "messages")
    messages, media = [], []
    for number, message in enumerate(request.messages):
        parts: list[dict[str, Any]] = []
        for place, part in enumerate(_parts(message)):
            param = f"messages.{number}.content.{place}"
            if isinstance(part, str):
                parts.append({"type": "text", "text": guard.clean(part, param)})
            else:
                media.append(_medium(part, request, param))
                parts.append({"type": media[-1].kind})
        plain = len(parts) == 1 and "text" in parts[0]
        told = {"role": _ROLES.get(message.role, message.role), "content": parts[0]["text"] if plain else parts}
        messages.append(_with_tools(told, message, guard, number))
    if request.tool_use is not None and not guard.template_knows_tools:
        messages = _with_system_text(messages, guard.clean(request.tool_use.system_text, "tools"))
    return messages, media


def kinds_asked(request: ChatRequest) -> list[str]:
    """Return the kind of each medium of a request; a video counts once, with or without its sound."""
    kinds = {ImagePart: IMAGE, VideoPart: VIDEO}
    parts = [part for message in request.messages for part in _parts(message)]
    return [kinds.get(type(part), AUDIO) for part in parts if not isinstance(part, str)]


def check_length(characters: int, guard: TextGuard, param: str) -> None:
    """Check that a text can fit, before it is tokenised.

    Raises:
        ApiError: the text is too long.
    """
    if characters > guard.max_characters:
        raise ApiError(
            400,
            f"{characters} characters of text are more than this model can read",
            code="context_length_exceeded",
            param=param,
        )


def _with_tools(told: dict[str, Any], message: ChatMessage, guard: TextGuard, number: int) -> dict[str, Any]:
    """Return the message with its tool calls or tool result: in the template's form or, if it has none, as text."""
    param = f"messages.{number}"
    if isinstance(message, ToolMessage):
        if guard.template_knows_tools:
            return {**told, "tool_call_id": message.tool_call_id}
        return {"role": "user", "content": response_text(_plain(told["content"]))}
    if not isinstance(message, AssistantMessage) or not message.tool_calls:
        return told
    if guard.template_knows_tools:
        calls = [template_call(call) for call in message.tool_calls]
        guard.clean(json.dumps(calls), f"{param}.tool_calls")
        return {**told, "tool_calls": calls}
    texts = [guard.clean(call_text(call), f"{param}.tool_calls") for call in message.tool_calls]
    return {**told, "content": "\n".join([text for text in (_plain(told["content"]), *texts) if text])}


def _plain(content: Any) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def _with_system_text(messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    if messages and messages[0]["role"] == "system":
        first = "\n\n".join(part for part in (_plain(messages[0]["content"]), text) if part)
        return [{"role": "system", "content": first}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _medium(part: AnyMediaPart, request: ChatRequest, param: str) -> MediumAsked:
    if isinstance(part, ImagePart):
        return MediumAsked(IMAGE, part.image_url.url, {}, f"{param}.image_url.url")
    if not isinstance(part, VideoPart):
        return _sound(part, request, param)
    of_kind = None if request.media_io_kwargs is None else request.media_io_kwargs.video
    # The most specific options come last.
    levels = [each for each in (of_kind, request.mm_processor_kwargs, part.mm_processor_kwargs) if each is not None]
    options: dict[str, Any] = {}
    for level in levels:
        options |= level.given()
    heard = [level.use_audio_in_video for level in levels if level.use_audio_in_video is not None]
    windows = [level.windows for level in levels if level.windows is not None]
    return MediumAsked(
        VIDEO,
        part.video_url.url,
        options,
        f"{param}.video_url.url",
        use_audio=heard[-1] if heard else False,
        windows=windows[-1] if windows else None,
    )


def _sound(part: AudioPart | InputAudioPart, request: ChatRequest, param: str) -> MediumAsked:
    of_kind = None if request.media_io_kwargs is None else request.media_io_kwargs.audio
    options: dict[str, Any] = {}
    for level in (of_kind, part.mm_processor_kwargs):
        options |= level.given() if level is not None else {}
    url, place = part.source
    return MediumAsked(AUDIO, url, options, f"{param}.{place}")


def _parts(message: Any) -> Sequence[str | AnyMediaPart]:
    """Return the texts and media parts of a message in reading order."""
    content = message.content
    if content is None and isinstance(message, AssistantMessage):
        content = message.refusal
    if content is None or isinstance(content, str):
        return [content or ""]
    return [_text_of(part) if isinstance(part, (TextPart, RefusalPart)) else part for part in content]


def _text_of(part: TextPart | RefusalPart) -> str:
    return part.text if isinstance(part, TextPart) else part.refusal


def _texts(request: ChatRequest) -> Iterable[str]:
    for message in request.messages:
        yield from (part for part in _parts(message) if isinstance(part, str))
        if isinstance(message, AssistantMessage):
            yield from (call.function.arguments for call in message.tool_calls or ())
