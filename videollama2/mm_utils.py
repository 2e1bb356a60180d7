"""Names that programs written for the published code import from here; each is a thin face of a module of this package.

New code takes pixels from the processor (``processor["video"](path)``) instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import StoppingCriteria

from videollama2 import prompting
from videollama2.constants import DEFAULT_IMAGE_TOKEN, NUM_FRAMES
from videollama2.errors import ConfigError
from videollama2.media.frames import FrameSampling, fps_indices, uniform_indices
from videollama2.media.image import load_image
from videollama2.media.pixels import AspectRatio, PixelTransform, pad_to_square
from videollama2.media.video import read_clip

__all__ = [
    "KeywordsStoppingCriteria",
    "expand2square",
    "frame_sample",
    "get_model_name_from_path",
    "process_image",
    "process_video",
    "tokenizer_multimodal_token",
]


def process_image(image_path: Any, processor: Any, aspect_ratio: AspectRatio = "pad") -> torch.Tensor:
    """Pixels (1, C, H, W) of an image (published function).

    Args:
        image_path: path, bytes or PIL image.
        processor: an image processor of transformers, or a processor that has one.
        aspect_ratio: ``pad`` to a square with the mean colour first, or None.

    Raises:
        MediaError: the image cannot be read.
    """
    return _transform(processor)([load_image(image_path)], aspect_ratio)


def process_video(
    video_path: Any,
    processor: Any,
    s: float | None = None,
    e: float | None = None,
    aspect_ratio: AspectRatio = "pad",
    num_frames: int | None = NUM_FRAMES,
) -> torch.Tensor:
    """Pixels (T, C, H, W) of a video (published function).

    Args:
        video_path: whatever :func:`videollama2.media.video.open_video` opens.
        processor, aspect_ratio: as in :func:`process_image`.
        s, e: the clip's bounds in seconds.
        num_frames: frames to choose; None: one per second.

    Raises:
        MediaError: the video cannot be read, or not as asked.
    """
    clip = read_clip(video_path, FrameSampling(num_frames=num_frames, start=s, end=e))
    return _transform(processor)(clip.frames_THWC, aspect_ratio)


def frame_sample(
    duration: int, mode: str = "uniform", num_frames: int | None = None, fps: float | None = None
) -> np.ndarray:
    """Indices of the frames to look at, among ``duration`` frames (published function).

    Args:
        mode: ``uniform`` chooses ``num_frames`` over the whole length, ``fps`` one per second of ``fps`` frames.

    Raises:
        ConfigError: an unknown mode, or the number that the mode needs is missing.
        MediaError: a number out of its range.
    """
    if mode == "uniform" and num_frames is not None:
        return np.array(uniform_indices(duration, num_frames))
    if mode == "fps" and fps is not None:
        return np.array(fps_indices(duration, fps))
    raise ConfigError(f"frame_sample: mode is 'uniform' with num_frames or 'fps' with fps, got mode {mode!r}")


def expand2square(pil_img: Image.Image, background_color: tuple[int, int, int]) -> Image.Image:
    """The image in the middle of a square of this colour (published function)."""
    return Image.fromarray(pad_to_square(np.asarray(pil_img.convert("RGB")), background_color))


def tokenizer_multimodal_token(
    prompt: str,
    tokenizer: Any,
    multimodal_token: str | None = DEFAULT_IMAGE_TOKEN,
    return_tensors: str | None = None,
) -> list[int] | torch.Tensor:
    """Ids of a prompt in which every tag is its negative sentinel (published function).

    Args:
        multimodal_token: ``<image>``, ``<video>`` or ``<audio>``; None reads the prompt as plain text.
        return_tensors: ``pt`` for a tensor (L,), None for a list.

    Raises:
        PromptError: an unknown tag. ConfigError: an unknown kind of tensor.
    """
    ids = prompting.tokenizer_multimodal_token(prompt, tokenizer, multimodal_token)
    if return_tensors is None:
        return ids
    if return_tensors != "pt":
        raise ConfigError(f"return_tensors must be 'pt' or None, got {return_tensors!r}")
    return torch.tensor(ids, dtype=torch.long)


def get_model_name_from_path(model_path: str) -> str:
    """The last part of a path, and the run's name before it where that is ``checkpoint-N`` (published function)."""
    *before, last = model_path.strip("/").split("/")
    return f"{before[-1]}_{last}" if before and last.startswith("checkpoint-") else last


class KeywordsStoppingCriteria(StoppingCriteria):
    """Ends a sequence as soon as its answer contains a keyword (published class).

    Args:
        keywords: texts, which may be special tokens.
        input_ids: the prompt, (B, L). ``generate`` leaves it out of its output where it was given embeddings.
    """

    def __init__(self, keywords: Sequence[str], tokenizer: Any, input_ids: torch.Tensor) -> None:
        self.keywords, self.tokenizer, self.prompt_BL = keywords, tokenizer, input_ids
        # Every token but a special one adds a byte or more: a keyword that just ended lies within so many tokens.
        self._window = max((len(keyword.encode()) for keyword in keywords), default=0) + 1

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        """``done_B`` of the sequences so far."""
        length = self.prompt_BL.shape[1]
        has_prompt = input_ids.shape[1] >= length and torch.equal(
            input_ids[:, :length], self.prompt_BL.to(input_ids.device)
        )
        answers_BL = input_ids[:, length if has_prompt else 0 :][:, -self._window :]
        texts = self.tokenizer.batch_decode(answers_BL)
        done = [any(keyword in text for keyword in self.keywords) for text in texts]
        return torch.tensor(done, device=input_ids.device)  # type: ignore[return-value]


def _transform(processor: Any) -> PixelTransform:
    return PixelTransform.from_image_processor(getattr(processor, "image_processor", processor))
