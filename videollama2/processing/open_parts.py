"""Loads the tokenizer and the image preprocessing of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from videollama2.config import VideoLlama2Config
from videollama2.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    VideoLlama2Error,
    first_line,
)
from videollama2.hub import OPTIONS_OF_ANY_REPOSITORY, find_file, read_json
from videollama2.media.pixels import PixelTransform
from videollama2.model.encoders import KNOWN_TOWERS, vision_encoder
from videollama2.towers import find_tower

# A tokenizer needs one of these files: its fast form, a sentencepiece model, or byte-pair tables.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_TOKENIZER_CONFIG = "tokenizer_config.json"
_FAULTS_OF_FILES = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
_PREPROCESSOR = "preprocessor_config.json"
_NOT_SETTINGS = ("_valid_processor_keys", "image_processor_type", "feature_extractor_type", "processor_class")


def load_tokenizer(name_or_path: str | Path, **hub: Any) -> Any:
    """Load the checkpoint's tokenizer.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    try:
        return AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False, **hub)
    except VideoLlama2Error:
        raise
    except Exception as error:
        # tokenizers raises a bare Exception for a damaged tokenizer.json. Other types are not caused by the files.
        if type(error) is not Exception and not isinstance(error, _FAULTS_OF_FILES):
            raise
        raise CheckpointError(_tokenizer_complaint(name_or_path, error, **hub)) from error


def _tokenizer_complaint(name_or_path: str | Path, error: Exception, **hub: Any) -> str:
    """Describe the fault of a tokenizer in one line that names the file.

    Raises:
        CheckpointError: one of its files is not valid JSON.
    """
    files = {name: find_file(name_or_path, name, **hub) for name in (*_TOKENIZER_FILES, _TOKENIZER_CONFIG)}
    if not any(files[name] for name in _TOKENIZER_FILES):
        return f"{name_or_path} holds no tokenizer: expected one of {', '.join(_TOKENIZER_FILES)}"
    for name in (_TOKENIZER_CONFIG, _TOKENIZER_FILES[0]):
        path = files[name]
        if path is not None:
            read_json(path)
    config = files[_TOKENIZER_CONFIG]
    if config is not None and "auto_map" in read_json(config):
        return (
            f"{config}: auto_map names code beside the tokenizer, which is never run; only a tokenizer_class that "
            f"transformers has can be opened"
        )
    found = next(files[name] for name in _TOKENIZER_FILES if files[name] is not None)
    return f"{found}: cannot be read as a tokenizer ({first_line(error)})"


def load_image_processor(name_or_path: str | Path, config: VideoLlama2Config, **hub: Any) -> Any:
    """Load the image preprocessing of a checkpoint: its own, else that of its vision encoder. It always uses PIL.

    Returns None for a model without a vision encoder.

    By default, transformers chooses the back end, and thus the exact pixel values, depending on whether torchvision is
    installed. The published results were obtained with PIL.

    Raises:
        CheckpointError: there is no preprocessing.
        ConfigError: one of its fields is invalid.
    """
    if config.vision_config is None:
        return None
    settings, source = _find_preprocessor(name_or_path, config, **hub)
    try:
        size, side = PixelTransform.from_preprocessor_config(settings).output_size, config.vision_config.image_size
        if size != (side, side):
            raise ConfigError(f"frames of size {size}, but the vision encoder takes {side}x{side}")
        return vision_encoder(config.vision_config.model_type).image_processor(settings)
    except _FAULTS_OF_FILES as error:
        raise ConfigError(f"{source}: {first_line(error)}") from error


def _find_preprocessor(
    name_or_path: str | Path, config: VideoLlama2Config, **hub: Any
) -> tuple[Mapping[str, Any], str | Path]:
    """Return the fields of the preprocessing, and the file or encoder from which they come."""
    name = config.mm_vision_tower
    path = find_file(name_or_path, _PREPROCESSOR, **hub)
    if path is None and name:
        folder = find_tower(name, name_or_path)
        path = find_file(folder, _PREPROCESSOR) if folder is not None else None
        if path is None and name in KNOWN_TOWERS:
            return KNOWN_TOWERS[name].preprocessor, name
        if path is None and folder is None:
            with suppress(CheckpointNotFoundError):  # reported below, with the name of the checkpoint
                options = {key: value for key, value in hub.items() if key in OPTIONS_OF_ANY_REPOSITORY}
                path = find_file(name, _PREPROCESSOR, **options)
    if path is None:
        raise CheckpointError(f"{name_or_path}: found no {_PREPROCESSOR} here nor for its vision encoder {name!r}")
    return {key: value for key, value in read_json(path).items() if key not in _NOT_SETTINGS}, path
