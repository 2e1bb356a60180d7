"""Reads images and videos for the processor, and passes sounds on to :mod:`.sound`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch

from videollama2.media.audio import Windows
from videollama2.media.frames import FrameSampling
from videollama2.media.image import load_image
from videollama2.media.kinds import AUDIO, IMAGE, VIDEO
from videollama2.media.pixels import AspectRatio, FrameResize, PixelTransform
from videollama2.media.video import read_clip
from videollama2.processing.options import HEARD
from videollama2.processing.placeholders import check_kind
from videollama2.processing.read_options import PadShape, ReadOptions
from videollama2.processing.sound import SoundReading
from videollama2.processing.video_options import frames_asked_for


class MediaReading(SoundReading):
    """Turns media of any kind into model inputs, a mixin for a processor.

    Attributes:
        transform: how pictures become pixels; None for a model without a vision encoder.
    """

    transform: PixelTransform | None

    def __getitem__(self, kind: str) -> Callable[..., torch.Tensor]:
        """Return the loader of a kind: ``processor["video"]``, ``["image"]`` and ``["audio"]``, as published."""
        loaders = {VIDEO: self.load_video, IMAGE: self.load_image, AUDIO: self.load_audio}
        if kind not in loaders:
            raise KeyError(f"{kind!r}: a processor has {' and '.join(map(repr, loaders))}")
        return loaders[kind]

    def load_video(
        self,
        video: Any,
        s: float | None = None,
        e: float | None = None,
        aspect_ratio: PadShape = "model",
        num_frames: int | None | Literal["model"] = "model",
        *,
        start: float | None = None,
        end: float | None = None,
        sampling: Literal["index", "time"] = "index",
        backend: str = "auto",
        va: bool = False,
        windows: Windows = "published",
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Read a video and return ``pixels_TCHW``; with its sound, ``{"video": pixels_TCHW, "audio": fbank_1TF}``.

        Args:
            video: path, bytes, animated picture, folder of frames, list of images, array; see :func:`read_clip`.
            s, e: published names of ``start`` and ``end``, in seconds. As published, they do not cut the sound.
            aspect_ratio: None (published at inference) or ``pad``; by default as in the checkpoint's training.
            num_frames: defaults to the checkpoint's; None for one frame per second.
            sampling: spread frames evenly over the "index" (published) or the "time" of the clip, see
                :class:`videollama2.media.frames.FrameSampling`.
            backend: video decoder, see :mod:`videollama2.media.video`.
            va: read the sound too (published name).
            windows: windows of the sound, see :class:`videollama2.media.audio.SoundSampling`.

        Raises:
            MediaError: the file cannot be read, or not with these options.
            PromptError: the model has no vision encoder or, for the sound, no audio encoder.
        """
        clip = FrameSampling(
            num_frames,
            start if start is not None else s,
            end if end is not None else e,
            sampling=sampling,
        )
        pixels_TCHW = self.read(VIDEO, video, ReadOptions(clip, aspect_ratio, backend))
        if not va:
            return pixels_TCHW
        return {VIDEO: pixels_TCHW, AUDIO: self.load_audio(video, start=start, end=end, windows=windows, of_video=True)}

    def load_image(self, image: Any, aspect_ratio: PadShape = "model") -> torch.Tensor:
        """Read an image and return pixels (1, C, H, W). ``aspect_ratio`` as in :meth:`load_video`."""
        return self.read(IMAGE, image, ReadOptions(aspect_ratio=aspect_ratio))

    def load_medium(self, kind: str, source: Any, options: Mapping[str, Any]) -> torch.Tensor | dict[str, torch.Tensor]:
        """Load a medium as the model's input; outputs of this processor are returned unchanged."""
        if isinstance(source, dict) or (torch.is_tensor(source) and source.is_floating_point()):
            return source
        if kind != VIDEO:
            return self[kind](source, **options)
        va = any(options.get(name) for name in HEARD)
        own = {name: value for name, value in options.items() if name not in HEARD}
        return self.load_video(source, **frames_asked_for(source, own), va=va)

    def read(self, kind: str, source: Any, options: ReadOptions) -> torch.Tensor:
        """Read a medium of any kind and return its pixels (T, C, H, W), with T = 1 for an image, or its ``fbank_1TF``.

        For a video whose sound is used, only the pixels are returned.

        Raises:
            MediaError: the file cannot be read, or not with these options.
            PromptError: the model has no encoder for the kind.
        """
        if kind == AUDIO:
            return self.hear(source, options)[0]
        transform = self._seeing(kind)
        return transform(self._frames(kind, source, options), self._aspect_ratio(options.aspect_ratio))

    def read_levels(self, kind: str, source: Any, options: ReadOptions) -> torch.Tensor:
        """Read an image or a video as :meth:`read` does, and return uint8 levels (T, C, H, W).

        A model whose ``pixel_table`` is this processor's ``transform.table`` turns them into the same pixels.

        Raises:
            MediaError, PromptError: see :meth:`read`.
        """
        transform = self._seeing(kind)
        return transform.levels(self._frames(kind, source, options), self._aspect_ratio(options.aspect_ratio))

    def _frames(self, kind: str, source: Any, options: ReadOptions) -> Any:
        if kind == IMAGE:
            return [load_image(source)]
        sampling = options.sampling.for_model(self.model_config.num_frames)
        return read_clip(source, sampling, options.backend).frames_THWC

    def first_resize(self) -> FrameResize:
        """Return the first operation on each single frame if the caller does not choose a shape."""
        return self._seeing(VIDEO).resize(self._aspect_ratio("model"))

    def _seeing(self, kind: str) -> PixelTransform:
        """Return the pixel transform of a model with a vision encoder.

        Raises:
            PromptError: the model has only an audio encoder.
        """
        check_kind(self.model_config, kind)
        assert self.transform is not None  # every model with a vision encoder has one
        return self.transform

    def _aspect_ratio(self, value: PadShape) -> AspectRatio:
        return getattr(self.model_config, "mm_inference_aspect_ratio", None) if value == "model" else value
