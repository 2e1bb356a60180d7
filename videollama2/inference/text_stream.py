"""Decodes token ids into text incrementally, in whole characters and without any part of a stop text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_BROKEN = "\ufffd"
_LONGEST_CHARACTER = 8
"""Maximum number of tokens that may form one character: four for UTF-8 bytes, with some margin."""


class TextStream:
    """The text of one answer.

    A character may be split over several tokens and a stop text over several deltas. The end of the text is therefore
    held back as long as it may be part of either.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), skip_special_tokens: bool = True) -> None:
        self._tokenizer, self._skip_special_tokens = tokenizer, skip_special_tokens
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._decoded = 0  # self.text contains ids[:_decoded]
        self._context = 0  # ids[_context:_decoded] are decoded again with new ones, since blanks depend on them
        self._sent = 0
        self.text = ""
        """The decoded text up to a stop text."""
        self.stopped = False
        """Whether a stop text was found."""

    def push(self, token_id: int) -> str:
        """Add a token; returns the new text that is certain."""
        self._ids.append(token_id)
        self._decode(final=False)
        return self._release(final=self.stopped)

    def finish(self) -> str:
        """End the answer; returns the text that was held back."""
        self._decode(final=True)
        return self._release(final=True)

    def _decode(self, final: bool) -> None:
        if self.stopped or self._decoded == len(self._ids):
            return
        known = self._text(self._context, self._decoded)
        grown = self._text(self._context, len(self._ids))
        pending = len(self._ids) - self._decoded
        if grown.endswith(_BROKEN) and not final and pending < _LONGEST_CHARACTER:
            return
        before = len(self.text)
        self.text += grown[len(known) :]
        if len(grown) > len(known):
            # The context must contain text. After a special token, which has none, the next token would be decoded as
            # the first of a text and lose its blank.
            self._context = self._decoded
        self._decoded = len(self._ids)
        self._look_for_stop(before)

    def _text(self, start: int, end: int) -> str:
        return self._tokenizer.decode(
            self._ids[start:end], skip_special_tokens=self._skip_special_tokens, clean_up_tokenization_spaces=False
        )

    def _look_for_stop(self, before: int) -> None:
        places = []
        for stop in self._stop:
            place = self.text.find(stop, max(0, before - len(stop) + 1))
            if place >= 0:
                places.append(place)
        if places:
            self.text = self.text[: min(places)]
            self.stopped = True

    def _release(self, final: bool) -> str:
        end = len(self.text) if final else len(self.text) - self._held()
        delta = self.text[self._sent : end]
        self._sent = max(self._sent, end)
        return delta

    def _held(self) -> int:
        """Return the length of the longest suffix of the text that is a prefix of a stop text."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self.text)), longest, -1):
                if self.text.endswith(stop[:length]):
                    longest = length
                    break
        return longest
