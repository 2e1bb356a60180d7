"""Bounds the sizes in a ``config.json`` before anything of that size is built.

A configuration is untrusted data: ten million layers would fill all memory before their weights are found to be
missing. The bounds are far above every published model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from videollama2.errors import ConfigError

_LARGEST = {
    "num_hidden_layers": 1_000,
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "vocab_size": 1 << 24,
    "num_attention_heads": 1 << 12,
    "num_key_value_heads": 1 << 12,
    "head_dim": 1 << 12,
    "num_local_experts": 1 << 12,
    "num_experts": 1 << 12,
    "projection_dim": 1 << 17,
    "image_size": 1 << 13,
    "patch_size": 1 << 13,
    "max_position_embeddings": 1 << 27,
    "encoder_layers": 1_000,
    "embed_dim": 1 << 17,
    "encoder_embed_dim": 1 << 17,
    "encoder_ffn_embed_dim": 1 << 20,
    "encoder_attention_heads": 1 << 12,
    "num_mel_bins": 1 << 13,
    "conv_pos": 1 << 13,
    "num_buckets": 1 << 16,
    "predictor_class": 1 << 20,
    "num_windows": 1 << 10,
}

_NUMBERS = ("rope_theta", "rms_norm_eps", "layer_norm_eps", "initializer_range", "attention_dropout")


def check_sizes(name: str, fields: Mapping[str, Any]) -> None:
    """Check that sizes are within the bounds.

    Args:
        name: name of the part or file, for error messages.
        fields: fields of a decoder's or encoder's configuration. Missing fields and None mean a default.

    Raises:
        ConfigError: a size is not a whole number or out of bounds, or another field is not a number.
    """
    for field, largest in _LARGEST.items():
        value = fields.get(field)
        if value is not None and not is_integer_within(value, 1, largest):
            raise ConfigError(f"{name}: {field} must be a whole number from 1 to {largest}, got {quoted(value)}")
    for field in _NUMBERS:
        value = fields.get(field)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0):
            raise ConfigError(f"{name}: {field} must be a number, at least 0, got {quoted(value)}")


def is_integer_within(value: Any, least: int, largest: int) -> bool:
    """Return whether a value of a JSON file is a whole number within these bounds; ``true`` is not one."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= largest


def quoted(value: Any, length: int = 60) -> str:
    """Return a value in a form that is safe in a one-line message."""
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}..."
