"""Turns the conversation of a training record into ids and labels, as published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from videollama2.constants import IGNORE_INDEX
from videollama2.errors import DataError, PromptError
from videollama2.prompting.messages import ANY_TAG, Message, first_surrogate, tagged_parts
from videollama2.prompting.prompt import answer_spans, flatten, in_spans, split
from videollama2.prompting.template import render_chat_template

SPEAKERS = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
"""Who speaks in an annotation -> role of the message."""


def conversation_messages(conversations: Sequence[dict[str, str]], kinds: Sequence[str]) -> list[Message]:
    """Turn annotation turns into messages, in which each tag is a media part.

    A leading ``gpt`` turn is dropped, as published; a ``system`` turn may stand in front of all. A turn's only tag
    moves to the front of that turn, as published; several stay where they are. The tag's word does not matter
    (``<image>`` before a video is read as that video): ``kinds`` tells what the files are.

    Args:
        conversations: ``{"from": "human" | "gpt" | "system", "value": text}``.
        kinds: ``image`` or ``video`` per medium, in the order of the tags.

    Raises:
        DataError: no turns, an unknown speaker, turns that do not alternate or do not end with an answer, or a
            number of tags that is not the number of media; text that UTF-8 cannot hold.
    """
    system, messages = checked_turns(conversations, len(kinds))
    remaining = list(kinds)
    built: list[Message] = [] if system is None else [_said("system", system)]
    for role, text in messages:
        count = len(ANY_TAG.findall(text)) if role == "user" else 0
        own, remaining = remaining[:count], remaining[count:]
        built.append({"role": role, "content": tagged_parts(text, own)} if own else _said(role, text))
    return built


def _said(role: str, text: str) -> Message:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def checked_turns(conversations: Sequence[dict[str, str]], media: int) -> tuple[str | None, list[tuple[str, str]]]:
    """Return the system text, if there is one, and role and text of each turn that is learnt.

    Args:
        conversations: see :func:`conversation_messages`.
        media: number of media of the record.

    Raises:
        DataError: see :func:`conversation_messages`.
    """
    turns: list[tuple[str, str]] = []
    for turn in conversations:
        speaker, value = turn.get("from"), turn.get("value")
        if not isinstance(speaker, str) or speaker not in SPEAKERS or not isinstance(value, str):
            raise DataError(f"a turn needs 'from' (human or gpt) and a text 'value', got {turn!r}")
        if broken := first_surrogate(value):
            raise DataError(f"the text of a turn is not valid UTF-8: {broken}")
        turns.append((SPEAKERS[speaker], value))
    system = turns.pop(0)[1] if turns and turns[0][0] == "system" else None
    if turns and turns[0][0] == "assistant":
        turns = turns[1:]
    roles = [role for role, _ in turns]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise DataError(f"turns must alternate human, gpt and end with gpt; got {' '.join(roles) or 'no turn'}")
    found = sum(len(ANY_TAG.findall(text)) for role, text in turns if role == "user")
    if found != media:
        raise DataError(f"the human turns hold {found} media tag(s), the record holds {media} medium(s)")
    return system, turns


def training_ids(
    conversations: Sequence[dict[str, str]], kinds: Sequence[str], tokenizer: Any, stage: str = "finetune"
) -> tuple[list[int], list[int]]:
    """Return ids with media sentinels, and labels of equal length.

    Args:
        stage: ``finetune``: chat template, labels on the answers and what closes them. ``pretrain``: tag, human
            text and answer without template, all but the medium labelled, no end token (published, first stage).
            ``pretrain_answer``: the same text, labels on the answer only, end token added. ``pretrain_chat``: tag and
            answer through the chat template, the human text dropped (published, first stage of sound).

    Raises:
        DataError: see :func:`conversation_messages`; a first-stage record with more than one question.
    """
    messages = conversation_messages(conversations, kinds)
    if stage in ("pretrain", "pretrain_answer"):
        return _pretrain_ids(messages, tokenizer, answer_only=stage == "pretrain_answer")
    if stage == "pretrain_chat":
        return _finetune_ids(_tag_and_answer(messages), tokenizer)
    if stage != "finetune":
        raise PromptError(f"unknown stage {stage!r}; known: finetune, pretrain, pretrain_answer, pretrain_chat")
    return _finetune_ids(messages, tokenizer)


def _tag_and_answer(messages: list[Message]) -> list[Message]:
    question, answer = _one_pair(messages)
    media = [part for part in question["content"] if part["type"] != "text"]
    if not media:
        raise DataError("a first-stage record has a medium, and its question holds no tag")
    return [{**question, "content": media}, answer]


def _one_pair(messages: list[Message]) -> list[Message]:
    if len(messages) != 2:
        raise DataError(f"a first-stage record has one question and one answer, got {len(messages)} turns")
    return messages


def _pretrain_ids(messages: list[Message], tokenizer: Any, answer_only: bool) -> tuple[list[int], list[int]]:
    flat, tags, marker = flatten(_one_pair(messages))
    question, answer = (m["content"] for m in flat)
    ids = split(f"{question} {answer}", tags, marker).token_ids(tokenizer)
    labels = [IGNORE_INDEX if i < 0 else i for i in ids]
    if answer_only:
        masked = len(split(question, tags, marker).token_ids(tokenizer))
        labels[:masked] = [IGNORE_INDEX] * masked
        ids, labels = ids + [tokenizer.eos_token_id], labels + [tokenizer.eos_token_id]
    return ids, labels


def _finetune_ids(messages: list[Message], tokenizer: Any) -> tuple[list[int], list[int]]:
    flat, tags, marker = flatten(messages)
    whole = render_chat_template(flat, tokenizer, False)
    ids, starts = split(whole, tags, marker).ids_with_starts(tokenizer)
    answered = in_spans(starts, answer_spans(flat, whole, tokenizer))
    return ids, [
        token if is_answer and token >= 0 else IGNORE_INDEX for token, is_answer in zip(ids, answered, strict=True)
    ]
