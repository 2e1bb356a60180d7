"""Weight names: how published tensors map to modules, and back when saving.

transformers 5 applies these mappings while loading and reverses them while saving, and applies the mappings of the
nested models (Mixtral's experts, the ``vision_model`` level of CLIP and SigLIP) by itself. So a checkpoint saved here
carries the published names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

PUBLISHED_TOWER_PREFIX = "model.vision_tower.vision_tower.vision_model."
CONNECTOR_PREFIX = "model.mm_projector."

# anchored on both sides, so that reversing them on save cannot touch another module's names
_RENAMINGS = (
    (r"^model\.vision_tower\.vision_tower\.vision_model\.", "model.vision_tower."),
    (r"^model\.(layers\.|norm\.|embed_tokens\.)", r"model.language_model.\1"),
)


def register() -> None:
    """Tell transformers about the names; safe to call again."""
    register_checkpoint_conversion_mapping(
        "VideoLlama2ForConditionalGeneration",
        [WeightRenaming(source_patterns=source, target_patterns=target) for source, target in _RENAMINGS],
        overwrite=True,
    )


def module_name(published: str) -> str:
    """Module path of a published weight name (experts of Mixtral excepted: they are merged, not renamed)."""
    for pattern, replacement in _RENAMINGS:
        published = re.sub(pattern, replacement, published)
    return published


def connector_weights(names: Iterable[str]) -> dict[str, str]:
    """Names holding connector weights -> their name inside the connector, whatever prefix they carry.

    ``mm_projector.bin`` files carry ``model.mm_projector.``, LoRA runs add ``base_model.model.`` before it.
    """
    found = {}
    for name in names:
        _, marker, rest = name.partition("mm_projector.")
        if marker:
            found[name] = rest
    return found
