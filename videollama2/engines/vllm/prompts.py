"""Prompts on their way through vLLM: where the media are, and which ids stand there. Needs no vLLM.

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
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from videollama2.errors import PromptError
from videollama2.media.kinds import KINDS, TAGS
from videollama2.processing import VideoLlama2Processor, padding_id
from videollama2.prompting.prompt import SYSTEM_PROMPTS

TEXT_MARKERS: dict[str, str] = {kind: f"<{kind}:{secrets.token_hex(16)}>" for kind in KINDS}
"""Marker of each kind in the text of conversations that vLLM renders."""

_MARKER_IDS = 12
_KIND_OF_SENTINEL = {kind.sentinel: name for name, kind in KINDS.items()}

Piece = list[int] | str
"""A part of a prompt: the ids of a text, or the kind of a medium."""


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


def split_prompt(ids: Sequence[int], counts: Mapping[str, int], tokenizer: Any, vocab_size: int) -> list[Piece]:
    """Split a tokenised prompt at its media.

    Without markers of this process, the media are where the published tags are (``<video>``), as callers write them
    that complete a text.

    Args:
        ids: ids with markers of :func:`id_markers`, or of a text with :data:`TEXT_MARKERS` or tags.
        counts: number of media of each kind.

    Raises:
        PromptError: there are more or fewer places than media.
    """
    found = _at_id_markers(list(ids), id_markers(vocab_size))
    if len(found) == 1:
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        has_markers = any(marker in text for marker in TEXT_MARKERS.values())
        found = _at_texts(text, TEXT_MARKERS if has_markers else TAGS, tokenizer)
    for kind, count in counts.items():
        places = sum(piece == kind for piece in found)
        if places != count:
            raise PromptError(f"the prompt has places for {places} media of the kind {kind}, but {count} are given")
    return found


def _at_id_markers(ids: list[int], markers: Mapping[str, tuple[int, ...]]) -> list[Piece]:
    pieces: list[Piece] = []
    start = position = 0
    while position < len(ids):
        window = tuple(ids[position : position + _MARKER_IDS])
        kind = next((kind for kind, marker in markers.items() if marker == window), None)
        if kind is None:
            position += 1
            continue
        pieces += [ids[start:position], kind]
        start = position = position + _MARKER_IDS
    return [*pieces, ids[start:]]


def _at_texts(text: str, markers: Mapping[str, str], tokenizer: Any) -> list[Piece]:
    """Split a text at markers and tokenise each part on its own, as published."""
    kinds = {marker: kind for kind, marker in markers.items()}
    parts = re.split("(" + "|".join(map(re.escape, kinds)) + ")", text)
    return [kinds[part] if part in kinds else tokenizer(part, add_special_tokens=False).input_ids for part in parts]


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
