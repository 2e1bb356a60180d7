"""Defines the neural networks: vision encoder, connectors, the composed model and its checkpoint names.

This package does not depend on media files, prompts or tokenizers. Suffixes of tensor names give their shape: B batch,
T frames, C channels, H height, W width, N visual tokens or patches, L sequence, D hidden, V vocabulary.
"""

from typing import Any

_DECODERS = ("Llama", "Mistral", "Mixtral", "Qwen2")
_PUBLISHED = {
    "load_pretrained_model": ("videollama2.checkpoints", "load_pretrained_model"),
    # There is one class for all decoders, which the configuration chooses.
    **{
        f"Videollama2{name}ForCausalLM": ("videollama2.model.modeling", "VideoLlama2ForConditionalGeneration")
        for name in _DECODERS
    },
    **{f"Videollama2{name}Config": ("videollama2.config", "VideoLlama2Config") for name in _DECODERS},
}
"""Published names of this package, and where they are: the module and the name there."""

__all__ = [*_PUBLISHED]  # pyright: ignore[reportUnsupportedDunderAll] - __getattr__ provides them


def __getattr__(name: str) -> Any:
    """Provide the names that programs written for the published code import from here."""
    if name not in _PUBLISHED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, own_name = _PUBLISHED[name]
    return getattr(import_module(module), own_name)
