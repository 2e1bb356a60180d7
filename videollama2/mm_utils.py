"""Offers functions that programs written for the published code import from here. Each is a thin wrapper.

New code should get pixels from the processor (``processor["video"](path)``) instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

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
    """Return the pixels (1, C, H, W) of an image (published function).

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
    """Return the pixels (T, C, H, W) of a video (published function).

    Args:
        video_path: anything that :func:`videollama2.media.video.open_video` opens.
        processor, aspect_ratio: as in :func:`process_image`.
        s, e: the clip's bounds in seconds.
        num_frames: number of frames to sample; None for one per second.

    Raises:
        MediaError: the video cannot be read, or not in the requested way.
    """
    clip = read_clip(video_path, FrameSampling(num_frames=num_frames, start=s, end=e))
    return _transform(processor)(clip.frames_THWC, aspect_ratio)


def frame_sample(
    duration: int, mode: str = "uniform", num_frames: int | None = None, fps: float | None = None
) -> np.ndarray:
    """Return the indices of the frames to sample from ``duration`` frames (published function).

    Args:
        mode: ``uniform`` spreads ``num_frames`` over the whole length, ``fps`` takes one per second, i.e. per ``fps``
            frames.

    Raises:
        ConfigError: the mode is unknown, or the number that it needs is missing.
        MediaError: a number is out of range.
    """
    if mode == "uniform" and num_frames is not None:
        return np.array(uniform_indices(duration, num_frames))
    if mode == "fps" and fps is not None:
        return np.array(fps_indices(duration, fps))
    raise ConfigError(f"frame_sample: mode is 'uniform' with num_frames or 'fps' with fps, got mode {mode!r}")


def expand2square(pil_img: Image.Image, background_color: tuple[int, int, int]) -> Image.Image:
    """Return the image centred on a square of this colour (published function)."""
    return Image.fromarray(pad_to_square(np.asarray(pil_img.convert("RGB")), background_color))


def tokenizer_multimodal_token(
    prompt: str,
    tokenizer: Any,
    multimodal_token: str | None = DEFAULT_IMAGE_TOKEN,
    return_tensors: str | None = None,
) -> list[int] | torch.Tensor:
    """Return the token ids of a prompt, with its tags as negative sentinels (published function).

    Args:
        multimodal_token: ``<image>``, ``<video>`` or ``<audio>``; None reads the prompt as plain text.
        return_tensors: ``pt`` for a tensor (L,), None for a list.

    Raises:
        PromptError: the tag is unknown. ConfigError: the kind of tensor is unknown.
    """
    ids = prompting.tokenizer_multimodal_token(prompt, tokenizer, multimodal_token)
    if return_tensors is None:
        return ids
    if return_tensors != "pt":
        raise ConfigError(f"return_tensors must be 'pt' or None, got {return_tensors!r}")
    return torch.tensor(ids, dtype=torch.long)


def get_model_name_from_path(model_path: str) -> str:
    """Return the last part of a path, preceded by the run's name if it is ``checkpoint-N`` (published function)."""
    *before, last = model_path.strip("/").split("/")
    return f"{before[-1]}_{last}" if before and last.startswith("checkpoint-") else last


class KeywordsStoppingCriteria(StoppingCriteria):
    """Stops a sequence as soon as its answer contains a keyword (published class).

    Args:
        keywords: texts, which may be special tokens.
        input_ids: the prompt, (B, L). ``generate`` does not include it in its output if it was given embeddings.
    """

    def __init__(self, keywords: Sequence[str], tokenizer: Any, input_ids: torch.Tensor) -> None:
        self.keywords, self.tokenizer, self.prompt_BL = keywords, tokenizer, input_ids
        # Every token except special ones adds a byte or more, so a keyword that just ended is within so many tokens.
        self._window = max((len(keyword.encode()) for keyword in keywords), default=0) + 1

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        """Return ``done_B`` for the sequences so far."""
        length = self.prompt_BL.shape[1]
        has_prompt = input_ids.shape[1] >= length and torch.equal(
            input_ids[:, :length], self.prompt_BL.to(input_ids.device)
        )
        answers_BL = input_ids[:, length if has_prompt else 0 :][:, -self._window :]
        texts = self.tokenizer.batch_decode(answers_BL)
        done = [any(keyword in text for keyword in self.keywords) for text in texts]
        return cast("torch.BoolTensor", torch.tensor(done, device=input_ids.device))


def _transform(processor: Any) -> PixelTransform:
    return PixelTransform.from_image_processor(getattr(processor, "image_processor", processor))
