"""Media on their way through vLLM. They stay encoded until the processor reads them, in the published way."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.parse import ModalityDataItems, MultiModalDataParser, ProcessorBatchItems
from vllm.multimodal.video import VideoLoader

from videollama2.media.kinds import AUDIO, IMAGE, VIDEO
from videollama2.media.wave import wav_bytes

Source = Any
"""Whatever :meth:`videollama2.processing.VideoLlama2Processor.load_medium` takes."""


class EncodedVideo(VideoLoader):
    """A video loader that decodes nothing: which frames are needed is known when the request is processed."""

    @classmethod
    def load_bytes(cls, data: bytes, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the encoded video as an array of bytes, without metadata."""
        return np.frombuffer(data, np.uint8), {}


class SourceItems(ProcessorBatchItems[Source]):
    """Media of one kind as sources for the processor."""

    def get_processor_data(self) -> dict[str, object]:
        return {self.modality: self.get_all()}


class SourceParser(MultiModalDataParser):
    """Turns the media that vLLM or a caller of its Python interface holds into sources.

    Accepted are encoded bytes, paths, PIL images, arrays of frames, lists of frames, sounds as ``(samples, rate)``, and
    the processor's own output. Embeddings are not accepted.
    """

    def _parse_image_data(self, data: Any) -> ModalityDataItems[Any, Any] | None:
        return _items(data, IMAGE, is_single=lambda value: not isinstance(value, (list, tuple)))

    def _parse_video_data(self, data: Any) -> ModalityDataItems[Any, Any] | None:
        return _items(data, VIDEO, is_single=_is_video)

    def _parse_audio_data(self, data: Any) -> ModalityDataItems[Any, Any] | None:
        return _items(data, AUDIO, is_single=lambda value: not isinstance(value, list))


def _items(data: Any, kind: str, is_single: Any) -> SourceItems | None:
    if data is None:
        return None
    values = [data] if is_single(data) else list(data)
    return SourceItems([_source(value) for value in values], kind)


def _is_video(value: Any) -> bool:
    """Return whether a value is one video rather than a list of them."""
    if isinstance(value, tuple):
        return len(value) == 2 and isinstance(value[1], dict)
    return not isinstance(value, list) or bool(value) and isinstance(value[0], Image.Image)


def _source(value: Any) -> Source:
    if isinstance(value, MediaWithBytes):
        return value.original_bytes
    if isinstance(value, tuple) and isinstance(value[1], dict):  # a video with metadata
        value = value[0]
    if isinstance(value, tuple):
        return wav_bytes(*value)
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype == np.uint8:
        return value.tobytes()
    return value


def zero_medium(kind: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the processor's output for a blank medium, with which vLLM measures the memory that it needs."""
    return torch.zeros(shape, dtype=torch.bfloat16 if kind == AUDIO else torch.float32)
