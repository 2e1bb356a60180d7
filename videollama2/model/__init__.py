"""Defines the neural networks: vision encoder, connectors, the composed model and its checkpoint names.

This package does not depend on media files, prompts or tokenizers. Suffixes of tensor names give their shape: B batch,
T frames, C channels, H height, W width, N visual tokens or patches, L sequence, D hidden, V vocabulary.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """Provide ``load_pretrained_model`` of :mod:`videollama2.checkpoints` under its published path."""
    if name != "load_pretrained_model":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return import_module("videollama2.checkpoints").load_pretrained_model
