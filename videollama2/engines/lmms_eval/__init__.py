"""The model in lmms-eval: ``python -m lmms_eval --model videollama2 --model_args pretrained=videollama2-tiny ...``."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """Tell lmms-eval where the model's class is (entry point ``lmms_eval.models``)."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("videollama2", simple_class_path="videollama2.engines.lmms_eval.model.VideoLlama2")
