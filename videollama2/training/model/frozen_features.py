"""Trains on kept features of frozen encoders, and tells what these features depend on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from videollama2.data.caches.features import FeatureStore
from videollama2.media.audio import ClipRules
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.processing import VideoLlama2Processor
from videollama2.training.flags.data import DataArguments
from videollama2.training.flags.run import TrainingArguments


def use_features(
    model: VideoLlama2ForConditionalGeneration,
    processor: VideoLlama2Processor,
    data_args: DataArguments,
    training_args: TrainingArguments,
) -> None:
    """Make the model take features in place of media.

    Raises:
        ConfigError: the features in ``--features`` are not those that the model's encoders would compute in this run.
    """
    assert data_args.features is not None  # the caller has looked
    precision = precision_of(training_args, bool(training_args.deepspeed))
    FeatureStore(data_args.features).check(fingerprint(model, processor, data_args, precision))
    model.model.takes_features = True


def dtype_of(precision: str) -> torch.dtype:
    """Return the dtype of an encoder's weights and features in a precision of :func:`precision_of`."""
    return torch.float32 if precision == "float32" else torch.bfloat16


def precision_of(training_args: TrainingArguments, deepspeed: bool) -> str:
    """Return the name of the precision in which a run's frozen encoders compute."""
    if not training_args.bf16:
        return "float32"
    return "bfloat16" if deepspeed else "mixed bfloat16"


def fingerprint(
    model: VideoLlama2ForConditionalGeneration,
    processor: VideoLlama2Processor,
    data_args: DataArguments,
    precision: str,
) -> dict[str, Any]:
    """Return, as JSON values, what all features depend on besides the media and what records say about them."""
    config, inner, dtype = model.config, model.model, dtype_of(precision)
    found: dict[str, Any] = {"precision": precision}
    if config.sees:
        assert processor.transform is not None  # every model with a vision encoder has one
        found |= {
            "vision_tower": weights_digest(inner.vision_tower, dtype),
            "mm_vision_select_layer": config.mm_vision_select_layer,
            "mm_vision_select_feature": config.mm_vision_select_feature,
            "num_frames": config.num_frames,
            "image_aspect_ratio": config.image_aspect_ratio,
            "pixels": asdict(processor.transform),
            **{name: getattr(data_args, name) for name in ("sampling", "fps", "max_frames")},
        }
    if config.hears:
        found |= {
            "audio_tower": weights_digest(inner.audio_tower, dtype),
            "sounds": asdict(ClipRules.of(config.hearing)),
        }
    return json.loads(json.dumps(found))


def weights_digest(module: nn.Module | None, dtype: torch.dtype) -> str:
    """Return a digest of a module's weights in ``dtype``, whatever file they are from and however they are loaded."""
    digest = hashlib.sha256()
    assert module is not None
    for name, value in sorted(module.state_dict().items()):
        value = value.to(dtype) if value.is_floating_point() else value
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}:".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return f"sha256:{digest.hexdigest()[:16]}"
