"""Reads videos for transformers' ``AutoVideoProcessor``, as the processor does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import BatchFeature

from videollama2.media.kinds import VIDEO
from videollama2.processing.inputs import as_list
from videollama2.processing.options import CallOptions
from videollama2.processing.processor import VideoLlama2Processor
from videollama2.processing.video_options import options_of_each


class VideoLlama2VideoProcessor:
    """Reads videos as :class:`~videollama2.processing.processor.VideoLlama2Processor` does, which it holds.

    ``AutoVideoProcessor`` itself can only be used where torchvision is installed; this class does not need it.
    """

    model_input_names = ("pixel_values_videos",)

    def __init__(self, processor: VideoLlama2Processor) -> None:
        self.processor = processor

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> VideoLlama2VideoProcessor:
        """Open the processor of a checkpoint; the arguments are those of its own ``from_pretrained``."""
        return cls(VideoLlama2Processor.from_pretrained(folder, **options))

    def save_pretrained(self, folder: str | Path, **options: Any) -> list[str]:
        """Save the whole processor."""
        return self.processor.save_pretrained(folder, **options)

    def __call__(self, videos: Any, **options: Any) -> BatchFeature:
        """Read videos.

        Args:
            videos: one video, or a list: paths, arrays, or lists of frames, see
                :meth:`~videollama2.processing.processor.VideoLlama2Processor.__call__`.
            options: its options for videos (``num_frames``, ``fps``, ``start``, ``end``, ...).

        Returns:
            ``pixel_values_videos``: the pixels (T, C, H, W) of each video in a list, since their numbers of frames may
            differ.

        Raises:
            MediaError: a video cannot be read. ConfigError: an option is not supported.
        """
        given = CallOptions.of(options, self.processor.image_processor)
        videos = as_list(videos)
        each = zip(videos, options_of_each(given.media[VIDEO], len(videos)), strict=True)
        return BatchFeature({"pixel_values_videos": [self.processor.load_medium(VIDEO, one, own) for one, own in each]})
