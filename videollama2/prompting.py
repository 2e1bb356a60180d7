"""Messages -> prompt: system text, media tags, chat template, training labels. No tensor and no pixel is seen here.

A prompt is text with media in between. Text is tokenised piece by piece around the media, as published: a Metaspace
tokenizer adds a prefix to every piece, so tokenising the whole would give other ids. Where a medium stood, the ids
hold the published sentinel (:data:`~videollama2.constants.MODAL_INDEX_MAP`); ``processing`` expands it.

A tag is a medium only where a message part or an annotation says so. The same letters typed by a user stay text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from videollama2.constants import (
    DEFAULT_IMAGE_TOKEN,
    DEFAULT_VIDEO_TOKEN,
    IGNORE_INDEX,
    MODAL_INDEX_MAP,
)
from videollama2.errors import DataError, PromptError

Message = dict[str, Any]

TAGS = {"image": DEFAULT_IMAGE_TOKEN, "video": DEFAULT_VIDEO_TOKEN}

# The published system text of Mistral and Mixtral at inference. It defines published numbers: data, not prose.
SAFETY_SYSTEM_PROMPT = (
    "<<SYS>>\nYou are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being "
    "safe.  Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal "
    "content. Please ensure that your responses are socially unbiased and positive in nature.\nIf a question does not "
    "make any sense, or is not factually coherent, explain why instead of answering something not correct. If you "
    "don't know the answer to a question, please don't share false information.\n<</SYS>>"
)
SYSTEM_PROMPTS = {"mistral": SAFETY_SYSTEM_PROMPT, "mixtral": SAFETY_SYSTEM_PROMPT}
"""Decoder ``model_type`` -> system text that inference puts first."""

_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant"}
_ANY_TAG = re.compile("|".join(map(re.escape, TAGS.values())))


@dataclass(frozen=True)
class Prompt:
    """``chunks[0] tags[0] chunks[1] tags[1] ... chunks[-1]``; tags are ``<image>`` or ``<video>``."""

    chunks: tuple[str, ...]
    tags: tuple[str, ...]

    @property
    def text(self) -> str:
        """The prompt as one string, tags written out."""
        pairs = zip(self.chunks, (*self.tags, ""), strict=True)
        return "".join(chunk + tag for chunk, tag in pairs)

    def token_ids(self, tokenizer: Any) -> list[int]:
        """Ids with one published sentinel per medium."""
        ids: list[int] = []
        for chunk, tag in zip(self.chunks, (*self.tags, None), strict=True):
            ids += _tokenize(chunk, tokenizer)
            if tag is not None:
                ids.append(MODAL_INDEX_MAP[tag])
        return ids


def tokenizer_multimodal_token(prompt: str, tokenizer: Any, tag: str | None = DEFAULT_VIDEO_TOKEN) -> list[int]:
    """Ids of ``prompt`` in which every occurrence of ``tag`` is its sentinel (published function).

    Args:
        tag: one of ``<image>``, ``<video>``, ``<audio>``; empty or None: plain text.
    """
    if not tag:
        return _tokenize(prompt, tokenizer)
    if tag not in MODAL_INDEX_MAP:
        raise PromptError(f"unknown media tag {tag!r}; known: {', '.join(MODAL_INDEX_MAP)}")
    chunks = tuple(prompt.split(tag))
    return Prompt(chunks, (tag,) * (len(chunks) - 1)).token_ids(tokenizer)


def _tokenize(text: str, tokenizer: Any) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


# ------------------------------------------------------------------------------------------------- inference


def user_messages(instruct: str | Sequence[Message], modal: str | Sequence[str] = "text") -> list[Message]:
    """Published call form -> messages whose first one begins with the media.

    Args:
        instruct: a question, or messages with ``role`` and ``content``.
        modal: ``image``, ``video``, ``text``, or a list of the first two for several media.

    Raises:
        PromptError: unknown modality, no message, or a message without text or with text that UTF-8 cannot hold.
    """
    messages = [{"role": "user", "content": instruct}] if isinstance(instruct, str) else instruct
    check_messages(messages)
    messages = [dict(message) for message in messages]
    first = next((i for i, m in enumerate(messages) if m["role"] != "system"), None)
    if first is None:
        raise PromptError("the messages hold a system text but no question")
    modals = [modal] if isinstance(modal, str) else list(modal)
    kinds = [kind for kind in modals if kind != "text"]
    for kind in kinds:
        if kind not in TAGS:
            raise PromptError(f"unknown modality {kind!r}; known: image, video, text")
    content = messages[first]["content"]
    if not isinstance(content, str):
        if kinds:
            raise PromptError("give media either as 'modal' or as parts of the messages, not both")
        return messages
    parts = [{"type": kind} for kind in kinds] or [{"type": "text", "text": ""}]
    messages[first]["content"] = [*parts, {"type": "text", "text": content}]
    return messages


def check_messages(messages: Sequence[Message]) -> None:
    """Raise PromptError unless there is a message, and each has a known role and some text that UTF-8 can hold."""
    if not isinstance(messages, Sequence):
        raise PromptError(f"a question or a list of messages is needed, got {_kind(messages)}")
    if not messages:
        raise PromptError("there is no message: a question is needed")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise PromptError(f"message {number} must be a dict with role and content, got {_kind(message)}")
        role = message.get("role")
        if role not in ("system", "user", "assistant"):
            raise PromptError(f"message {number}: role {role!r} is not one of system, user, assistant")
        check_text("".join(_texts(message.get("content"), number)), f"message {number} ({role})")


def check_text(text: str, name: str) -> None:
    """Raise PromptError unless the text says something and UTF-8 can hold it; no tokenizer takes it otherwise.

    A lone surrogate is how Python shows a byte of a command line that is not UTF-8.
    """
    if not text.strip():
        raise PromptError(f"{name} has no text: a prompt needs a question")
    if broken := _first_surrogate(text):
        raise PromptError(f"{name} is not valid UTF-8: {broken}")


def _first_surrogate(text: str) -> str | None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"character {error.start + 1} is {text[error.start]!a}"
    return None


def _texts(content: Any, number: int) -> list[str]:
    """Texts of one message's content, a string or a list of parts; a medium counts as an empty one."""
    if isinstance(content, str):
        return [content]
    if content is None:
        return []
    if not isinstance(content, Sequence):
        raise PromptError(f"message {number}: content must be a text or a list of parts, got {_kind(content)}")
    texts = []
    for part in content:
        text = None
        if isinstance(part, Mapping):
            text = part.get("text", None if part.get("type") == "text" else "")
        if not isinstance(text, str):
            raise PromptError(f"message {number}: a part must be a dict with a type, and its text a str, got {part!r}")
        texts.append(text)
    return texts


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def build_prompt(
    messages: Sequence[Message], tokenizer: Any, decoder_type: str, add_generation_prompt: bool = True
) -> Prompt:
    """Render messages with the tokenizer's chat template.

    Args:
        messages: ``role`` and ``content``; content is text, or a list of parts ``{"type": "text", "text": ...}``,
            ``{"type": "image"}``, ``{"type": "video"}``, joined by line breaks (the published layout).
        tokenizer: with a chat template.
        decoder_type: ``model_type`` of the decoder; Mistral and Mixtral get the published system text unless the
            messages bring their own.
    """
    check_messages(messages)
    messages = list(messages)
    if decoder_type in SYSTEM_PROMPTS and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": SYSTEM_PROMPTS[decoder_type]})
    flat, tags, marker = _flatten(messages)
    return _split(render(flat, tokenizer, add_generation_prompt), tags, marker)


def render(messages: Sequence[Message], tokenizer: Any, add_generation_prompt: bool) -> str:
    """Apply the tokenizer's chat template; contents are plain strings."""
    if not tokenizer.chat_template:
        raise PromptError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no chat template: this is not a chat checkpoint"
        )
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except TemplateError as error:
        raise PromptError(f"the chat template of {tokenizer.name_or_path!r} refuses these messages: {error}") from error


def _flatten(messages: Sequence[Message]) -> tuple[list[Message], list[str], str]:
    """Messages with string contents in which each medium is a private marker, the tags in order, and the marker."""
    marker = _unused_character("".join(_all_text(messages)))
    flat, tags = [], []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            pieces = []
            for part in content:
                kind = part.get("type")
                if kind == "text":
                    pieces.append(part["text"])
                elif kind in TAGS:
                    pieces.append(marker)
                    tags.append(TAGS[kind])
                else:
                    raise PromptError(f"unknown content part type {kind!r}; known: text, image, video")
            content = "\n".join(pieces)
        flat.append({"role": message["role"], "content": content})
    return flat, tags, marker


def _all_text(messages: Sequence[Message]) -> list[str]:
    texts = []
    for message in messages:
        content = message["content"]
        texts += [content] if isinstance(content, str) else [p.get("text", "") for p in content]
    return texts


def _unused_character(text: str) -> str:
    """A private-use character that ``text`` does not contain: templates carry it through, no tokenizer sees it."""
    return next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in text)


def _split(rendered: str, tags: Sequence[str], marker: str) -> Prompt:
    chunks = tuple(rendered.split(marker))
    if len(chunks) != len(tags) + 1:
        raise PromptError(f"the chat template kept {len(chunks) - 1} of {len(tags)} media of the messages")
    return Prompt(chunks, tuple(tags))


# -------------------------------------------------------------------------------------------------- training


def conversation_messages(conversations: Sequence[dict[str, str]], kinds: Sequence[str]) -> list[Message]:
    """Annotation turns -> messages, each tag a media part.

    A leading ``gpt`` turn is dropped, as published. With one medium its tag moves to the front of its turn, as
    published; with several they stay where they are. The tag's word does not matter (``<image>`` before a video is
    read as that video): ``kinds`` tells what the files are.

    Args:
        conversations: ``{"from": "human" | "gpt", "value": text}``.
        kinds: ``image`` or ``video`` per medium, in the order of the tags.

    Raises:
        DataError: no turns, an unknown speaker, turns that do not alternate or do not end with an answer, or a
            number of tags that is not the number of media; text that UTF-8 cannot hold.
    """
    messages: list[Message] = []
    for turn in conversations:
        speaker, value = turn.get("from"), turn.get("value")
        if speaker not in _ROLES or not isinstance(value, str):
            raise DataError(f"a turn needs 'from' (human or gpt) and a text 'value', got {turn!r}")
        if broken := _first_surrogate(value):
            raise DataError(f"the text of a turn is not valid UTF-8: {broken}")
        messages.append({"role": _ROLES[speaker], "content": value})
    if messages and messages[0]["role"] == "assistant":
        messages = messages[1:]
    roles = [m["role"] for m in messages]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise DataError(f"turns must alternate human, gpt and end with gpt; got {' '.join(roles) or 'no turn'}")
    found = sum(len(_ANY_TAG.findall(m["content"])) for m in messages if m["role"] == "user")
    if found != len(kinds):
        raise DataError(f"the human turns hold {found} media tag(s), the record holds {len(kinds)} medium(s)")
    remaining = list(kinds)
    for message in messages:
        if message["role"] == "user" and _ANY_TAG.search(message["content"]):
            message["content"] = _content_parts(message["content"], remaining, alone=len(kinds) == 1)
    return messages


def _content_parts(text: str, remaining: list[str], alone: bool) -> list[dict[str, str]]:
    if alone:
        rest = _ANY_TAG.sub("", text).strip()
        return [{"type": remaining.pop(0)}] + ([{"type": "text", "text": rest}] if rest else [])
    parts: list[dict[str, str]] = []
    pieces = _ANY_TAG.split(text)
    for number, piece in enumerate(pieces):
        if number:
            parts.append({"type": remaining.pop(0)})
        if piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    return parts


def training_ids(
    conversations: Sequence[dict[str, str]], kinds: Sequence[str], tokenizer: Any, stage: str = "finetune"
) -> tuple[list[int], list[int]]:
    """Ids with media sentinels, and labels of equal length.

    Args:
        stage: ``finetune``: chat template, labels on the answers and what closes them. ``pretrain``: tag, human
            text and answer without template, all but the medium labelled, no end token (published, first stage).
            ``pretrain_answer``: the same text, labels on the answer only, end token added.

    Raises:
        DataError: see :func:`conversation_messages`; a first-stage record with more than one question.
    """
    messages = conversation_messages(conversations, kinds)
    if stage in ("pretrain", "pretrain_answer"):
        return _pretrain_ids(messages, tokenizer, answer_only=stage == "pretrain_answer")
    if stage != "finetune":
        raise PromptError(f"unknown stage {stage!r}; known: finetune, pretrain, pretrain_answer")
    return _finetune_ids(messages, tokenizer)


def _pretrain_ids(messages: list[Message], tokenizer: Any, answer_only: bool) -> tuple[list[int], list[int]]:
    if len(messages) != 2:
        raise DataError(f"a first-stage record has one question and one answer, got {len(messages)} turns")
    flat, tags, marker = _flatten(messages)
    question, answer = (m["content"] for m in flat)
    ids = _split(f"{question} {answer}", tags, marker).token_ids(tokenizer)
    labels = [IGNORE_INDEX if i < 0 else i for i in ids]
    if answer_only:
        masked = len(_split(question, tags, marker).token_ids(tokenizer))
        labels[:masked] = [IGNORE_INDEX] * masked
        ids, labels = ids + [tokenizer.eos_token_id], labels + [tokenizer.eos_token_id]
    return ids, labels


def _finetune_ids(messages: list[Message], tokenizer: Any) -> tuple[list[int], list[int]]:
    flat, tags, marker = _flatten(messages)
    whole = render(flat, tokenizer, False)
    ids, starts = _ids_with_starts(_split(whole, tags, marker), tokenizer)
    labels = [IGNORE_INDEX] * len(ids)
    for turn in range(1, len(flat), 2):
        before = render(flat[:turn], tokenizer, True)
        after = render(flat[: turn + 1], tokenizer, False)
        if not (whole.startswith(before) and whole.startswith(after)):
            raise PromptError("the chat template rewrites earlier turns when later ones follow: no place for labels")
        for position, start in enumerate(starts):
            if len(before) <= start < len(after) and ids[position] >= 0:
                labels[position] = ids[position]
    return ids, labels


def _ids_with_starts(prompt: Prompt, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids as :meth:`Prompt.token_ids`, and the character of the rendered text each starts at (a medium counts 1)."""
    ids: list[int] = []
    starts: list[int] = []
    base = 0
    for chunk, tag in zip(prompt.chunks, (*prompt.tags, None), strict=True):
        encoded = tokenizer(chunk, add_special_tokens=False, return_offsets_mapping=True)
        ids += encoded.input_ids
        starts += [base + start for start, _ in encoded.offset_mapping]
        base += len(chunk)
        if tag is not None:
            ids.append(MODAL_INDEX_MAP[tag])
            starts.append(base)
            base += 1
    return ids, starts
