"""Configurations of a model's parts: decoder, vision encoder and audio encoder, from the fields that a file gives."""

from __future__ import annotations

from copy import deepcopy

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from videollama2.audio_config import AudioConfig
from videollama2.config_bounds import check_sizes, quoted
from videollama2.errors import ConfigError
from videollama2.model.encoders import KNOWN_TOWERS, vision_encoder, vision_fields


def as_config(name: str, value: PreTrainedConfig | dict | None) -> PreTrainedConfig:
    """Return a part's configuration from its fields, using a class of transformers. Code in a checkpoint is never run.

    Args:
        name: name of the field or file, for error messages.

    Raises:
        ConfigError: this version of transformers does not know the ``model_type``, or there is none.
    """
    if isinstance(value, PreTrainedConfig):
        return value
    if not isinstance(value, dict) or "model_type" not in value:
        raise ConfigError(f"{name} must be a configuration or a dict with 'model_type', got {type(value).__name__}")
    check_sizes(name, value)
    fields = deepcopy(value)
    model_type = fields.pop("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ConfigError(f"{name}: this transformers does not know the model_type {quoted(model_type)}")
    return CONFIG_MAPPING[model_type](**fields)


def as_vision_config(value: PreTrainedConfig | dict | None) -> PreTrainedConfig:
    """Return the configuration of a vision encoder from its fields.

    Raises:
        ConfigError: there are no fields, or the encoder is not one of
            :data:`videollama2.model.encoders.VISION_ENCODERS`.
    """
    if value is None:
        raise ConfigError(
            "the configuration names no vision encoder that can be found: set vision_config, or mm_vision_tower to a "
            f"folder with a config.json or to one of {', '.join(KNOWN_TOWERS)}"
        )
    config = as_config("vision_config", vision_fields(value) if isinstance(value, dict) else value)
    vision_encoder(config.model_type)
    return config


def as_audio_config(value: AudioConfig | dict | None, tower: str | None = None) -> AudioConfig | None:
    """Return the configuration of an audio encoder from its fields; without any, the published one if ``tower`` is set.

    Raises:
        ConfigError: a field is out of range.
    """
    if value is None:
        return AudioConfig() if tower else None
    if isinstance(value, AudioConfig):
        return value
    if not isinstance(value, dict):
        raise ConfigError(f"audio_config must be a configuration or a dict, got {type(value).__name__}")
    check_sizes("audio_config", value)
    return AudioConfig(**{name: deepcopy(field) for name, field in value.items() if name != "model_type"})
