"""Keeps long strings of a request's body, such as media in base64, as they arrived.

Parsing, copying or decoding a string of a hundred megabytes is a single call into C, and no other thread runs until it
returns. A long string is therefore never made into a ``str``: it stays a part of the body and is read piece by piece.
"""

from __future__ import annotations

import io
import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

LONG_BYTES = 1 << 16
"""Strings with more bytes of JSON than this are long."""

PIECE = 1 << 18
"""Number of bytes, or characters, that are processed in one call."""

_UNFINISHED_CODE = re.compile(rb"u[0-9a-fA-F]{0,3}\Z")
_FIRST_OF_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\Z")


@dataclass(frozen=True, eq=False)
class LongText:
    """A string whose JSON text is ``body[start:end]``.

    Attributes:
        head: characters in front of it.
        skipped: number of its first characters that do not belong to the string.
    """

    body: bytes
    start: int
    end: int
    head: str = ""
    skipped: int = 0

    def __len__(self) -> int:
        """Return the number of characters if there are no escape sequences, and otherwise a little more."""
        return len(self.head) + self.end - self.start - self.skipped

    def __repr__(self) -> str:
        return f"LongText({len(self)} characters)"

    def pieces(self) -> Iterator[str]:
        """Yield the characters in pieces.

        Raises:
            ValueError: the JSON text is not valid.
        """
        yield self.head
        at, skipped = self.start, self.skipped
        while at < self.end:
            source = self.body[at : min(at + PIECE, self.end)]
            if at + len(source) < self.end:
                source = source[: _whole(source)]
            piece = json.loads(b'"' + source + b'"')
            yield piece[skipped:]
            at, skipped = at + len(source), max(0, skipped - len(piece))


Text = str | LongText


def pieces(text: Text, start: int = 0) -> Iterator[str]:
    """Yield the characters of a text from ``start`` in pieces.

    Raises:
        ValueError: the JSON of a long text is not valid.
    """
    if isinstance(text, str):
        yield from (text[at : at + PIECE] for at in range(start, len(text), PIECE))
    else:
        yield from _headed(text, start, "").pieces()


def beginning(text: Text, count: int) -> str:
    """Return the first ``count`` characters; an empty text if their JSON is not valid."""
    if isinstance(text, str):
        return text[:count]
    try:
        found = ""
        for piece in text.pieces():
            found += piece[:count]
            if len(found) >= count:
                break
        return found[:count]
    except ValueError:
        return ""


def ending(text: Text, size: int) -> bytes:
    """Return about the last ``size`` bytes of a text: of a long one, those of its JSON."""
    if isinstance(text, str):
        return text[-size:].encode("utf-8", "replace")
    return text.body[max(text.start, text.end - size) : text.end]


def with_head(text: Text, skipped: int, head: str) -> Text:
    """Return a text with ``head`` in place of its first ``skipped`` characters."""
    return head + text[skipped:] if isinstance(text, str) else _headed(text, skipped, head)


def _headed(text: LongText, skipped: int, head: str) -> LongText:
    kept = text.head[skipped:]
    more = max(0, skipped - len(text.head))
    return LongText(text.body, text.start, text.end, head + kept, text.skipped + more)


def dumped(value: Any) -> bytes:
    """Return a value, which may hold long texts, as JSON in ASCII.

    Raises:
        ValueError: the JSON of a long text is not valid.
        TypeError: the value holds an object that JSON has no form for.
    """
    # Random names stand for the long texts until the rest is written.
    texts: dict[str, LongText] = {}

    def named(found: Any) -> str:
        if not isinstance(found, LongText):
            raise TypeError(f"{type(found).__name__} has no form in JSON")
        name = secrets.token_hex(16)
        texts[name] = found
        return name

    rest, written = json.dumps(value, default=named), io.BytesIO()
    for name, text in texts.items():
        before, _, rest = rest.partition(name)
        written.write(before.encode("ascii"))
        for piece in text.pieces():
            written.write(json.dumps(piece)[1:-1].encode("ascii"))
    written.write(rest.encode("ascii"))
    return written.getvalue()


def _whole(source: bytes) -> int:
    """Return the length of the source without a character or escape sequence at its end that it holds only a part of.

    The source is at least a few bytes long and begins with a whole character.
    """
    end = len(source)
    while end and source[end - 1] & 0xC0 == 0x80:  # bytes that continue a character of UTF-8
        end -= 1
    if end < len(source) or source[-1] & 0xC0 == 0xC0:
        return end - 1
    # A backslash begins an escape sequence if it follows an even number of backslashes.
    code = _UNFINISHED_CODE.search(source, max(0, end - 4))
    slash = (code.start() if code else end) - 1
    if source[slash : slash + 1] == b"\\" and _is_escape(source, slash):
        end = slash
    pair = _FIRST_OF_PAIR.search(source, max(0, end - 6), end)
    return end - 6 if pair and _is_escape(source, end - 6) else end


def _is_escape(source: bytes, slash: int) -> bool:
    before = source[:slash]
    return (len(before) - len(before.rstrip(b"\\"))) % 2 == 0
