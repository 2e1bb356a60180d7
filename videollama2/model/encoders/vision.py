"""Runs all vision encoders in the same way: modules of transformers, only up to the selected layer.

The layers are called one by one here instead of requesting all hidden states from the module, so that nothing above the
selected layer is computed or kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from videollama2.errors import ConfigError


@dataclass(frozen=True)
class KnownTower:
    """A published encoder. A checkpoint that only names it can be opened without network access.

    Attributes:
        vision_config: fields of its configuration, without ``model_type``.
        preprocessor: contents of its ``preprocessor_config.json``.
    """

    vision_config: Mapping[str, Any]
    preprocessor: Mapping[str, Any]


@dataclass(frozen=True)
class VisionEncoder:
    """One kind of vision encoder: the names of its classes in transformers, its layout and its published sizes.

    Attributes:
        model_type: ``model_type`` of its configuration.
        pair_type: ``model_type`` of repositories that hold this encoder together with a text encoder.
        model_class, layer_class, image_processor_class: names in transformers. The image processor is the PIL one,
            with which the published results were obtained.
        stem: names of the modules that run before the layers, in order.
        has_class_token: whether the first feature is a class token instead of a patch.
        known: hub name of a published encoder -> its configuration and preprocessing.
    """

    model_type: str
    pair_type: str
    model_class: str
    layer_class: str
    image_processor_class: str
    stem: tuple[str, ...]
    has_class_token: bool
    known: Mapping[str, KnownTower] = field(default_factory=dict)

    def build(self, config: Any) -> PreTrainedModel:
        """Build the encoder that a configuration describes, with newly initialised weights."""
        return _transformers_class(self.model_class)._from_config(config)

    def load(self, name_or_path: str, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
        """Load the pretrained encoder; returns it with the loading report of transformers."""
        return _transformers_class(self.model_class).from_pretrained(name_or_path, output_loading_info=True, **options)

    def image_processor(self, settings: Mapping[str, Any]) -> Any:
        """Build the image processor that these fields of a ``preprocessor_config.json`` describe."""
        return _transformers_class(self.image_processor_class)(**settings)

    def encode(
        self, tower: PreTrainedModel, pixels_BCHW: torch.Tensor, select_layer: int, select_feature: str = "patch"
    ) -> torch.Tensor:
        """Return the features of the selected layer; see :func:`videollama2.model.encoders.encode_frames`."""
        size = tower.config.image_size
        if tuple(pixels_BCHW.shape[-2:]) != (size, size):
            raise ConfigError(
                f"frames are {pixels_BCHW.shape[-2]}x{pixels_BCHW.shape[-1]} pixels, "
                f"the vision encoder takes {size}x{size}"
            )
        hidden_BND = pixels_BCHW.to(tower.get_parameter("embeddings.patch_embedding.weight").dtype)
        for name in self.stem:
            hidden_BND = tower.get_submodule(name)(hidden_BND)
        for layer in _layers_to_run(tower, select_layer):
            hidden_BND = layer(hidden_BND, None)
        return hidden_BND[:, 1:] if self.has_class_token and select_feature == "patch" else hidden_BND

    def runs(self, tower: PreTrainedModel, select_layer: int) -> list[nn.Module]:
        """Return the modules of the encoder that :meth:`encode` runs; the others have no effect on its features."""
        return [*map(tower.get_submodule, self.stem), *_layers_to_run(tower, select_layer)]


def _layers_to_run(tower: PreTrainedModel, select_layer: int) -> list[nn.Module]:
    """Return the layers below hidden state ``select_layer`` (0: the embedding; negative: from the last)."""
    layers = list(tower.get_submodule("encoder.layers").children())
    return layers[: select_layer if select_layer >= 0 else len(layers) + 1 + select_layer]


def _transformers_class(name: str) -> Any:
    import transformers

    return getattr(transformers, name)
