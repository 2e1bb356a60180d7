"""Makes replies about single tokens: their text, their bytes and their log-probabilities."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from videollama2.serve.api.reply import ChosenLogprob, Logprobs, TopLogprob

if TYPE_CHECKING:
    from videollama2.inference.sampling import TokenLogprob

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_METASPACE = "\u2581"
_BROKEN = "\ufffd"


def logprobs_of(chosen: Iterable[TokenLogprob] | None, tokenizer: Any) -> Logprobs | None:
    """Return the log-probabilities of an answer's tokens in OpenAI's form; None if they were not requested."""
    if chosen is None:
        return None
    content = []
    for item in chosen:
        top = [_entry(tokenizer, token_id, value) for token_id, value in item.top]
        content.append(
            ChosenLogprob(
                **_entry(tokenizer, item.token_id, item.logprob), top_logprobs=[TopLogprob(**entry) for entry in top]
            )
        )
    return Logprobs(content=content)


def _entry(tokenizer: Any, token_id: int, value: float) -> dict[str, Any]:
    text, data = token_text(tokenizer, token_id)
    # JSON has no infinity; OpenAI sends -9999 for tokens that are practically impossible.
    return {"token": text, "logprob": max(value, -9999.0), "bytes": None if data is None else list(data)}


def token_text(tokenizer: Any, token_id: int) -> tuple[str, bytes | None]:
    """Return the text and bytes of one token, which may be part of a character. The bytes are None if unknown."""
    piece = tokenizer.convert_ids_to_tokens(token_id)
    if piece is None:  # the model has this id, but the tokenizer has no piece for it
        return "", None
    byte = _BYTE.fullmatch(piece)
    if byte:
        data = bytes([int(byte[1], 16)])
    elif piece.startswith(_METASPACE):
        data = piece.replace(_METASPACE, " ").encode()
    else:
        text = tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
        if _BROKEN not in text:
            return text, text.encode()
        table = _byte_alphabet()
        if not all(letter in table for letter in piece):
            return text, None
        data = bytes(table[letter] for letter in piece)
    return data.decode("utf-8", errors="replace"), data


@lru_cache(maxsize=1)
def _byte_alphabet() -> dict[str, int]:
    """Return the byte behind each letter of byte-level tokenizers, whose letters of unprintable bytes start at 256."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
