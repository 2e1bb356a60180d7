"""Neural networks: vision encoder, connectors, the composed model and its checkpoint names.

Nothing here knows of files with videos, of prompts or of tokenizers. Shape letters everywhere: B batch, T frames,
C channels, H height, W width, N visual tokens or patches, L sequence, D hidden, V vocabulary.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """``load_pretrained_model`` is here for published callers alone; it is :mod:`videollama2.checkpoints`' own."""
    if name != "load_pretrained_model":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return import_module("videollama2.checkpoints").load_pretrained_model
