"""Reads the two answers of a record for preference training, of which the first is better than the second.

The better answer is the last turn of ``conversations``, or stands under ``chosen`` if the conversation ends with the
question; the worse one stands under ``rejected``, or ``rejected_response`` as in ms-swift. Both may be texts, turns
(``{"from": "gpt", "value": ...}``), messages (``{"role": "assistant", "content": ...}``) or lists with one message, as
LLaMA-Factory and TRL write them. TRL may also begin both lists with the question, and ms-swift has a whole second
conversation under ``rejected_messages``; both conversations must then be the same up to the last answer.
"""

from __future__ import annotations

from typing import Any

from videollama2.errors import DataError, shown
from videollama2.prompting import SPEAKERS

_REJECTED = ("rejected", "rejected_response")
_WHOLE = "rejected_messages"
_CONVERSATIONS = ("conversations", "messages", "query", "prompt")
PREFERENCE_KEYS = frozenset(("chosen", _WHOLE, *_REJECTED))


def with_one_question(raw: dict[str, Any]) -> dict[str, Any]:
    """Return a row of two whole conversations as one of a question with two answers; other rows as they are.

    Raises:
        DataError: the conversations differ before their last messages.
    """
    if raw.get(_WHOLE) is not None:
        keys = ("messages", _WHOLE)
    elif _is_conversation(raw.get("chosen")) and _is_conversation(raw.get("rejected")):
        keys = ("chosen", "rejected")
        if other := next((name for name in _CONVERSATIONS if raw.get(name) is not None), None):
            raise DataError(f"'chosen', 'rejected' and {other!r} all hold the conversation")
    else:
        return raw
    better, worse = (raw[key] if _is_conversation(raw.get(key)) else [] for key in keys)
    if not (better and worse) or better[:-1] != worse[:-1]:
        raise DataError(f"{' and '.join(map(repr, keys))} must be conversations that differ in the last answer alone")
    rest = {key: value for key, value in raw.items() if key != _WHOLE}
    return {**rest, "messages": better[:-1], "chosen": better[-1], "rejected": worse[-1]}


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1


def split_preference(raw: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return a row whose conversation ends with the better answer, and the worse answer or None.

    Raises:
        DataError: the answers do not have one of these forms, are equal, or one of them is missing.
    """
    given = [key for key in _REJECTED if raw.get(key) is not None]
    chosen = raw.get("chosen")
    if not given:
        if chosen is not None:
            raise DataError("'chosen' has no 'rejected' answer beside it")
        return raw, None
    if len(given) > 1:
        raise DataError(f"{' and '.join(map(repr, given))} mean the same: a record may have one of them")
    rejected = _text(raw[given[0]], given[0])
    turns: list[Any] = list(raw.get("conversations") or ())
    last = turns[-1] if turns and isinstance(turns[-1], dict) else {}
    answered = SPEAKERS.get(str(last.get("from"))) == "assistant"
    if answered == (chosen is not None):
        raise DataError(
            "the better answer must be either the last turn of the conversation or under 'chosen', "
            + ("and it is both" if answered else "and it is neither")
        )
    if chosen is not None:
        last = {"from": "gpt", "value": _text(chosen, "chosen")}
        turns.append(last)
    if rejected == last.get("value"):
        raise DataError(f"the better and the worse answer are the same: {rejected[:60]!r}")
    return {**raw, "conversations": turns}, rejected


def _text(answer: Any, key: str) -> str:
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if isinstance(answer, dict):
        speaker = answer.get("from", answer.get("role", "assistant"))
        if SPEAKERS.get(str(speaker)) != "assistant":
            raise DataError(f"{key!r} must be an answer of the assistant, got one of {speaker!r}")
        answer = answer.get("value", answer.get("content"))
    if isinstance(answer, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in answer):
        answer = "".join(str(part.get("text")) for part in answer)
    if not isinstance(answer, str) or not answer.strip():
        raise DataError(f"{key!r} must be an answer that is not empty, got {shown(answer)}")
    return answer
