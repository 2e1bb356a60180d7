"""Lays out prompts for vLLM: where the media are, and which ids stand there. Needs no vLLM.

vLLM accepts ids of the vocabulary only, and it knows the places of media by strings in the text. Both are at odds with
this model, whose placeholder ids lie outside the vocabulary so that no text can produce them. Here, therefore,

* a *marker* stands for a medium until its tokens are counted. It is made at random in each process, so that no user can
  write one: a text in conversations that vLLM renders, ids of the vocabulary in prompts that this package tokenises;
* the *filler*, an id of the vocabulary that no text produces, then stands at each position of a medium. The features
  replace its embedding.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from itertools import count
from types import MappingProxyType
from typing import Any, NamedTuple

from videollama2.errors import PromptError
from videollama2.media.kinds import AUDIO, KINDS, TAGS, VIDEO
from videollama2.processing import VideoLlama2Processor, padding_id
from videollama2.prompting.prompt import SYSTEM_PROMPTS

_SECRET = secrets.token_hex(16)
_TEXT_MARKER = re.compile(rf"<({'|'.join(KINDS)}):{_SECRET}:(\d+)>")

_MARKER_IDS = 12
_KIND_OF_SENTINEL = {kind.sentinel: name for name, kind in KINDS.items()}


class Place(NamedTuple):
    """The place of a medium in a prompt: its kind, and its number among the media of that kind, from 0."""

    kind: str
    number: int


Piece = list[int] | Place
"""A part of a prompt: the ids of a text, or the place of a medium."""


def text_marker(kind: str, number: int) -> str:
    """Return what stands for a medium in the text of conversations that vLLM renders; see :class:`Place`."""
    return f"<{kind}:{_SECRET}:{number}>"


@lru_cache(maxsize=8)
def id_markers(vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Return the marker of each kind in prompts that this package tokenises: random ids of the vocabulary."""
    return {kind: tuple(secrets.randbelow(vocab_size) for _ in range(_MARKER_IDS)) for kind in KINDS}


def filler_id(tokenizer: Any) -> int:
    """Return the id that stands at the positions of media.

    It is the token of the byte 0xFF, which no text in UTF-8 holds: as byte fallback of sentencepiece, or in the
    alphabet of byte-level BPE. A tokenizer that has neither gives its padding id.
    """
    vocabulary = tokenizer.get_vocab()
    return next((vocabulary[token] for token in ("<0xFF>", "\u00ff") if token in vocabulary), padding_id(tokenizer))


def marked_ids(ids: Sequence[int], vocab_size: int) -> list[int]:
    """Replace published sentinels in the ids of a prompt by markers, see :func:`split_prompt`."""
    markers = id_markers(vocab_size)
    marked: list[int] = []
    for token in ids:
        kind = _KIND_OF_SENTINEL.get(token)
        marked += [token] if kind is None else markers[kind]
    return marked


def split_prompt(
    ids: Sequence[int],
    counts: Mapping[str, int],
    tokenizer: Any,
    vocab_size: int,
    sounds: Mapping[int, int] = MappingProxyType({}),
) -> list[Piece]:
    """Split a tokenised prompt at its media.

    Without markers of this process, the media are where the published tags are (``<video>``), as callers write them
    that complete a text.

    Args:
        ids: ids with markers of :func:`id_markers`, or of a text with markers of :func:`text_marker` or tags.
        counts: number of media of each kind.
        sounds: the number of each video whose sound vLLM has taken out of it, and the number of that sound.

    Raises:
        PromptError: there are more or fewer places than media.
    """
    found = _at_id_markers(list(ids), id_markers(vocab_size))
    if len(found) == 1:
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        parts = _at_text_markers(text, sounds) if _TEXT_MARKER.search(text) else _at_tags(text)
        # Each part is tokenised on its own, as published.
        found = [p if isinstance(p, Place) else tokenizer(p, add_special_tokens=False).input_ids for p in parts]
    for kind, given in counts.items():
        places = sum(isinstance(piece, Place) and piece.kind == kind for piece in found)
        if places != given:
            raise PromptError(f"the prompt has places for {places} media of the kind {kind}, but {given} are given")
    return found


def _at_id_markers(ids: list[int], markers: Mapping[str, tuple[int, ...]]) -> list[Piece]:
    pieces: list[Piece] = []
    numbers = {kind: count() for kind in markers}
    start = position = 0
    while position < len(ids):
        window = tuple(ids[position : position + _MARKER_IDS])
        kind = next((kind for kind, marker in markers.items() if marker == window), None)
        if kind is None:
            position += 1
            continue
        pieces += [ids[start:position], Place(kind, next(numbers[kind]))]
        start = position = position + _MARKER_IDS
    return [*pieces, ids[start:]]


def _at_tags(text: str) -> list[str | Place]:
    kinds = {tag: kind for kind, tag in TAGS.items()}
    numbers = {kind: count() for kind in TAGS}
    parts = re.split("(" + "|".join(map(re.escape, kinds)) + ")", text)
    return [Place(kinds[part], next(numbers[kinds[part]])) if part in kinds else part for part in parts]


def _at_text_markers(text: str, sounds: Mapping[int, int]) -> list[str | Place]:
    """Split a text at its markers.

    vLLM numbers the sound that it takes out of a video behind the sounds before it, but has no place for its marker and
    puts it at the beginning of the message. Here, it comes right behind its video.
    """
    text, *split = _TEXT_MARKER.split(text)
    marked = [(Place(kind, int(number)), behind) for kind, number, behind in zip(*[iter(split)] * 3, strict=True)]
    heard = [place.number for place, _ in marked if place.kind == AUDIO]
    moved = _in_front(heard, frozenset(sounds.values()))
    # The other sounds are in the order of their numbers, whatever numbers their markers have.
    own = iter(sorted(set(heard) - set(sounds.values())))
    parts: list[str | Place] = [text]
    for place, behind in marked:
        if place.kind == AUDIO and place.number in moved:
            parts[-1] = f"{parts[-1]}{behind.removeprefix(chr(10))}"
            continue
        parts += [Place(AUDIO, next(own)) if place.kind == AUDIO else place]
        if place.kind == VIDEO and place.number in sounds:
            parts += ["", Place(AUDIO, sounds[place.number])]
        parts.append(behind)
    return parts


def _in_front(markers: Sequence[int], sounds: Collection[int]) -> set[int]:
    """Return the numbers of the markers that are at the beginning of a message because vLLM has no place for them.

    In each message, sounds with a place of their own take the lower numbers, and the higher ones are in front.

    Args:
        markers: numbers of all sounds, in the order of their markers.
        sounds: numbers of the sounds of videos.
    """
    front: set[int] = set()
    position = expected = 0
    while position < len(markers):
        first = position
        while position < len(markers) and markers[position] == markers[first] + position - first:
            # In a message where all sounds are of videos, or none, the numbers are in order.
            is_in_order = markers[first] == expected
            if not is_in_order or markers[position] in sounds:
                front.add(markers[position])
            position += 1
            if is_in_order:
                break
        last = markers[position - 1]
        position += markers[first] - expected
        expected = last + 1
    return front


def with_system_text(template: str, text: str) -> str:
    """Return a chat template that puts a system text in front of conversations that have none."""
    message = f"{{'role': 'system', 'content': {json.dumps(text)}}}"
    condition = "messages[0]['role'] != 'system'"
    # The empty expression keeps white space at the beginning of the template.
    return f"{{% if {condition} %}}{{% set messages = [{message}] + messages %}}{{% endif %}}{{{{ '' }}}}{template}"


class VllmChatProcessor(VideoLlama2Processor):
    """The processor that vLLM's server takes the chat template from: it includes the published system text."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        system = SYSTEM_PROMPTS.get(self.model_config.text_config.model_type)
        if system is not None and isinstance(self.chat_template, str):
            self.chat_template = with_system_text(self.chat_template, system)
