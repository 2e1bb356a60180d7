"""Full checkpoints, published or own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from videollama2.checkpoints.files import UNREADABLE, check_model_type, resolve_name
from videollama2.checkpoints.placement import leave_out_misfits
from videollama2.config import VideoLlama2Config, is_videollama2
from videollama2.errors import CheckpointError, ConfigError, VideoLlama2Error, first_line
from videollama2.hub import OPTIONS, read_config
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration
from videollama2.processing import VideoLlama2Processor


def load_checkpoint(
    path: str | Path, **options: Any
) -> tuple[VideoLlama2ForConditionalGeneration, VideoLlama2Processor]:
    """Open a full checkpoint, published or own.

    Args:
        path: folder, hub name or ``videollama2-tiny``.
        options: of ``from_pretrained`` (``dtype``, ``device_map``, ``attn_implementation``,
            ``quantization_config``) and of the hub.
    """
    path = resolve_name(path)
    hub = {key: options.pop(key) for key in OPTIONS if key in options}
    config_dict = read_config(path, **hub)
    check_model_type(config_dict, path)
    if not is_videollama2(config_dict):
        raise CheckpointError(
            f"{path} is a {config_dict.get('model_type')!r} model, not VideoLLaMA 2; a base language model needs a "
            f"connector: give the connector's folder as model_path and this one as model_base"
        )
    config = _read_config(path, **hub)
    leave_out_misfits(options.get("quantization_config"), config.text_config, options.get("device_map"))
    try:
        model = VideoLlama2ForConditionalGeneration.from_pretrained(path, config=config, **options, **hub)
    except VideoLlama2Error:
        raise
    except UNREADABLE as error:
        raise CheckpointError(f"{path}: the weights cannot be read ({first_line(error)})") from error
    # The model's own configuration, not the one it copied: what changes in it reaches the processor.
    return model, VideoLlama2Processor.from_pretrained(path, config=model.config, **hub)


def _read_config(path: str, **hub: Any) -> VideoLlama2Config:
    """The checkpoint's configuration; whatever transformers' own checks raise becomes one error that names the file."""
    try:
        return VideoLlama2Config.from_pretrained(path, **hub)
    except VideoLlama2Error:
        raise
    except (TypeError, ValueError, AttributeError, KeyError, OSError) as error:
        raise ConfigError(f"{path}/config.json: {first_line(error)}") from error
