"""Takes media through vLLM. They stay encoded until the processor reads them, in the published way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import vllm.envs
from PIL import Image
from vllm.config import ModelConfig
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.media.audio import AudioMediaIO
from vllm.multimodal.media.connector import MediaConnector
from vllm.multimodal.parse import ModalityDataItems, MultiModalDataParser, ProcessorBatchItems
from vllm.multimodal.video import VideoLoader

from videollama2.media.kinds import AUDIO, IMAGE, VIDEO
from videollama2.media.wave import wav_bytes
from videollama2.serve.untrusted_media.urls import is_of_video

AnySource = Any
"""Whatever :meth:`videollama2.processing.VideoLlama2Processor.load_medium` takes."""


class EncodedVideo(VideoLoader):
    """A video loader that decodes nothing: which frames are needed is known when the request is processed."""

    @classmethod
    def load_bytes(cls, data: bytes, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the encoded video as an array of bytes, without metadata."""
        return np.frombuffer(data, np.uint8), {}


class EncodedSound(NamedTuple):
    """A sound as it was fetched. Its channels, rate and windows are treated the published way when it is read.

    Attributes:
        of_video: whether it is the sound of a video, see :func:`videollama2.media.audio.read_video_sound`.
        video: the number of the video that it was taken out of; None for a part of its own.
    """

    content: bytes
    of_video: bool
    video: int | None = None


class _EncodedSoundIO(AudioMediaIO):
    """Checks a sound's size as vLLM does, and decodes nothing."""

    def load_bytes(self, data: bytes) -> Any:
        self._validate_encoded_size(len(data))
        return data

    def load_file(self, filepath: Path) -> Any:
        self._validate_encoded_size(filepath.stat().st_size)
        return filepath.read_bytes()


class KeepSoundsEncoded(VerifyAndUpdateConfig):
    """The change that vLLM makes to its configuration for this model: :class:`SoundConnector` decodes no sounds."""

    OPTION = "videollama2_encoded"

    @staticmethod
    def verify_and_update_model_config(model_config: ModelConfig) -> None:
        media = model_config.multimodal_config
        if media is not None:
            media.media_io_kwargs.setdefault("audio", {}).setdefault(KeepSoundsEncoded.OPTION, True)


class SoundConnector(MediaConnector):
    """Fetches media as vLLM does. Sounds for this model stay encoded; those for any other model do not."""

    def fetch_audio(self, audio_url: str) -> Any:
        reading = self._encoded_sounds()
        if reading is None:
            return super().fetch_audio(audio_url)
        content: Any = self.load_from_url(audio_url, reading, fetch_timeout=vllm.envs.VLLM_AUDIO_FETCH_TIMEOUT)
        return EncodedSound(content, is_of_video(audio_url, content))

    async def fetch_audio_async(self, audio_url: str) -> Any:
        reading = self._encoded_sounds()
        if reading is None:
            return await super().fetch_audio_async(audio_url)
        timeout = vllm.envs.VLLM_AUDIO_FETCH_TIMEOUT
        content: Any = await self.load_from_url_async(audio_url, reading, fetch_timeout=timeout)
        return EncodedSound(content, is_of_video(audio_url, content))

    def _encoded_sounds(self) -> _EncodedSoundIO | None:
        options = self.media_io_kwargs.get("audio", {})
        return _EncodedSoundIO(**options) if options.get(KeepSoundsEncoded.OPTION) else None


class SourceItems(ProcessorBatchItems[AnySource]):
    """Media of one kind as sources for the processor."""

    def get_processor_data(self) -> dict[str, object]:
        return {self.modality: self.get_all()}


class SourceParser(MultiModalDataParser):
    """Turns the media that vLLM or a caller of its Python interface holds into sources.

    Accepted are encoded bytes, paths, PIL images, arrays of frames, lists of frames, sounds as ``(samples, rate)`` or
    :class:`EncodedSound`, and the processor's own output. Embeddings are not accepted.
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


def _source(value: Any) -> AnySource:
    if isinstance(value, EncodedSound):
        return value
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


def with_videos(videos: Sequence[AnySource], sounds: Sequence[AnySource]) -> list[AnySource]:
    """Return the sounds, of which those know their video that vLLM took out of one (``use_audio_in_video``).

    vLLM fetches such a video once more as a sound, which comes behind the sounds of the parts before it. A part of its
    own may have the same content; then it makes no difference which of the two is taken.
    """
    known = list(sounds)
    left = iter(range(len(sounds)))
    for number, video in enumerate(videos):
        own = next((at for at in left if isinstance(sounds[at], EncodedSound) and sounds[at].content == video), None)
        if own is not None:
            known[own] = sounds[own]._replace(video=number)
    return known
