"""Reads the two answers of a record for preference training, of which the first is better than the second.

The better answer is the last turn of ``conversations``, or stands under ``chosen`` if the conversation ends with the
question; the worse one stands under ``rejected``, or ``rejected_response`` as in ms-swift. Both may be texts, turns
(``{"from": "gpt", "value": ...}``), messages (``{"role": "assistant", "content": ...}``) or lists with one message, as
LLaMA-Factory and TRL write them.
"""

from __future__ import annotations

from typing import Any

from videollama2.errors import DataError, shown
from videollama2.prompting import SPEAKERS

_REJECTED = ("rejected", "rejected_response")
PREFERENCE_KEYS = frozenset(("chosen", *_REJECTED))


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
        answer = answer.get("value", answer.get("content"))
    if not isinstance(answer, str) or not answer.strip():
        raise DataError(f"{key!r} must be an answer that is not empty, got {shown(answer)}")
    return answer
