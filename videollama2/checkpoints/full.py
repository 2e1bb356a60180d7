"""Load full checkpoints: the published ones and those that training writes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from videollama2.checkpoints.audio_tower import load_audio_weights
from videollama2.checkpoints.files import (
    UNREADABLE,
    check_model_type,
    check_weight_files,
    read_part,
    resolve_name,
    why_no_weights,
)
from videollama2.checkpoints.quantisation import leave_out_misfits, settle_quantization
from videollama2.config import VideoLlama2Config, is_videollama2
from videollama2.errors import CheckpointError, ConfigError, VideoLlama2Error, first_line
from videollama2.hub import OPTIONS, OPTIONS_OF_ANY_REPOSITORY, check_json_files, read_config
from videollama2.model.encoders import vision_encoder
from videollama2.model.encoders.beats import BeatsModel
from videollama2.model.modeling import VideoLlama2ForConditionalGeneration, check_loading
from videollama2.model.weight_names import AUDIO_TOWER_PREFIX, VISION_TOWER_PREFIX
from videollama2.processing import VideoLlama2Processor
from videollama2.towers import complete_flat_dict


def load_checkpoint(
    path: str | Path, **options: Any
) -> tuple[VideoLlama2ForConditionalGeneration, VideoLlama2Processor]:
    """Open a full checkpoint.

    Args:
        path: folder, hub name or ``videollama2-tiny``.
        options: options for ``from_pretrained`` (``dtype``, ``device_map``, ``attn_implementation``,
            ``quantization_config``) and for the hub.
    """
    hub = {key: options.pop(key) for key in OPTIONS if key in options}
    path, config = _open(path, **hub)
    quantization = settle_quantization(config, path, options.pop("quantization_config", None), **hub)
    if quantization is not None:
        leave_out_misfits(quantization, config.text_config, options.get("device_map"))
        options["quantization_config"] = quantization
    try:
        model = VideoLlama2ForConditionalGeneration.from_pretrained(path, config=config, **options, **hub)
    except ConfigError as error:
        raise ConfigError(f"{path}/config.json: {error}") from error
    except VideoLlama2Error:
        raise
    except (*UNREADABLE, TypeError, AttributeError) as error:
        check_json_files(path)
        raise CheckpointError(f"{path}: the weights cannot be read ({why_no_weights(error)})") from error
    # The processor shares the model's own configuration, so that later changes, such as a resized vocabulary, reach it.
    return model, VideoLlama2Processor.from_pretrained(path, config=model.config, **hub)


def load_encoders(
    path: str | Path, dtype: torch.dtype, attn_implementation: str | None = None
) -> tuple[VideoLlama2ForConditionalGeneration, VideoLlama2Processor]:
    """Open a full checkpoint, but read only the weights of its encoders; the other parts stay on the ``meta`` device.

    Args:
        path: folder or hub name of a checkpoint without quantised weights.
        dtype: of the encoders' weights.
        attn_implementation: of the vision encoder.

    Raises:
        CheckpointError: weights of an encoder are missing or do not fit.
    """
    path, config = _open(path)
    with torch.device("meta"):
        model = VideoLlama2ForConditionalGeneration(config)
    inner = model.model
    if config.vision_config is not None:
        inner.vision_tower = _read_vision(path, config.vision_config, dtype, attn_implementation)
    if config.audio_config is not None:
        # transformers would take the names of this encoder's normalised weights for those of an older torch.
        tower = BeatsModel(config.audio_config)
        load_audio_weights(tower, read_part(path, AUDIO_TOWER_PREFIX), path)
        inner.audio_tower = cast("Any", tower).to(dtype=dtype)  # transformers wraps this method
    return model, VideoLlama2Processor.from_pretrained(path, config=model.config)


def _read_vision(path: str, config: Any, dtype: torch.dtype, attention: str | None) -> PreTrainedModel:
    names = {f"^{re.escape(VISION_TOWER_PREFIX)}": ""}  # weights with other names are not read at all
    options = {} if attention is None else {"attn_implementation": attention}
    load = vision_encoder(config.model_type).load
    try:
        tower, info = load(path, config=config, key_mapping=names, dtype=dtype, **options)
    except UNREADABLE as error:
        raise CheckpointError(f"{path}: the weights cannot be read ({why_no_weights(error)})") from error
    check_loading({**dict(info), "unexpected_keys": []}, path)
    return tower


def _open(name_or_path: str | Path, **hub: Any) -> tuple[str, VideoLlama2Config]:
    """Return the resolved name of a full checkpoint and its configuration, with which its files agree."""
    path = resolve_name(name_or_path)
    config_dict = read_config(path, **hub)
    check_model_type(config_dict, path)
    if not is_videollama2(config_dict):
        raise CheckpointError(
            f"{path} is a {config_dict.get('model_type')!r} model, not VideoLLaMA 2; a base language model needs a "
            f"connector: give the connector's folder as model_path and this one as model_base"
        )
    config = _config_of(config_dict, path, **hub)
    check_weight_files(path, *filter(None, (config.text_config, config.vision_config)), **hub)
    return path, config


def _config_of(fields: dict[str, Any], path: str, **hub: Any) -> VideoLlama2Config:
    """Return the configuration that these fields describe; any fault in them raises one error that names the file."""
    any_hub = {key: value for key, value in hub.items() if key in OPTIONS_OF_ANY_REPOSITORY}
    try:
        return VideoLlama2Config.from_dict(complete_flat_dict(fields, path, **any_hub), name_or_path=path)
    except CheckpointError:
        raise
    except (TypeError, ValueError, AttributeError, KeyError, OSError, ArithmeticError, RecursionError) as error:
        raise ConfigError(f"{path}/config.json: {first_line(error)}") from error
