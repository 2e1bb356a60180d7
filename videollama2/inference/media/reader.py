"""Reads one medium of a request: from a path, bytes or an array to what the encoder takes.

Which content a file on disk had is remembered, so that a second question about it opens no file as long as the visual
tokens of that content are kept.
"""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary

import torch

from videollama2.inference.lru import LruStore
from videollama2.inference.media.cache import MediaCache, content_key
from videollama2.inference.request import MediaPart
from videollama2.media.kinds import AUDIO
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.processing import VideoLlama2Processor, check_medium, media_tokens, planned_tokens

_MAX_FILES = 4096

_unused = count()
_numbers: WeakKeyDictionary[torch.nn.Module, int] = WeakKeyDictionary()


@dataclass
class ReadMedium:
    """A medium of a request that was read.

    Attributes:
        kind: of :data:`~videollama2.media.kinds.KINDS`.
        key: what its visual tokens are kept under, see :func:`medium_key`.
        frames: number of frames, of a sound those of its filter bank; 1 of an image.
        values: pixels (T, C, H, W) or a filter bank (1, T, F); None once ``tokens`` took their place.
        tokens: the tokens (N, D) that stand for it; None before they are encoded.
        seconds: spent on reading it, and in the pass that encoded it.
        note: what whoever asked should know about it.
    """

    kind: str
    key: Hashable
    frames: int
    values: torch.Tensor | None
    tokens: torch.Tensor | None = None
    seconds: float = 0.0
    note: str | None = None


class MediaReader:
    """Reads media for one model; every method may be called from any thread.

    Args:
        cache: visual tokens that are known: a medium whose tokens are there is not read again.
    """

    def __init__(
        self, model: VideoLlama2ForConditionalGeneration, processor: VideoLlama2Processor, cache: MediaCache
    ) -> None:
        self._model, self._processor, self._cache = model, processor, cache
        self._contents: LruStore[Hashable, tuple[Hashable, int, str | None]] = LruStore(_MAX_FILES)

    def planned_tokens(self, part: MediaPart) -> int | None:
        """Return how many tokens a medium will have, without opening it; None where only reading it tells."""
        if _is_made(part.source) and part.source.ndim == (3 if part.kind == AUDIO else 4):
            frames = part.source.shape[1 if part.kind == AUDIO else 0]
            return media_tokens(self._model.config, part.kind, frames)
        return planned_tokens(self._model.config, part.kind, part.options)

    def source_key(self, part: MediaPart) -> Hashable:
        """Return what a part is known by before it is opened: how it is read, and the file's place, size and time of
        change, or the bytes. Parts with any other source have different keys, even where the source is one object.
        """
        known = _file_key(part.source)
        return object() if known is None else (part.kind, known, part.options)

    def read(self, part: MediaPart, key: Hashable = None) -> ReadMedium:
        """Decode and preprocess one medium, unless its tokens are known.

        Args:
            part: its source is a path, bytes, PIL image, array or list of frames; or what the processor made of it.
            key: its :meth:`source_key`, where that is known already.

        Raises:
            MediaError: it cannot be read. PromptError: a wrong shape, or the model has no encoder for it.
        """
        started = monotonic()
        key = self.source_key(part) if key is None else key
        known = self._contents.get(key)
        if known is not None:
            content, frames, note = known
            tokens_ND = self._cache.get(content)
            if tokens_ND is not None:
                return ReadMedium(part.kind, content, frames, None, tokens_ND, monotonic() - started, note)
        note = None
        if _is_made(part.source):
            values = part.source
        elif part.kind == AUDIO:
            values, note = self._processor.hear(part.source, part.options)
        else:
            values = self._processor.read(part.kind, part.source, part.options)
        frames = check_medium(values, part.kind, self._model.config)
        content = medium_key(self._model, part.kind, values)
        if isinstance(key, tuple):
            self._contents.put(key, (content, frames, note))
        return ReadMedium(part.kind, content, frames, values, None, monotonic() - started, note)


def medium_key(model: torch.nn.Module, kind: str, values: torch.Tensor) -> Hashable:
    """Return the key of tokens in the cache: the content and the model, since models may share a cache."""
    # A number of its own: an id is given again after the model is gone.
    return _numbers.setdefault(model, next(_unused)), content_key(kind, values)


def _is_made(source: Any) -> bool:
    """Whether a source needs no reading, because a processor made it."""
    return torch.is_tensor(source) and source.is_floating_point()


def _file_key(source: Any) -> Hashable:
    """Return place, size and time of change of a file, or a digest of bytes; None for anything else."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return blake2b(source, digest_size=16).digest()
    if not isinstance(source, (str, os.PathLike)):
        return None
    try:
        status = os.stat(source)
    except (OSError, ValueError):
        return None  # reading it says what is wrong
    if os.path.isdir(source):
        return None  # a folder of frames may change without its own time changing
    return os.path.realpath(source), status.st_ino, status.st_size, status.st_mtime_ns
