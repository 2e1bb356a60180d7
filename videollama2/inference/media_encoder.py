"""Media of a request -> visual tokens: read beside the model, encoded together, remembered by content.

Two things are remembered: the visual tokens of a content (:class:`MediaCache`), and which content a file on disk had
when it was read with the same options, so that a second question about it opens no file.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch

from videollama2.errors import PromptError
from videollama2.inference.media_cache import MediaCache, content_key
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.processing import VideoLlama2Processor, check_pixels

OPTIONS = {
    "image": frozenset({"aspect_ratio"}),
    "video": frozenset({"start", "end", "num_frames", "aspect_ratio", "backend"}),
}
"""What a media part may say about its reading; see ``VideoLlama2Processor.load_video``."""

_MAX_FILES = 4096

_unused = count()
_numbers: WeakKeyDictionary[torch.nn.Module, int] = WeakKeyDictionary()


@dataclass
class Medium:
    """One image or video of a request: ``pixels`` (T, C, H, W) until ``tokens`` (N, D) take their place."""

    kind: str
    key: Any
    frames: int
    pixels: torch.Tensor | None
    tokens: torch.Tensor | None = None


class MediaEncoder:
    """Reads and encodes media for one model.

    :meth:`read` may be called from any thread; :meth:`encode` from the model's alone.
    """

    def __init__(
        self, model: VideoLlama2ForConditionalGeneration, processor: VideoLlama2Processor, cache: MediaCache
    ) -> None:
        self.model, self.processor, self.cache = model, processor, cache
        self._files: OrderedDict[Any, tuple[Any, int]] = OrderedDict()
        self._lock = Lock()

    def read(self, kind: str, source: Any, options: dict[str, Any]) -> Medium:
        """Decode and preprocess one medium, unless its tokens are known.

        Args:
            kind: ``image`` or ``video``.
            source: path, bytes, PIL image, array, list of frames; or pixels that the processor made.
            options: of :data:`OPTIONS`.

        Raises:
            MediaError: it cannot be read. PromptError: an option this kind has not, or pixels of a wrong shape.
        """
        unknown = set(options) - OPTIONS[kind]
        if unknown:
            raise PromptError(f"a {kind} has no option {', '.join(sorted(unknown))}")
        file_key = _file_key(kind, source, options)
        known = self._recall(file_key)
        if known is not None:
            key, frames = known
            tokens_ND = self.cache.get(key)
            if tokens_ND is not None:
                return Medium(kind, key, frames, None, tokens_ND)
        if torch.is_tensor(source) and source.is_floating_point():
            pixels_TCHW = source
        else:
            pixels_TCHW = self.processor[kind](source, **options)
        frames = check_pixels(pixels_TCHW, kind, self.model.config.vision_config.image_size)
        key = medium_key(self.model, kind, pixels_TCHW)
        if file_key is not None:
            with self._lock:
                self._files[file_key] = key, frames
                while len(self._files) > _MAX_FILES:
                    self._files.popitem(last=False)
        return Medium(kind, key, frames, pixels_TCHW)

    def _recall(self, file_key: Any) -> tuple[Any, int] | None:
        with self._lock:
            return self._files.get(file_key)

    def encode(self, media: Sequence[Medium]) -> None:
        """Fill the tokens of all media: each distinct one is encoded once, all of one kind in one batch."""
        waiting: dict[Any, list[Medium]] = {}
        for medium in media:
            if medium.tokens is None:
                medium.tokens = self.cache.get(medium.key)
            if medium.tokens is None:
                waiting.setdefault(medium.key, []).append(medium)
        for kind, encode in (("image", self.model.get_image_features), ("video", self.model.get_video_features)):
            new = [group for group in waiting.values() if group[0].kind == kind]
            if not new:
                continue
            pixels = [group[0].pixels for group in new]
            # Outside inference mode, whose tensors could not be used in training afterwards.
            with torch.inference_mode(False), torch.no_grad():
                encoded = encode(torch.cat(pixels) if kind == "image" else pixels).pooler_output
            for group, tokens_ND in zip(new, encoded, strict=True):
                # A view would keep the whole batch alive for as long as one of its members is remembered.
                tokens_ND = tokens_ND.clone()
                self.cache.put(group[0].key, tokens_ND)
                for medium in group:
                    medium.tokens = tokens_ND
        for medium in media:
            medium.pixels = None


def medium_key(model: torch.nn.Module, kind: str, pixels_TCHW: torch.Tensor) -> Any:
    """What visual tokens are kept under: the content and the model, since models may share a cache."""
    # A number of its own: an id is given again after the model is gone.
    return _numbers.setdefault(model, next(_unused)), content_key(kind, pixels_TCHW)


def _file_key(kind: str, source: Any, options: dict[str, Any]) -> Any:
    """What a file on disk is known by: place, size, time of change, and how it is read. None for anything else."""
    if not isinstance(source, (str, os.PathLike)):
        return None
    try:
        status = os.stat(source)
    except (OSError, ValueError):
        return None  # reading it says what is wrong
    if os.path.isdir(source):
        return None  # a folder of frames may change without its own time changing
    return (
        kind, os.path.realpath(source), status.st_ino, status.st_size, status.st_mtime_ns,
        tuple(sorted((name, repr(value)) for name, value in options.items())),
    )  # fmt: skip
