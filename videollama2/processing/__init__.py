"""Turns text and media into model inputs. This is the only package that combines prompts, pixels and token counts.

``VideoLlama2Processor`` follows transformers' conventions (``AutoProcessor`` opens it after ``import videollama2``)
and the published ones: ``processor["video"](path)``, ``["image"]`` and ``["audio"]`` return the model's inputs.
"""

from videollama2.processing.inputs import as_media
from videollama2.processing.open_parts import load_image_processor, load_tokenizer
from videollama2.processing.placeholders import (
    check_kind,
    check_medium,
    collate,
    expand_placeholders,
    expand_prompts,
    media_kinds,
    media_tokens,
    pad_rows,
    padding_id,
    planned_tokens,
)
from videollama2.processing.processor import VideoLlama2Processor
from videollama2.processing.read_options import ReadOptions
from videollama2.processing.video_processor import VideoLlama2VideoProcessor

__all__ = [
    "ReadOptions",
    "VideoLlama2Processor",
    "VideoLlama2VideoProcessor",
    "as_media",
    "check_kind",
    "check_medium",
    "collate",
    "expand_placeholders",
    "expand_prompts",
    "load_image_processor",
    "load_tokenizer",
    "media_kinds",
    "pad_rows",
    "padding_id",
    "media_tokens",
    "planned_tokens",
]
