"""Reads one medium of a request from a path, bytes or an array into the encoder's input.

The reader remembers the content key of each file. A second question about a file therefore does not open it again, as
long as the tokens of that content are cached.
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

from videollama2.config import VideoLlama2Config
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
        kind: one of :data:`~videollama2.media.kinds.KINDS`.
        key: key of its tokens in the cache, see :func:`medium_key`.
        frames: number of frames, for a sound those of its filter bank; 1 for an image.
        values: pixels (T, C, H, W) or a filter bank (1, T, F); None once ``tokens`` replace them.
        tokens: its tokens (N, D); None before it is encoded.
        looked_up: whether the cache was asked for its tokens.
        generation: :attr:`MediaCache.generation` of its tokens.
        seconds: time spent on reading it and in the pass that encoded it.
        note: remark about the medium for the caller, if there is one.
    """

    kind: str
    key: Hashable
    frames: int
    values: torch.Tensor | None
    tokens: torch.Tensor | None = None
    seconds: float = 0.0
    note: str | None = None
    looked_up: bool = False
    generation: int = 0

    @property
    def encoded(self) -> torch.Tensor:
        """Its tokens (N, D), which it must have by now."""
        assert self.tokens is not None
        return self.tokens


class MediaReader:
    """Reads media for one model. All methods are thread-safe.

    Args:
        cache: the cache of media tokens; a medium whose tokens it holds is not read again.
    """

    def __init__(
        self, model: VideoLlama2ForConditionalGeneration, processor: VideoLlama2Processor, cache: MediaCache
    ) -> None:
        self._model, self._processor, self._cache = model, processor, cache
        self._contents: LruStore[Hashable, tuple[Hashable, int, str | None]] = LruStore(_MAX_FILES)

    def planned_tokens(self, part: MediaPart) -> int | None:
        """Return the number of tokens of a medium without opening it, or None if that depends on its content."""
        return planned_tokens_of(part, self._processor.model_config)

    def source_key(self, part: MediaPart) -> Hashable:
        """Return a key that identifies a part before it is opened.

        It covers the options for reading and, for a file, its path, size and modification time, or a digest of bytes.
        Parts with any other source always have different keys, even if the source is the same object.
        """
        known = _file_key(part.source)
        return object() if known is None else (part.kind, known, part.options)

    def read(self, part: MediaPart, key: Hashable = None) -> ReadMedium:
        """Decode and preprocess one medium, unless its tokens are cached.

        Args:
            part: a part whose source is a path, bytes, PIL image, array or list of frames, or the processor's output.
            key: its :meth:`source_key`, if already known.

        Raises:
            MediaError: the medium cannot be read.
            PromptError: its shape is wrong, or the model has no encoder for it.
        """
        started = monotonic()
        key = self.source_key(part) if key is None else key
        # Two keys lead to the tokens: the file tells its content as long as it has not changed, and the content its
        # tokens. Files with the same frames thus share the tokens, and a file is opened only if its tokens are not
        # there any more.
        known = self._contents.get(key)
        if known is not None:
            content, frames, note = known
            generation = self._cache.generation  # first: a clear in between makes the tokens out of date
            tokens_ND = self._cache.get(content)
            if tokens_ND is not None:
                seconds = monotonic() - started
                return ReadMedium(part.kind, content, frames, None, tokens_ND, seconds, note, generation=generation)
        values, frames, note = read_part(part, self._processor)
        content = medium_key(self._model, part.kind, values)
        # Any other key is a fresh object, which cannot be asked for again.
        if isinstance(key, tuple):
            self._contents.put(key, (content, frames, note))
        return ReadMedium(part.kind, content, frames, values, None, monotonic() - started, note)


def planned_tokens_of(part: MediaPart, config: VideoLlama2Config) -> int | None:
    """Return the number of tokens of a medium without opening it, or None if that depends on its content."""
    if _is_made(part.source) and part.source.ndim == (3 if part.kind == AUDIO else 4):
        return media_tokens(config, part.kind, part.source.shape[1 if part.kind == AUDIO else 0])
    return planned_tokens(config, part.kind, part.options)


def read_part(part: MediaPart, processor: VideoLlama2Processor) -> tuple[torch.Tensor, int, str | None]:
    """Decode and preprocess one medium; returns its values, number of frames, and note, see :class:`ReadMedium`.

    Raises:
        MediaError: the medium cannot be read.
        PromptError: its shape is wrong, or the model has no encoder for it.
    """
    note = None
    if _is_made(part.source):
        values = part.source
    elif part.kind == AUDIO:
        values, note = processor.hear(part.source, part.options)
    else:
        values = processor.read(part.kind, part.source, part.options)
    return values, check_medium(values, part.kind, processor.model_config), note


def medium_key(model: torch.nn.Module, kind: str, values: torch.Tensor) -> Hashable:
    """Return the key of a medium's tokens: its content and the model, since models may share a cache."""
    # Each model has a number of its own, because Python reuses the id of an object that is gone.
    return _numbers.setdefault(model, next(_unused)), content_key(kind, values)


def _is_made(source: Any) -> bool:
    """Return whether a source is the output of a processor, which need not be read."""
    return torch.is_tensor(source) and source.is_floating_point()


def _file_key(source: Any) -> Hashable:
    """Return path, size and modification time of a file, or a digest of bytes; None for any other source."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return blake2b(source, digest_size=16).digest()
    if not isinstance(source, (str, os.PathLike)):
        return None
    try:
        status = os.stat(source)
    except (OSError, ValueError):
        return None  # reading it will report the error
    if os.path.isdir(source):
        return None  # the frames in a folder may change without changing its modification time
    return os.path.realpath(source), status.st_ino, status.st_size, status.st_mtime_ns
