"""Turn token ids into text while they come, in whole characters and without any part of a stop text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_BROKEN = "\ufffd"
_LONGEST_CHARACTER = 8
"""Tokens that may be one character: four for UTF-8 bytes; some leave room for more."""


class TextStream:
    """Text of one answer.

    A character may be split over tokens and a stop text over deltas, so the end of what is known is held back while it
    could still become either.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), skip_special_tokens: bool = True) -> None:
        self._tokenizer, self._skip_special_tokens = tokenizer, skip_special_tokens
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._decoded = 0  # ids[:_decoded] are in self.text
        self._context = 0  # ids[_context:_decoded] are decoded again with new ones: blanks depend on what stands before
        self._sent = 0
        self.text = ""
        """All that is decoded, up to a stop text."""
        self.stopped = False
        """A stop text was met."""

    def push(self, token_id: int) -> str:
        """Add a token; returns the text that is now certain."""
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
            # Not behind a token without text (a special one): the next would look like the first, and lose its blank.
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
        """Length of the longest end of the text that a stop text begins with."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self.text)), longest, -1):
                if self.text.endswith(stop[:length]):
                    longest = length
                    break
        return longest
