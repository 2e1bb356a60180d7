"""Maps between weight names in checkpoint files and parameter names in memory.

Files use the published names. transformers 5 applies the mapping below while loading and reverses it while saving; it
applies the mappings of nested models (Mixtral's experts, the ``vision_model`` level of CLIP and SigLIP) by itself. LoRA
files, which are read and written here without transformers, use the same mapping plus peft's prefix and infixes.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable

from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming

CONNECTOR_PREFIX = "model.mm_projector."
AUDIO_CONNECTOR_PREFIX = "model.mm_projector_a."
AUDIO_TOWER_PREFIX = "model.audio_tower."
VISION_TOWER_PREFIX = "model.vision_tower.vision_tower.vision_model."
"""In files; in memory it is ``model.vision_tower.``."""

# Prefix on disk -> prefix in memory. Names with none of these prefixes are the same in both.
_PREFIXES = {
    VISION_TOWER_PREFIX: "model.vision_tower.",
    "model.layers.": "model.language_model.layers.",
    "model.norm.": "model.language_model.norm.",
    "model.embed_tokens.": "model.language_model.embed_tokens.",
}

# In files, peft puts this prefix before every name; in memory, it inserts the two infixes into names.
_PEFT_PREFIX = "base_model.model."
_PEFT_ADAPTER = ".default."
_PEFT_WRAPPED = ".base_layer."


def register() -> None:
    """Register the mapping with transformers; may be called more than once."""
    # The model without its head has the same parameters, named without the first "model.".
    same = (CONNECTOR_PREFIX, AUDIO_CONNECTOR_PREFIX, AUDIO_TOWER_PREFIX)
    inner = {disk: own.removeprefix("model.") for disk, own in (_PREFIXES | dict(zip(same, same, strict=True))).items()}
    for name, prefixes in (("VideoLlama2ForConditionalGeneration", _PREFIXES), ("VideoLlama2Model", inner)):
        # The patterns are anchored, so that their reversal cannot match the names of another module.
        renamings: list[WeightConverter | WeightRenaming] = [
            WeightRenaming(source_patterns=f"^{re.escape(disk)}", target_patterns=own) for disk, own in prefixes.items()
        ]
        register_checkpoint_conversion_mapping(name, renamings, overwrite=True)


def to_memory(disk: str) -> str:
    """Convert a name in a file into a parameter name. (Mixtral's experts are merged rather than renamed.)

    peft's prefix and infixes are dropped: ``base_model.model.X`` and ``X.base_layer.weight`` belong to ``X``.
    """
    # A model that peft wrapped more than once has the prefix more than once.
    while disk.startswith("base_model."):
        disk = disk.removeprefix(_PEFT_PREFIX).removeprefix("base_model.")
    return _replace_prefix(disk.replace(_PEFT_WRAPPED, "."), _PREFIXES)


def to_disk(memory: str) -> str:
    """Convert a parameter name into a name in a file; the inverse of :func:`to_memory` for models without peft."""
    return _replace_prefix(memory, {own: disk for disk, own in _PREFIXES.items()})


_PEFT_LENGTHS = "lora_magnitude_vector"
"""The lengths of a weight's rows under DoRA; in files, this name has no ``.weight`` behind it."""


def to_adapter_file(memory: str) -> str:
    """Convert a parameter name of a model with LoRA layers into the name used in the files of a LoRA folder."""
    name = memory.replace(_PEFT_ADAPTER, ".").replace(_PEFT_WRAPPED, ".")
    return _PEFT_PREFIX + to_disk(name.replace(f"{_PEFT_LENGTHS}.weight", _PEFT_LENGTHS))


def from_adapter_file(disk: str, own: Container[str]) -> str:
    """Convert a name in the files of a LoRA folder into a parameter name of a model with LoRA layers.

    Args:
        own: names of the model's parameters. They show whether peft has wrapped a layer, whose own weight is then
            under ``base_layer``.
    """
    name = re.sub(rf"\.{_PEFT_LENGTHS}$", rf".{_PEFT_LENGTHS}.weight", to_memory(disk))
    name = re.sub(rf"\.(lora_[AB]|{_PEFT_LENGTHS})\.", rf".\1{_PEFT_ADAPTER}", name)
    # A folder may also hold the whole weights of a layer that has an adapter; peft has moved these one level down.
    wrapped = re.sub(r"\.(weight|bias)$", rf"{_PEFT_WRAPPED}\1", name)
    return wrapped if wrapped in own else name


def connector_weights(names: Iterable[str], prefix: str = CONNECTOR_PREFIX) -> dict[str, str]:
    """Map each name of a connector weight, with anything before ``prefix``, to its name inside the connector."""
    inner = prefix.removeprefix("model.")
    return {name: name.partition(inner)[2] for name in names if inner in name}


def _replace_prefix(name: str, prefixes: dict[str, str]) -> str:
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
