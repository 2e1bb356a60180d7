"""Media of a request -> visual tokens: read beside the model, encoded together, remembered by content.

Two things are remembered: the visual tokens of a content (:class:`MediaCache`), and which content a file on disk had
when it was read with the same options, so that a second question about it opens no file.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count
from threading import Lock
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary

import torch

from videollama2.errors import PromptError
from videollama2.inference.media.cache import MediaCache, content_key
from videollama2.media.kinds import IMAGE, KINDS
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.processing import VideoLlama2Processor, check_pixels, visual_tokens

_MAX_FILES = 4096

FRAMES_PER_PASS = 128
"""Frames encoded together: activations of more would take gigabytes and save no time."""

_unused = count()
_numbers: WeakKeyDictionary[torch.nn.Module, int] = WeakKeyDictionary()


@dataclass
class Medium:
    """One image or video of a request: ``pixels`` (T, C, H, W) until ``tokens`` (N, D) take their place.

    ``seconds``: spent on reading it, and in the pass that encoded it.
    """

    kind: str
    key: Any
    frames: int
    pixels: torch.Tensor | None
    tokens: torch.Tensor | None = None
    seconds: float = 0.0


class MediaEncoder:
    """Reads and encodes media for one model.

    :meth:`read` may be called from any thread; :meth:`encode` from the model's alone.
    """

    def __init__(
        self, model: VideoLlama2ForConditionalGeneration, processor: VideoLlama2Processor, cache: MediaCache
    ) -> None:
        self.model, self.processor, self.cache = model, processor, cache
        self._sources: OrderedDict[Hashable, tuple[Hashable, int]] = OrderedDict()
        self._lock = Lock()

    def planned_tokens(self, kind: str, source: Any, options: dict[str, Any]) -> int | None:
        """Visual tokens that a medium will have, told without opening it; None where only reading it tells.

        Raises:
            PromptError: an option this kind has not.
        """
        unknown = set(options) - KINDS[kind].options
        if unknown:
            raise PromptError(f"a {kind} has no option {', '.join(sorted(unknown))}")
        config = self.model.config
        if kind == IMAGE:
            return visual_tokens(config, kind)
        if torch.is_tensor(source) and source.ndim == 4 and source.is_floating_point():
            return visual_tokens(config, kind, source.shape[0])
        frames = options.get("num_frames", config.num_frames)
        return visual_tokens(config, kind, frames) if isinstance(frames, int) and frames > 0 else None

    def source_key(self, kind: str, source: Any, options: dict[str, Any]) -> Hashable:
        """What a source is known by before it is opened: how it is read, and the file's place, size and time of
        change, or the bytes. Of anything else, every source is another one."""
        known = _file_key(source)
        if known is None:
            return object()
        return kind, known, tuple(sorted((name, repr(value)) for name, value in options.items()))

    def read(self, kind: str, source: Any, options: dict[str, Any], key: Hashable = None) -> Medium:
        """Decode and preprocess one medium, unless its tokens are known.

        Args:
            kind: of :data:`~videollama2.media.kinds.KINDS`.
            source: path, bytes, PIL image, array, list of frames; or pixels that the processor made.
            options: that the kind has, see :data:`~videollama2.media.kinds.KINDS`.
            key: its :meth:`source_key` where that is known already.

        Raises:
            MediaError: it cannot be read. PromptError: an option this kind has not, or pixels of a wrong shape.
        """
        started = monotonic()
        self.planned_tokens(kind, source, options)
        key = self.source_key(kind, source, options) if key is None else key
        known = self._recall(key)
        if known is not None:
            content, frames = known
            tokens_ND = self.cache.get(content)
            if tokens_ND is not None:
                return Medium(kind, content, frames, None, tokens_ND, monotonic() - started)
        if torch.is_tensor(source) and source.is_floating_point():
            pixels_TCHW = source
        else:
            pixels_TCHW = self.processor[kind](source, **options)
        frames = check_pixels(pixels_TCHW, kind, self.model.config.vision_config.image_size)
        content = medium_key(self.model, kind, pixels_TCHW)
        if isinstance(key, tuple):
            with self._lock:
                self._sources[key] = content, frames
                while len(self._sources) > _MAX_FILES:
                    self._sources.popitem(last=False)
        return Medium(kind, content, frames, pixels_TCHW, None, monotonic() - started)

    def _recall(self, key: Hashable) -> tuple[Hashable, int] | None:
        with self._lock:
            return self._sources.get(key)

    def encode(self, media: Sequence[Medium]) -> None:
        """Fill the tokens of all media: each distinct one is encoded once, those of one kind together."""
        waiting: dict[Hashable, list[Medium]] = {}
        for medium in media:
            if medium.tokens is None:
                medium.tokens = self.cache.get(medium.key)
            if medium.tokens is None:
                waiting.setdefault(medium.key, []).append(medium)
        for kind in KINDS:
            for groups in _passes([group for group in waiting.values() if group[0].kind == kind]):
                self._encode_together(kind, groups)
        for medium in media:
            medium.pixels = None

    def _encode_together(self, kind: str, groups: list[list[Medium]]) -> None:
        """One pass. Each group holds media of the same content."""
        started = monotonic()
        pixels = [group[0].pixels for group in groups]
        # Outside inference mode, whose tensors could not be used in training afterwards.
        with torch.inference_mode(False), torch.no_grad():
            if kind == IMAGE:
                encoded = self.model.get_image_features(torch.cat(pixels)).pooler_output
            else:
                encoded = self.model.get_video_features(pixels).pooler_output
        for group, tokens_ND in zip(groups, encoded, strict=True):
            # A view would keep the whole batch alive for as long as one of its members is remembered.
            tokens_ND = tokens_ND.clone()
            self.cache.put(group[0].key, tokens_ND)
            for medium in group:
                medium.tokens = tokens_ND
        seconds = monotonic() - started
        for medium in {id(medium): medium for group in groups for medium in group}.values():
            medium.seconds += seconds


def _passes(groups: list[list[Medium]]) -> Iterator[list[list[Medium]]]:
    """Cut into passes of at most :data:`FRAMES_PER_PASS` frames, or of one medium that has more."""
    together: list[list[Medium]] = []
    frames = 0
    for group in groups:
        if together and frames + group[0].frames > FRAMES_PER_PASS:
            yield together
            together, frames = [], 0
        together.append(group)
        frames += group[0].frames
    if together:
        yield together


def medium_key(model: torch.nn.Module, kind: str, pixels_TCHW: torch.Tensor) -> Any:
    """What visual tokens are kept under: the content and the model, since models may share a cache."""
    # A number of its own: an id is given again after the model is gone.
    return _numbers.setdefault(model, next(_unused)), content_key(kind, pixels_TCHW)


def _file_key(source: Any) -> Hashable:
    """Place, size and time of change of a file, or a digest of bytes; None for anything else."""
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
